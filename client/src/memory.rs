//! The region that patches live in, and writing to the program's code.

use crate::arch::{DETOUR_LEN, REACH};
use libc::{c_int, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub const REGION_SIZE: u64 = 128 << 20;
pub const SLOT_SIZE: u64 = 64 << 10;

const ALIGN: u64 = 2 << 20;
const STEP: usize = 16 << 20;

/// Reserves address space from which 32-bit displacements reach every byte of `executable`, and gives its start.
///
/// First just below the executable, where the heap that grows above it is not in the way. An executable at a fixed low
/// address has no room below it; then as far above as displacements reach, which leaves the heap the space between.
pub fn reserve(executable: &Range<u64>) -> Option<u64> {
    let lowest = executable.end.saturating_sub(REACH).max(ALIGN).next_multiple_of(ALIGN);
    let below = executable.start.saturating_sub(REGION_SIZE) / ALIGN * ALIGN;
    let highest = (executable.start + REACH - REGION_SIZE) / ALIGN * ALIGN - ALIGN;
    let above = executable.end.next_multiple_of(ALIGN);
    let candidates = (lowest..=below).rev().step_by(STEP).chain((above..=highest).rev().step_by(STEP));
    candidates.into_iter().find(|&start| reserve_at(start))
}

fn reserve_at(start: u64) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let size = REGION_SIZE as usize;
    let got = unsafe { libc::mmap(start as *mut c_void, size, libc::PROT_NONE, flags, -1, 0) };
    if got != libc::MAP_FAILED && got as u64 != start {
        // A kernel before 4.17 takes the address as a hint.
        unsafe { libc::munmap(got, size) };
    }
    got as u64 == start
}

/// Makes pages of the region usable with `protection`; `range` is page-aligned.
pub fn protect(range: &Range<u64>, protection: c_int) -> io::Result<()> {
    let size = (range.end - range.start) as usize;
    match unsafe { libc::mprotect(range.start as *mut c_void, size, protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives pages of the region back: reserved again, content gone. `range` is page-aligned.
pub fn discard(range: &Range<u64>) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let size = (range.end - range.start) as usize;
    unsafe { libc::mmap(range.start as *mut c_void, size, libc::PROT_NONE, flags, -1, 0) };
}

pub fn page_size() -> u64 {
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// `range` grown to whole pages.
pub fn pages(range: &Range<u64>) -> Range<u64> {
    let page = page_size();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// The process's own memory as a file: reads stop at what is not mapped, and writes go through to read-only code.
pub struct Memory(File);

impl Memory {
    pub fn open() -> io::Result<Memory> {
        OpenOptions::new().read(true).write(true).open("/proc/self/mem").map(Memory)
    }

    /// Fills `into` from `addr` on, as far as memory is mapped; returns the bytes read. Takes no lock, allocates nothing.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> usize {
        self.0.read_at(into, addr).unwrap_or(0)
    }

    /// Overwrites code with all other threads parked. Takes no lock, allocates nothing.
    ///
    /// Hardened kernels refuse to write through protections; there the pages become writable, not executable, for the
    /// moment: nothing runs in them, since the client's own code is in pages of its own library.
    pub fn write_code(&self, addr: u64, code: &[u8; DETOUR_LEN]) -> io::Result<()> {
        if matches!(self.0.write_at(code, addr), Ok(DETOUR_LEN)) {
            return Ok(());
        }
        let pages = pages(&(addr..addr + DETOUR_LEN as u64));
        protect(&pages, libc::PROT_READ | libc::PROT_WRITE)?;
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), addr as *mut u8, DETOUR_LEN) };
        protect(&pages, libc::PROT_READ | libc::PROT_EXEC)
    }
}
