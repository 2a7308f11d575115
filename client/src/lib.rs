//! Runs inside a program and applies the patches that a hotpatchd daemon sends; `docs/wire.md` says how they talk.
//!
//! On Linux it starts by itself when it is preloaded or linked in; elsewhere the program calls [`start`]. It lives in one
//! background thread and keeps out of the program's way: it never prints, and without a daemon it waits. What a program on
//! Linux can notice: one more thread, which takes no signals and has a table of file descriptors of its own; 128 MiB of
//! reserved address space (on aarch64 less); 4 KiB of each thread's stack for thread-locals; from the first patch on, handlers of the
//! signals of faults, which call those that were there before, and panics that take some microseconds longer; while a patch is applied,
//! all threads stand still for a moment, and system calls that are not restarted after a signal (`poll`, `nanosleep`) end early
//! with `EINTR`, as they may at any time.

#[cfg(target_os = "linux")]
mod announce;
#[cfg(target_os = "linux")]
mod arch;
#[cfg(target_os = "linux")]
mod check;
#[cfg(target_os = "linux")]
mod crash;
mod daemon;
#[cfg(unix)]
mod dl;
mod download;
mod dylib;
#[cfg(target_os = "linux")]
mod engine;
#[cfg(target_os = "linux")]
mod frames;
mod hex;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod host;
#[cfg(target_os = "linux")]
mod hosts;
#[cfg(any(target_os = "linux", windows))]
mod island;
mod jump;
#[cfg(any(target_os = "linux", windows))]
mod kind;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod library_file;
#[cfg(target_os = "linux")]
mod locals;
#[cfg(target_os = "linux")]
mod memory;
#[cfg_attr(target_os = "android", path = "os/android.rs")]
#[cfg_attr(target_os = "linux", path = "os/linux.rs")]
#[cfg_attr(target_vendor = "apple", path = "os/apple.rs")]
#[cfg_attr(windows, path = "os/windows.rs")]
mod os;
#[cfg(target_os = "linux")]
mod panic_counts;
#[cfg(target_os = "linux")]
mod panics;
#[cfg(target_os = "linux")]
mod park;
mod patcher;
#[cfg(target_os = "linux")]
mod proof;
mod session;
#[cfg(target_os = "linux")]
mod site;
#[cfg(target_os = "linux")]
mod unwind;
mod wire;

pub use crate::jump::call;

use crate::daemon::Daemon;
use crate::os::Prepared;
use crate::session::End;
use std::panic::{self, catch_unwind, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;
use std::{io, thread};

const THREAD_NAME: &str = "hotpatchd";
const STACK_SIZE: usize = 256 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Nothing tells of a library that is loaded, or unloaded. Looking takes some microseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[cfg(target_os = "linux")]
#[used]
#[link_section = ".init_array"]
#[cfg_attr(feature = "linked", export_name = "hotpatch_client_at_load")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        // Calls look at the table of the client that is linked into the program, and the program starts that one.
        if !kind::Kind::is_calls_asked() {
            start();
        }
    }
    at_load
};

/// Starts the client where the environment asks for it; once, however often it is called.
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let _ = catch_unwind(|| {
            let daemon = Daemon::find()?;
            if os::claim_process() {
                launch(daemon);
            }
            Some(())
        });
    });
}

/// Prepares what has to be done before the program goes on, and starts the thread.
fn launch(daemon: Daemon) -> Option<()> {
    let prepared = Prepared::new(&daemon)?;
    silence_panics();
    os::spawn(move || {
        let _ = catch_unwind(AssertUnwindSafe(|| attend(prepared, &daemon)));
    })
}

/// The life of the client's thread.
fn attend(prepared: Prepared, daemon: &Daemon) -> io::Result<()> {
    let mut patcher = prepared.into_patcher()?;
    let mut pause = FIRST_PAUSE;
    loop {
        let end = catch_unwind(AssertUnwindSafe(|| match daemon.address() {
            None => End::Unopened,
            Some(address) if !patcher.turn_to(address.library.as_ref()) => End::Absent,
            Some(address) => session::run(&mut *patcher, &address),
        }));
        match end {
            Ok(End::Rejected) if patcher.is_lasting() => return Ok(()),
            Ok(End::Rejected) => patcher.turn_away(),
            Ok(End::Absent) => pause = LOOK_AGAIN,
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
