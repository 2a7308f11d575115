//! Stops all other threads of the process at once, and lets them go on.
//!
//! Each thread gets a signal whose handler waits until the parking ends. While a [`Parked`] exists nothing here or in its
//! user may allocate, lock or panic: a parked thread may hold the allocator's lock.
//!
//! The signal is the one that libc cancels threads with (`SIGCANCEL`), unless `HOTPATCHD_SIGNAL` names another. libc's
//! `sigfillset` leaves that one out, so threads that block "all" signals (graphics drivers start such) are reached as
//! well, and gdb passes it on silently. libc's `sigaction` refuses it; hence the system calls. The former handler is
//! called for signals that are not ours, and put back when the parking ends.

use crate::arch::{registers, restorer, thread_pointer};
use crate::unwind::Registers;
use libc::{c_int, c_void, pid_t, siginfo_t, ucontext_t};
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{env, io, mem};

/// The signals that queue. Of others a thread has one at most, and ours would get lost behind the program's.
/// Source: signal(7), "Real-time signals".
const QUEUEING: RangeInclusive<c_int> = 32..=64;

/// Source: glibc, `sysdeps/unix/sysv/linux/internal-signals.h`; musl, `src/internal/pthread_impl.h`, where 32 wakes timer
/// threads, which wait for it without a handler.
static SIGNAL: AtomicI32 = AtomicI32::new(if cfg!(target_env = "musl") { 33 } else { 32 });

/// The sender of our signals, so that the program's own are told apart: no user has this id.
const MARK: libc::uid_t = libc::uid_t::MAX;

/// Odd while threads have to stay; every parking has its own odd number.
static EPOCH: AtomicU32 = AtomicU32::new(0);
/// Threads that have parked in this epoch.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// How many arrivals are waited for: only the last one wakes who waits.
static CALLED: AtomicU32 = AtomicU32::new(0);
/// Threads that run the handler.
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// The parking's seats; valid while `EPOCH` is odd or `INSIDE` is not zero.
static SEATS: AtomicPtr<Seat> = AtomicPtr::new(ptr::null_mut());
/// The handler that was there before.
static FORMER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

struct Seat {
    tid: pid_t,
    thread_pointer: AtomicU64,
    /// Set by the thread when it has parked, after the thread pointer.
    context: AtomicPtr<ucontext_t>,
}

/// `siginfo_t` of a queued signal. Source: linux/include/uapi/asm-generic/siginfo.h.
#[repr(C)]
struct QueuedSignal {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    pid: pid_t,
    uid: libc::uid_t,
    /// Epoch in the upper half, seat in the lower.
    value: u64,
    _rest: [u64; 12],
}

/// Source: linux/arch/x86/include/uapi/asm/signal.h; aarch64 has the same fields.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// The signal that parks threads.
pub fn signal() -> c_int {
    SIGNAL.load(SeqCst)
}

/// Takes the signal that the environment names, if it is fit.
pub fn choose_signal() {
    let named = env::var("HOTPATCHD_SIGNAL").ok().and_then(|number| number.parse().ok());
    if let Some(number) = named.filter(|number| QUEUEING.contains(number)) {
        SIGNAL.store(number, SeqCst);
    }
}

/// The longest time for which threads stand still that wait for others. Many that never rest take it, one turn each.
const LONGEST: Duration = Duration::from_secs(2);
/// For how long nobody may have left the parking before, on the way to the next: nobody stands still meanwhile.
const LEAVING: Duration = Duration::from_secs(2);

/// Why the threads could not be parked.
pub enum Stuck {
    /// There are more threads than seats.
    Crowded,
    /// A thread did not stop in time.
    Thread(pid_t),
    System(io::Error),
}

/// What parking needs, made ready beforehand.
pub struct Parking {
    tasks: File,
    listing: Vec<u64>,
    seats: Vec<Seat>,
    /// Threads that will never run again but are still listed (an exited main thread).
    dead: Vec<pid_t>,
}

impl Parking {
    pub fn open() -> io::Result<Parking> {
        let tasks = File::open("/proc/self/task")?;
        Ok(Parking { tasks, listing: vec![0; 4096], seats: Vec::with_capacity(64), dead: Vec::new() })
    }

    /// Threads that there is room for.
    pub fn capacity(&self) -> usize {
        self.seats.capacity()
    }

    /// Makes more seats, once nobody uses those that there are. To be called with no thread parked.
    pub fn make_room(&mut self) {
        wait_left();
        if INSIDE.load(SeqCst) == 0 {
            self.seats.reserve_exact(self.seats.capacity() * 2);
        }
    }

    pub fn ignore(&mut self, tid: pid_t) {
        self.dead.push(tid);
    }

