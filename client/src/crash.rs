//! Leaves a note of the fault that ends the program, for the daemon to read when the process is gone, and the counts of panics.
//!
//! Nothing is installed before the first patch comes. From then on, the handler of each signal that a fault raises writes down the
//! thread and its callers, and has what was there before it run: the program's own handler, or the default action, which
//! then ends the program by the same signal, at the same instruction. The note is a page mapped from a file: writing it takes no
//! descriptor, and it outlives the process. A handler that the program installs later takes the place of this one.

use crate::arch::{call_on_stack, code_address, registers, General, HAS_LINK_REGISTER, RETURN_ADDRESS, STACK_POINTER};
use crate::panic_counts::{thread_name, Panics};
use crate::unwind::{with_modules, Module, Registers, Source, Walker};
use libc::{c_int, c_void, pid_t, sigaction, siginfo_t, ucontext_t};
use std::cell::UnsafeCell;
use std::fs::{self, OpenOptions};
use std::mem::{size_of, transmute, zeroed};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{fence, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use std::{io, process, ptr, thread};

const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];
pub const MAX_FRAMES: usize = 128;
const MAGIC: [u8; 8] = *b"hpcrash1";
const STACK_SIZE: usize = 64 << 10;
/// A handler that is run for a fault does not use more of the stack than this before it gives up.
const HANDLER_STACK: usize = 1 << 20;
/// The longest that a note takes to write, many times over.
const WRITING_LIMIT_MS: u32 = 200;

/// What the file holds; `docs/wire.md` describes it.
#[repr(C)]
struct Page {
    note: Note,
    panics: Panics,
}

#[repr(C)]
struct Note {
    magic: [u8; 8],
    pid: u32,
    tid: u32,
    /// The signal of the fault, -1 for a panic; 0 while there is none.
    signal: i32,
    /// Of a panic, the number of its site among the panics; 0 where it went through no patched code.
    code: i32,
    /// The newest signal: another one where the handler of `signal` called `abort`.
    last_signal: i32,
    frame_count: u32,
    fault_addr: u64,
    stack_pointer: u64,
    thread: [u8; 16],
    frames: [Frame; MAX_FRAMES],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    /// Inside the instruction that is executed, or that made the call.
    addr: u64,
    /// Where the function around it begins, 0 if no table tells.
    function: u64,
}

struct Recorder {
    path: PathBuf,
    note: *mut Note,
    walker: Walker<'static>,
}

/// Where the file is mapped: once there, there is always one.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());
/// The addresses at which patches may lie, start and end.
static PATCHES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// Who takes it out has it alone.
static RECORDER: AtomicPtr<Recorder> = AtomicPtr::new(ptr::null_mut());
/// What was there before, in the order of `SIGNALS`; null until the handlers are installed.
static FORMER: AtomicPtr<[sigaction; SIGNALS.len()]> = AtomicPtr::new(ptr::null_mut());
/// The thread for whose fault the former handler runs, and an address in the frame that called it.
static HANDLING: AtomicI32 = AtomicI32::new(0);
static HANDLING_FRAME: AtomicUsize = AtomicUsize::new(0);

/// For writing the note: the stack of the thread may be used up, and a signal stack have room for little more than the signal.
#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// Notes faults and panics from now on, in the file `crash` of that directory; `tables` are those of the patches, which lie in `region`.
///
/// Only the client's thread may call it.
pub fn watch(directory: &Path, tables: &[Module], region: &Range<u64>) -> io::Result<()> {
    let path = directory.join("crash");
    let mut modules = Vec::new();
    with_modules(|loaded| modules = loaded);
    modules.extend_from_slice(tables);
    let walker = Walker::new(modules, &OwnMemory);
    let note = match forget() {
        Some(former) if former.path == path && path.exists() => former.note,
        _ => new_note(&path)?,
    };
    PATCHES[0].store(region.start, SeqCst);
    PATCHES[1].store(region.end, SeqCst);
    RECORDER.store(Box::into_raw(Box::new(Recorder { path, note, walker })), SeqCst);
    if FORMER.load(SeqCst).is_null() {
        install();
    }
    Ok(())
}

/// Notes no faults until the next call of [`watch`].
fn forget() -> Option<Box<Recorder>> {
    for _ in 0..WRITING_LIMIT_MS {
        let recorder = RECORDER.swap(ptr::null_mut(), SeqCst);
        if !recorder.is_null() {
            return Some(unsafe { Box::from_raw(recorder) });
        }
        if FORMER.load(SeqCst).is_null() {
            return None;
        }
        thread::sleep(Duration::from_millis(1)); // a handler has it
    }
    None
}

/// Has faults noted without the tables of what is no longer loaded.
pub fn unload() {
    if !RECORDER.load(SeqCst).is_null() {
        drop(forget());
    }
}

