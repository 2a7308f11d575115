//! Notes panics of the first thread: one that nothing catches ends the program, and leaves an exit status as its only trace.
//!
//! Rust's panics leave by the system's unwinder. Its entry point is found by name, so the client's takes its place.
//! Source: Itanium C++ ABI, "Exception Handling", 1.3; std's `panic_unwind/src/gcc.rs`.

use crate::crash::{note_panic, MAX_FRAMES};
use libc::{c_int, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What Rust's exceptions begin with, in either order: std has changed it.
const RUST: [u64; 2] = [u64::from_be_bytes(*b"MOZ\0RUST"), u64::from_le_bytes(*b"MOZ\0RUST")];
const END_OF_STACK: c_int = 5;
const GO_ON: c_int = 0;

extern "C" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, is_interrupted: *mut c_int) -> usize;
}

/// Addresses inside the calls that led here, innermost first.
struct Calls {
    addrs: [u64; MAX_FRAMES],
    count: usize,
}

extern "C" fn visit(context: *mut c_void, calls: *mut c_void) -> c_int {
    let calls = unsafe { &mut *calls.cast::<Calls>() };
    if calls.count == MAX_FRAMES {
        return END_OF_STACK;
    }
    let mut is_interrupted = 0;
    let at = unsafe { _Unwind_GetIPInfo(context, &mut is_interrupted) } as u64;
    calls.addrs[calls.count] = at.saturating_sub(u64::from(is_interrupted == 0));
    calls.count += 1;
    GO_ON
}

/// Takes the place of the unwinder's function for the whole program.
///
/// # Safety
/// As for the unwinder's function.
#[no_mangle]
pub unsafe extern "C-unwind" fn _Unwind_RaiseException(exception: *mut u64) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        real = libc::dlsym(libc::RTLD_NEXT, b"_Unwind_RaiseException\0".as_ptr().cast());
        REAL.store(real, Ordering::Relaxed);
    }
    if RUST.contains(&*exception) && libc::gettid() == libc::getpid() {
        let mut calls = Calls { addrs: [0; MAX_FRAMES], count: 0 };
        _Unwind_Backtrace(visit, ptr::addr_of_mut!(calls).cast());
        note_panic(calls.addrs[..calls.count].get(1..).unwrap_or_default()); // the first is this call
    }
    match transmute::<*mut c_void, Option<unsafe extern "C-unwind" fn(*mut u64) -> c_int>>(real) {
        Some(real) => real(exception),
        None => END_OF_STACK,
    }
}