    /// Parks all other threads, or none: those that had stopped go on when none of the others stops for `limit`.
    pub fn park(&mut self, limit: Duration) -> Result<Parked<'_>, Stuck> {
        if INSIDE.load(SeqCst) != 0 {
            return Err(Stuck::System(io::ErrorKind::TimedOut.into()));
        }
        self.seats.clear();
        self.seat_new()?;
        SEATS.store(self.seats.as_mut_ptr(), SeqCst);
        ARRIVED.store(0, SeqCst);
        let former = install().map_err(Stuck::System)?;
        let begun = Instant::now();
        EPOCH.fetch_add(1, SeqCst);
        let parked = Parked { parking: self, former, begun };
        let mut called = 0;
        // A thread that has not stopped may start another: done when a look around finds nobody new.
        while called < parked.parking.seats.len() {
            parked.parking.call(called)?;
            parked.parking.wait_all(begun + LONGEST, limit)?;
            called = parked.parking.seats.len();
            parked.parking.seat_new()?;
        }
        Ok(parked)
    }

    /// Seats the threads that have none yet.
    fn seat_new(&mut self) -> Result<(), Stuck> {
        let own = unsafe { libc::gettid() };
        let mut next = 0; // the kernel lists the threads in one order: after the seat found last is who comes next
        unsafe { libc::lseek(self.tasks.as_raw_fd(), 0, libc::SEEK_SET) };
        loop {
            let size = mem::size_of_val(&self.listing[..]);
            let listing = self.listing.as_mut_ptr().cast::<u8>();
            let read = unsafe { libc::syscall(libc::SYS_getdents64, self.tasks.as_raw_fd(), listing, size) };
            match read {
                0 => return Ok(()),
                1.. => {}
                _ => return Err(Stuck::System(io::Error::last_os_error())),
            }
            let mut at = 0;
            while at < read as usize {
                let entry = unsafe { listing.add(at).cast::<libc::dirent64>() };
                at += usize::from(unsafe { (*entry).d_reclen });
                let tid = unsafe { libc::atoi(ptr::addr_of!((*entry).d_name).cast()) }; // 0 for "." and ".."
                if tid == 0 || tid == own || self.dead.contains(&tid) {
                    continue;
                }
                let (before, after) = self.seats.split_at(next);
                let found = after.iter().position(|seat| seat.tid == tid).map(|place| next + place);
                if let Some(place) = found.or_else(|| before.iter().position(|seat| seat.tid == tid)) {
                    next = place + 1;
                    continue;
                }
                if self.seats.len() == self.seats.capacity() {
                    return Err(Stuck::Crowded);
                }
                let (thread_pointer, context) = (AtomicU64::new(0), AtomicPtr::new(ptr::null_mut()));
                self.seats.push(Seat { tid, thread_pointer, context });
            }
        }
    }

    /// Signals the threads from a seat on, all at once: one that goes on meanwhile may take the processor from this one.
    fn call(&self, first: usize) -> Result<(), Stuck> {
        CALLED.store(self.seats.len() as u32, SeqCst);
        let mut queued: QueuedSignal = unsafe { mem::zeroed() };
        queued.signo = signal();
        queued.code = libc::SI_QUEUE;
        queued.pid = unsafe { libc::getpid() };
        queued.uid = MARK;
        let (process, signal) = (queued.pid, queued.signo);
        for (number, seat) in self.seats.iter().enumerate().skip(first) {
            queued.value = u64::from(EPOCH.load(SeqCst)) << 32 | number as u64;
            let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, seat.tid, signal, &queued) };
            if sent != 0 {
                match io::Error::last_os_error() {
                    error if error.raw_os_error() == Some(libc::ESRCH) => {} // it has ended meanwhile
                    error => return Err(Stuck::System(error)),
                }
            }
        }
        Ok(())
    }

    /// Waits until each thread that was called has parked or ended, as long as one does within `limit` after the other.
    fn wait_all(&self, deadline: Instant, limit: Duration) -> Result<(), Stuck> {
        let mut heard = Instant::now();
        loop {
            let arrived = ARRIVED.load(SeqCst);
            if arrived as usize == self.seats.len() {
                return Ok(());
            }
            futex_wait(&ARRIVED, arrived, Duration::from_millis(1));
            let now = Instant::now();
            if ARRIVED.load(SeqCst) != arrived {
                heard = now;
                continue;
            }
            match self.seats.iter().find(|seat| seat.context.load(SeqCst).is_null() && seat.exists()) {
                None => return Ok(()),
                Some(seat) if now > deadline.min(heard + limit) => return Err(Stuck::Thread(seat.tid)),
                Some(_) => {}
            }
        }
    }
}

impl Seat {
    fn exists(&self) -> bool {
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.tid, 0) == 0 }
    }
}

/// All other threads wait; they go on when this is dropped.
pub struct Parked<'a> {
    parking: &'a mut Parking,
    former: KernelSigaction,
    begun: Instant,
}