/// The panics so far, and the addresses at which patches may lie; `None` before the first patch, and in forked processes.
pub fn panics() -> Option<(&'static Panics, Range<u64>)> {
    let page = unsafe { PAGE.load(SeqCst).as_ref() }?;
    let [start, end] = &PATCHES;
    (page.note.pid == process::id()).then(|| (&page.panics, start.load(SeqCst)..end.load(SeqCst)))
}

/// Maps a new file, in the place of the former one if there is any: threads may be writing.
fn new_note(path: &Path) -> io::Result<*mut Note> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let _ = fs::remove_file(path); // which may be the former one: what is mapped must not become shorter
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let size = size_of::<Page>();
    file.set_len(size as u64)?;
    file.write_all_at(&MAGIC, 0)?;
    file.write_all_at(&process::id().to_ne_bytes(), MAGIC.len() as u64)?;
    let former = PAGE.load(SeqCst);
    let flags = libc::MAP_SHARED | if former.is_null() { 0 } else { libc::MAP_FIXED };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    match unsafe { libc::mmap(former.cast(), size, protection, flags, file.as_raw_fd(), 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        mapped => {
            PAGE.store(mapped.cast(), SeqCst);
            Ok(mapped.cast())
        }
    }
}

fn install() {
    unsafe {
        let mut former: Box<[sigaction; SIGNALS.len()]> = Box::new(zeroed());
        for (signal, former) in SIGNALS.into_iter().zip(former.iter_mut()) {
            libc::sigaction(signal, ptr::null(), former);
        }
        let former = Box::into_raw(former);
        FORMER.store(former, SeqCst);
        libc::atexit(on_exit);
        for (signal, former) in SIGNALS.into_iter().zip((*former).iter()) {
            if former.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut own = *former;
            own.sa_sigaction = on_signal as *const () as usize;
            own.sa_flags = former.sa_flags & !libc::SA_RESETHAND | libc::SA_SIGINFO;
            if former.sa_sigaction == libc::SIG_DFL {
                own.sa_flags |= libc::SA_ONSTACK;
            }
            libc::sigaction(signal, &own, ptr::null_mut());
        }
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    unsafe {
        let errno = *libc::__errno_location();
        let frame = ptr::addr_of!(errno) as usize;
        let tid = libc::gettid();
        let context = context.cast::<ucontext_t>();
        let was_handling = HANDLING.load(SeqCst);
        let is_nested = was_handling == tid && is_below(context);
        with_note(|recorder| {
            if is_nested {
                (*recorder.note).last_signal = signal;
            } else {
                let mut fault = Fault { recorder, signal, info, context, tid };
                let top = STACK.0.get().cast::<u8>().add(STACK_SIZE);
                call_on_stack(top as u64, note_fault, ptr::addr_of_mut!(fault).cast());
            }
        });
        if !is_nested {
            HANDLING_FRAME.store(frame, SeqCst);
            HANDLING.store(tid, SeqCst);
        }
        *libc::__errno_location() = errno;
        hand_on(signal, info, context);
        if !is_nested && HANDLING.load(SeqCst) == tid {
            HANDLING.store(0, SeqCst);
            if is_installed(signal) {
                with_note(|recorder| (*recorder.note).signal = 0); // the program has dealt with it
            }
        }
    }
}

/// A program that ends by itself has dealt with its faults, unless the handler of one ends it.
extern "C" fn on_exit() {
    let here = 0_u8;
    unsafe {
        if HANDLING.load(SeqCst) == libc::gettid() && is_below_handler(ptr::addr_of!(here) as usize) {
            return;
        }
        with_note(|recorder| (*recorder.note).signal = (*recorder.note).signal.min(0));
    }
}

/// Whether the code that was interrupted has been called by the handler in hand, as `abort` may have been.
unsafe fn is_below(context: *const ucontext_t) -> bool {
    let (_, general) = registers(context);
    is_below_handler(general[STACK_POINTER] as usize)
}

fn is_below_handler(addr: usize) -> bool {
    let distance = HANDLING_FRAME.load(SeqCst).checked_sub(addr);
    distance.is_some_and(|distance| distance < HANDLER_STACK)
}

unsafe fn is_installed(signal: c_int) -> bool {
    let mut now: sigaction = zeroed();
    libc::sigaction(signal, ptr::null(), &mut now) == 0 && now.sa_sigaction == on_signal as *const () as usize
}

/// Calls `action` with the recorder, in the process that it belongs to, unless another thread has it; with every signal blocked, since
/// their handlers would find the signal stack unused.
unsafe fn with_note(action: impl FnOnce(&mut Recorder)) {
    let (all, mut former) = (!0_u64, 0_u64);
    let size = size_of::<u64>();
    libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &all, &mut former, size);
    if let Some(recorder) = RECORDER.swap(ptr::null_mut(), SeqCst).as_mut() {
        if (*recorder.note).pid == libc::getpid() as u32 {
            action(recorder);
        }
        RECORDER.store(recorder, SeqCst);
    }
    libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &former, ptr::null_mut::<u64>(), size);
}

