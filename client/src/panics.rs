//! Counts the panics that go through patched code, and notes those of the first thread: one that nothing catches ends the program, and
//! leaves an exit status as its only trace.
//!
//! Rust's panics leave by the unwinder of the system. Its entry point is found by name, so the client's takes its place: it
//! walks the calls that the panic is about to leave, up to the one that catches it, and hands on. It takes no lock and no memory.
//! Source: Itanium C++ ABI, "Exception Handling", 1.3; std's `panic_unwind/src/gcc.rs`.
#![cfg_attr(any(target_feature = "crt-static", feature = "linked"), allow(dead_code))] // in whose place nothing can be put

use crate::crash::{self, MAX_FRAMES};
use crate::panic_counts::{Panics, SITE_FRAMES};
use libc::{c_int, c_void};
use std::ops::Range;
use std::ptr;

/// What Rust's exceptions begin with, in either order: std has changed it.
const RUST: [u64; 2] = [u64::from_be_bytes(*b"MOZ\0RUST"), u64::from_le_bytes(*b"MOZ\0RUST")];
const END_OF_STACK: c_int = 5;
const GO_ON: c_int = 0;

extern "C" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, is_interrupted: *mut c_int) -> usize;
    fn _Unwind_GetLanguageSpecificData(context: *mut c_void) -> *const u8;
    fn _Unwind_GetRegionStart(context: *mut c_void) -> usize;
}

/// The calls that a panic leaves, innermost first.
struct Calls {
    patches: Range<u64>,
    /// Whether the walk goes on beyond the call that catches the panic, for `all`.
    goes_on: bool,
    all: [u64; MAX_FRAMES],
    count: usize,
    /// Those in patched code, each once.
    patched: [u64; SITE_FRAMES],
    patched_count: usize,
    is_caught: bool,
}

extern "C" fn visit(context: *mut c_void, calls: *mut c_void) -> c_int {
    let calls = unsafe { &mut *calls.cast::<Calls>() };
    if calls.goes_on && calls.count == MAX_FRAMES {
        return END_OF_STACK;
    }
    let mut is_interrupted = 0;
    let next = unsafe { _Unwind_GetIPInfo(context, &mut is_interrupted) } as u64;
    let at = next.saturating_sub(u64::from(is_interrupted == 0));
    if calls.goes_on {
        calls.all[calls.count] = at;
        calls.count += 1;
    }
    if calls.is_caught {
        return GO_ON;
    }
    let kept = &calls.patched[..calls.patched_count];
    if calls.patches.contains(&at) && kept.len() < SITE_FRAMES && !kept.contains(&at) {
        calls.patched[calls.patched_count] = at;
        calls.patched_count += 1;
    }
    calls.is_caught = unsafe { catches(context, at) };
    if calls.is_caught && !calls.goes_on {
        return END_OF_STACK;
    }
    GO_ON
}

/// Whether the function of a call catches what comes out of it, as std's own look at the table finds; tables in other encodings
/// than LLVM and GCC use catch nothing.
///
/// Source: std's `sys/personality/dwarf/eh.rs`; Itanium C++ ABI, "Exception Handling Tables", 7.
unsafe fn catches(context: *mut c_void, at: u64) -> bool {
    const OMITTED: u8 = 0xff;
    const ULEB128: u8 = 1;
    const UDATA4: u8 = 3;
    let table = _Unwind_GetLanguageSpecificData(context);
    if table.is_null() {
        return false;
    }
    let mut reader = Reader(table);
    if reader.byte() != OMITTED {
        return false; // landing pads of another function
    }
    if reader.byte() != OMITTED {
        reader.uleb128(); // where the types are
    }
    let encoding = reader.byte();
    let size = reader.uleb128();
    let actions = reader.0.add(size as usize);
    let number = |reader: &mut Reader| match encoding {
        ULEB128 => Some(reader.uleb128()),
        UDATA4 => Some(u64::from(reader.word())),
        _ => None,
    };
    let offset = at - _Unwind_GetRegionStart(context) as u64;
    while reader.0 < actions {
        let (Some(start), Some(size), Some(pad)) = (number(&mut reader), number(&mut reader), number(&mut reader))
        else {
            return false;
        };
        let action = reader.uleb128();
        if (start..start + size).contains(&offset) {
            return pad != 0 && action != 0 && Reader(actions.add(action as usize - 1)).sleb128_is_positive();
        }
    }
    false
}

/// Reads a table of whose end nobody tells.
struct Reader(*const u8);

impl Reader {
    unsafe fn byte(&mut self) -> u8 {
        let byte = *self.0;
        self.0 = self.0.add(1);
        byte
    }

    unsafe fn word(&mut self) -> u32 {
        let word = ptr::read_unaligned(self.0.cast());
        self.0 = self.0.add(4);
        word
    }

    unsafe fn uleb128(&mut self) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return value;
            }
            shift += 7;
        }
    }

    unsafe fn sleb128_is_positive(&mut self) -> bool {
        let mut is_zero = true;
        loop {
            let byte = self.byte();
            is_zero &= byte & 0x7f == 0;
            if byte & 0x80 == 0 {
                return !is_zero && byte & 0x40 == 0;
            }
        }
    }
}

/// Takes the place of the unwinder's function for the whole program.
///
/// # Safety
/// As for the unwinder's function.
#[cfg(not(any(target_feature = "crt-static", feature = "linked")))]
#[no_mangle]
pub unsafe extern "C-unwind" fn _Unwind_RaiseException(exception: *mut u64) -> c_int {
    use std::mem::transmute;
    use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let mut real = REAL.load(Relaxed);
    if real.is_null() {
        real = libc::dlsym(libc::RTLD_NEXT, b"_Unwind_RaiseException\0".as_ptr().cast());
        REAL.store(real, Relaxed);
    }
    if RUST.contains(&*exception) {
        if let Some((panics, patches)) = crash::panics() {
            note(panics, patches);
        }
    }
    match transmute::<*mut c_void, Option<unsafe extern "C-unwind" fn(*mut u64) -> c_int>>(real) {
        Some(real) => real(exception),
        None => END_OF_STACK,
    }
}

#[inline(never)]
unsafe fn note(panics: &Panics, patches: Range<u64>) {
    let is_first = libc::gettid() == libc::getpid();
    let mut calls = Calls {
        patches,
        goes_on: is_first,
        all: [0; MAX_FRAMES],
        count: 0,
        patched: [0; SITE_FRAMES],
        patched_count: 0,
        is_caught: false,
    };
    _Unwind_Backtrace(visit, ptr::addr_of_mut!(calls).cast());
    let site = match &calls.patched[..calls.patched_count] {
        [] => 0,
        patched => panics.count(patched),
    };
    if is_first {
        let own = 2; // this function, and the one that the panic called
        crash::note_panic(calls.all[..calls.count].get(own..).unwrap_or_default(), site);
    }
}
