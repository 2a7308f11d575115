//! The region that patches live in, and writing to the program's code.

use crate::arch::{returning, synchronize_code, REACH, REGION_SIZES};
use libc::{c_int, c_void};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::{io, mem, ptr};

pub const SLOT_SIZE: u64 = 64 << 10;

const ALIGN: u64 = 2 << 20;

/// Reserves address space from which displacements reach every byte of `reached`.
///
/// First just below it, where the heap that grows above a program is not in the way. A program at a fixed low
/// address has no room below it; then as far above as displacements reach, which leaves the heap the space between.
pub fn reserve(reached: &Range<u64>) -> Option<Range<u64>> {
    REGION_SIZES.into_iter().find_map(|size| {
        let lowest = reached.end.saturating_sub(REACH).max(ALIGN).next_multiple_of(ALIGN);
        let below = reached.start.saturating_sub(size) / ALIGN * ALIGN;
        let highest = (reached.start + REACH - size).saturating_sub(ALIGN) / ALIGN * ALIGN;
        let above = reached.end.next_multiple_of(ALIGN);
        let step = ALIGN as usize;
        let candidates = (lowest..=below).rev().step_by(step).chain((above..=highest).rev().step_by(step));
        candidates.map(|start| start..start + size).find(reserve_at)
    })
}

fn reserve_at(range: &Range<u64>) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let size = (range.end - range.start) as usize;
    let got = unsafe { libc::mmap(range.start as *mut c_void, size, libc::PROT_NONE, flags, -1, 0) };
    if got != libc::MAP_FAILED && got as u64 != range.start {
        // A kernel before 4.17 takes the address as a hint.
        unsafe { libc::munmap(got, size) };
    }
    got as u64 == range.start
}

/// Gives a region back to the program.
pub fn release(region: &Range<u64>) {
    unsafe { libc::munmap(region.start as *mut c_void, (region.end - region.start) as usize) };
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
pub struct Memory {
    file: File,
    /// Whether what is written through the file is executed then.
    reaches_code: bool,
}

impl Memory {
    pub fn open() -> io::Result<Memory> {
        let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        let reaches_code = try_code(&file).unwrap_or(false);
        Ok(Memory { file, reaches_code })
    }

    /// Whether the program's code runs in an emulator, which translates it and does not notice what the kernel writes there.
    pub fn is_emulated(&self) -> bool {
        !self.reaches_code
    }

    /// Fills `into` from `addr` on, as far as memory is mapped; returns the bytes read. Takes no lock, allocates nothing.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> usize {
        self.file.read_at(into, addr).unwrap_or(0)
    }

    /// Overwrites code with all other threads parked. Takes no lock, allocates nothing.
    ///
    /// Hardened kernels refuse to write through protections; there, and in emulators, changed copies take the pages' places.
    pub fn write_code(&self, addr: u64, code: &[u8]) -> io::Result<()> {
        let range = addr..addr + code.len() as u64;
        if !(self.reaches_code && self.file.write_at(code, addr).is_ok_and(|written| written == code.len())) {
            replace_pages(&pages(&range), addr, code)?;
        }
        synchronize_code(&range);
        Ok(())
    }
}

/// Changes a function of its own through `file` and finds out whether the change is executed.
fn try_code(file: &File) -> io::Result<bool> {
    let page = new_pages(page_size() as usize)?;
    let range = page as u64..page as u64 + page_size();
    let write_and_call = |value: u8, write: &dyn Fn(&[u8]) -> io::Result<()>| {
        write(&returning(value))?;
        synchronize_code(&range);
        Ok(unsafe { mem::transmute::<*mut u8, extern "C" fn() -> u32>(page)() } == u32::from(value))
    };
    let result = write_and_call(1, &|code| {
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), page, code.len()) };
        protect(&range, libc::PROT_READ | libc::PROT_EXEC)
    })
    .and_then(|_| write_and_call(2, &|code| file.write_all_at(code, page as u64)));
    unsafe { libc::munmap(page.cast(), page_size() as usize) };
    result
}

fn new_pages(size: usize) -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    match unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        pages => Ok(pages.cast()),
    }
}

/// Puts a copy in which `code` is at `addr` in the place of executable pages, in one step: in a program that the client is
/// linked into, they may hold the code that does it.
fn replace_pages(range: &Range<u64>, addr: u64, code: &[u8]) -> io::Result<()> {
    let size = (range.end - range.start) as usize;
    let copy = new_pages(size)?;
    let copy_range = copy as u64..copy as u64 + size as u64;
    unsafe {
        ptr::copy_nonoverlapping(range.start as *const u8, copy, size);
        ptr::copy_nonoverlapping(code.as_ptr(), copy.add((addr - range.start) as usize), code.len());
    }
    let moved = protect(&copy_range, libc::PROT_READ | libc::PROT_EXEC).and_then(|()| {
        synchronize_code(&copy_range);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        match unsafe { libc::mremap(copy.cast(), size, size, flags, range.start as *mut c_void) } {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    });
    if moved.is_err() {
        unsafe { libc::munmap(copy.cast(), size) };
    }
    moved
}