impl Parked<'_> {
    /// Lets the threads go on; returns for how long the first of them has stood still.
    pub fn release(self) -> Duration {
        // Of the many that go on, each may take its turn on the processor before this thread gets the next.
        self.begun.elapsed()
    }

    /// Thread ids and thread pointers, and the registers with which the threads will go on.
    pub fn threads(&self) -> impl Iterator<Item = (pid_t, u64, Registers)> + '_ {
        self.occupied().map(|seat| {
            let (at, general) = unsafe { registers(seat.context.load(SeqCst)) };
            (seat.tid, seat.thread_pointer.load(SeqCst), Registers { at, general })
        })
    }

    pub fn thread_pointers(&self) -> impl Iterator<Item = u64> + '_ {
        self.occupied().map(|seat| seat.thread_pointer.load(SeqCst))
    }

    fn occupied(&self) -> impl Iterator<Item = &Seat> {
        self.parking.seats.iter().filter(|seat| !seat.context.load(SeqCst).is_null())
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        restore(&self.former);
        EPOCH.fetch_add(1, SeqCst);
        futex_wake(&EPOCH, i32::MAX);
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    unsafe {
        let errno = *libc::__errno_location();
        let queued = info.cast::<QueuedSignal>();
        if (*queued).code == libc::SI_QUEUE && (*queued).pid == libc::getpid() && (*queued).uid == MARK {
            INSIDE.fetch_add(1, SeqCst);
            let epoch = ((*queued).value >> 32) as u32;
            if EPOCH.load(SeqCst) == epoch {
                let seat = SEATS.load(SeqCst).add((*queued).value as u32 as usize);
                (*seat).thread_pointer.store(thread_pointer(), SeqCst);
                (*seat).context.store(context.cast(), SeqCst);
                if ARRIVED.fetch_add(1, SeqCst) + 1 == CALLED.load(SeqCst) {
                    futex_wake(&ARRIVED, 1);
                }
                while EPOCH.load(SeqCst) == epoch {
                    futex_wait(&EPOCH, epoch, Duration::from_secs(1));
                }
            }
            INSIDE.fetch_sub(1, SeqCst);
        } else {
            let former = FORMER.load(SeqCst);
            if former != libc::SIG_DFL && former != libc::SIG_IGN {
                let former: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = mem::transmute(former);
                former(signal, info, context);
            }
        }
        *libc::__errno_location() = errno;
    }
}

fn rt_sigaction(new: Option<&KernelSigaction>) -> io::Result<KernelSigaction> {
    let new = new.map_or(ptr::null(), |new| new as *const _);
    let mut old: KernelSigaction = unsafe { mem::zeroed() };
    let mask_size = mem::size_of::<u64>();
    match unsafe { libc::syscall(libc::SYS_rt_sigaction, signal(), new, &mut old, mask_size) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs the handler; returns what was there before.
fn install() -> io::Result<KernelSigaction> {
    const SA_RESTORER: c_int = 0x0400_0000;
    let former = rt_sigaction(None)?;
    FORMER.store(former.handler, SeqCst);
    let restorer = restorer();
    let has_restorer = if restorer.is_some() { SA_RESTORER } else { 0 };
    rt_sigaction(Some(&KernelSigaction {
        handler: on_signal as *const () as usize,
        flags: (libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK | has_restorer) as u64,
        restorer: restorer.map_or(0, |restorer| restorer as usize),
        mask: !0,
    }))?;
    Ok(former)
}

/// Puts the former handler back.
fn restore(former: &KernelSigaction) {
    // Where pthread_cancel has been called for the first time meanwhile, its handler stays.
    if rt_sigaction(None).map_or(true, |now| now.handler != on_signal as *const () as usize) {
        return;
    }
    if former.handler == libc::SIG_DFL {
        // Discards what is still pending for threads that did not stop: the default action would end the process.
        let ignore = KernelSigaction { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };
        let _ = rt_sigaction(Some(&ignore));
    }
    let _ = rt_sigaction(Some(former));
}

/// Returns once `word` is woken or no longer holds `value`, after `limit` at the latest.
fn futex_wait(word: &AtomicU32, value: u32, limit: Duration) {
    let limit = [limit.as_secs() as i64, i64::from(limit.subsec_nanos())]; // the kernel's `timespec`
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, &limit) };
}

fn futex_wake(word: &AtomicU32, threads: c_int) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, threads) };
}

/// Waits until all threads have left the parking before, as long as one does so now and then. To be called before the next,
/// and with no lock held: of many that never rest, each has its turn first.
pub fn wait_left() {
    let (mut inside, mut left) = (INSIDE.load(SeqCst), Instant::now());
    while inside != 0 && left.elapsed() < LEAVING {
        std::thread::sleep(Duration::from_micros(100));
        let now = INSIDE.load(SeqCst);
        if now != inside {
            (inside, left) = (now, Instant::now());
        }
    }
}
