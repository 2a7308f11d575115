//! Runs inside a program and applies the patches that a hotpatchd daemon sends; `docs/wire.md` says how they talk.
//!
//! It starts by itself when it is preloaded or linked in, in one background thread, and keeps out of the program's way:
//! it never prints, the thread takes no signals and has a table of file descriptors of its own, and without a daemon it
//! waits. What a program can notice: one more thread; 128 MiB of reserved address space; 4 KiB of each thread's stack for thread-locals; while a patch is applied,
//! all threads stand still for a moment, and system calls that are not restarted after a signal (`poll`, `nanosleep`) end early
//! with `EINTR`, as they may at any time.

mod announce;
mod arch;
mod check;
mod engine;
mod host;
mod locals;
mod memory;
mod park;
mod session;
mod unwind;
mod wire;

use crate::engine::Engine;
use crate::host::{random_hex, Host, Module};
use crate::locals::Reserve;
use crate::session::End;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;
use std::{env, fs, io, mem, ptr, thread};

const THREAD_NAME: &str = "hotpatchd";
const STACK_SIZE: usize = 256 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[used]
#[link_section = ".init_array"]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        start();
    }
    at_load
};

/// Starts the client where the environment asks for it; once, however often it is called.
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let _ = catch_unwind(|| state_directory().map(launch));
    });
}

/// The daemon's state directory, where this program is a candidate.
fn state_directory() -> Option<PathBuf> {
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return None;
    }
    let state = env::var_os("HOTPATCHD_STATE").filter(|state| !state.is_empty())?;
    match env::var_os("HOTPATCHD_HOST") {
        Some(host) if !is_running(&host) => None,
        _ => Some(state.into()),
    }
}

/// Whether this process runs the file at `host`, by whatever name.
fn is_running(host: &OsStr) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    identity(Path::new(host)).is_some_and(|host| identity(Path::new("/proc/self/exe")) == Some(host))
}

/// Reserves the region while the addresses around the program are still free, and starts the thread.
fn launch(state: PathBuf) -> Option<()> {
    let module = Module::of_executable()?;
    let region_addr = memory::reserve(&module.extent)?;
    let instance = random_hex::<16>().ok()?;
    announce::announce_slots(region_addr, &state, &instance);
    let locals_offset = locals::own_offset();
    let client = move || {
        let reserve = Reserve::find(locals_offset);
        let _ = catch_unwind(AssertUnwindSafe(|| attend(module, instance, region_addr, reserve, &state)));
    };
    with_signals_blocked(|| thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK_SIZE).spawn(client).ok())?;
    Some(())
}

/// A new thread inherits the mask of blocked signals.
fn with_signals_blocked<T>(action: impl FnOnce() -> T) -> T {
    unsafe {
        let (mut all, mut former) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut former);
        let result = action();
        libc::pthread_sigmask(libc::SIG_SETMASK, &former, ptr::null_mut());
        result
    }
}

/// The life of the client's thread.
fn attend(
    module: Module,
    instance: String,
    region_addr: u64,
    reserve: Option<Reserve>,
    state: &Path,
) -> io::Result<()> {
    silence_panics();
    separate_descriptors()?;
    let mut engine = Engine::new(Host::read(module)?, instance, region_addr, reserve)?;
    let mut pause = FIRST_PAUSE;
    loop {
        match catch_unwind(AssertUnwindSafe(|| session::run(&mut engine, state))) {
            Ok(End::Rejected) => return Ok(()),
            Ok(End::Lost) => pause = FIRST_PAUSE,
            Ok(End::Unopened) | Err(_) => {}
        }
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// A panic of the client is its own affair; those of the program are reported as before.
fn silence_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some(THREAD_NAME) {
            report(panic);
        }
    }));
}

/// Gives this thread a table of file descriptors of its own, which begins with nothing but `/dev/null` as 0, 1 and 2.
///
/// A program that closes all descriptors, or counts on their numbers, does not meet the client's; a process that it forks
/// does not inherit them; and the client keeps nothing open that the program closes.
fn separate_descriptors() -> io::Result<()> {
    if unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } != 0 {
        // A kernel before 5.9.
        if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for entry in fs::read_dir("/proc/thread-self/fd")?.collect::<Vec<_>>() {
            if let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                unsafe { libc::close(descriptor) };
            }
        }
    }
    for _ in 0..=2 {
        unsafe { libc::open(b"/dev/null\0".as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    }
    Ok(())
}