struct Fault<'a> {
    recorder: &'a mut Recorder,
    signal: c_int,
    info: *const siginfo_t,
    context: *const ucontext_t,
    tid: pid_t,
}

/// Writes the note; the frames last, as far as they can be told.
extern "C" fn note_fault(fault: *mut c_void) {
    unsafe {
        let Fault { recorder, signal, info, context, tid } = &mut *fault.cast::<Fault>();
        let note = &mut *recorder.note;
        let (at, general) = registers(*context);
        note.tid = *tid as u32;
        note.code = (**info).si_code;
        note.fault_addr = (**info).si_addr() as u64;
        note.stack_pointer = general[STACK_POINTER];
        note.thread = thread_name();
        note.frames[0] = Frame { addr: at, function: 0 };
        note.frame_count = 1;
        fence(SeqCst);
        note.last_signal = *signal;
        note.signal = *signal;
        let mut registers = Registers { at, general };
        let mut count = 0;
        if recorder.walker.function(at).is_none() {
            if let Some(caller) = caller_of_nothing(&general) {
                (registers, count) = (caller, 1);
            }
        }
        recorder.walker.unwind(&mut registers, |at, returns| {
            note.frames[count] = Frame { addr: at - u64::from(returns), function: 0 };
            count += 1;
            count < MAX_FRAMES
        });
        note.frame_count = count as u32;
        for frame in &mut note.frames[..count] {
            frame.function = recorder.walker.function(frame.addr).map_or(0, |function| function.start);
        }
    }
}

/// Notes a panic of this thread, which may end the program.
pub fn note_panic(calls: &[u64], site: u32) {
    const PANIC: i32 = -1;
    unsafe {
        with_note(|recorder| {
            let note = &mut *recorder.note;
            note.signal = 0;
            fence(SeqCst);
            (note.tid, note.code, note.fault_addr, note.stack_pointer) = (libc::gettid() as u32, site as i32, 0, 0);
            note.thread = thread_name();
            for (frame, &addr) in note.frames.iter_mut().zip(calls) {
                let function = recorder.walker.function(addr).map_or(0, |function| function.start);
                *frame = Frame { addr, function };
            }
            note.frame_count = calls.len().min(MAX_FRAMES) as u32;
            fence(SeqCst);
            (note.last_signal, note.signal) = (PANIC, PANIC);
        });
    }
}

/// The instruction that called what is no code, and the registers there.
fn caller_of_nothing(general: &General) -> Option<Registers> {
    let mut general = *general;
    if !HAS_LINK_REGISTER {
        let mut word = [0; 8];
        if OwnMemory.read(general[STACK_POINTER], &mut word) < word.len() {
            return None;
        }
        general[RETURN_ADDRESS] = u64::from_ne_bytes(word);
        general[STACK_POINTER] += 8;
    }
    Some(Registers { at: code_address(general[RETURN_ADDRESS]).checked_sub(1)?, general })
}

/// Has happen what would have happened without the client.
unsafe fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut ucontext_t) {
    let Some(place) = SIGNALS.iter().position(|&other| other == signal) else { return };
    let former = &(*FORMER.load(SeqCst))[place];
    if former.sa_sigaction == libc::SIG_DFL {
        libc::sigaction(signal, former, ptr::null_mut());
        // A fault occurs again when the handler returns; what somebody sent is sent again.
        if (*info).si_code <= 0 {
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), signal, info);
        }
        return;
    }
    if former.sa_flags & libc::SA_RESETHAND != 0 {
        let default: sigaction = zeroed();
        libc::sigaction(signal, &default, ptr::null_mut());
    }
    if former.sa_flags & libc::SA_SIGINFO != 0 {
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut ucontext_t) = transmute(former.sa_sigaction);
        handler(signal, info, context);
    } else {
        let handler: extern "C" fn(c_int) = transmute(former.sa_sigaction);
        handler(signal);
    }
}

/// The memory of this process, for threads that do not have the client's descriptors.
struct OwnMemory;

impl Source for OwnMemory {
    /// Reads up to the end of a page, since a read that meets unmapped memory may give nothing.
    fn read(&self, addr: u64, into: &mut [u8]) -> usize {
        let len = into.len().min(4096 - (addr % 4096) as usize);
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: len };
        let remote = libc::iovec { iov_base: addr as *mut c_void, iov_len: len };
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        usize::try_from(read).unwrap_or(0)
    }
}
