//! Puts an image in its place when the shared library that carries it is loaded.
//!
//! A shared library is loaded wherever there is room, which is out of reach of the program's code and statics. An image
//! is linked for one address within that reach. So the library holds the image as data, and this code maps it where it
//! belongs before `dlopen` returns. Outside callers reach the image through the library's thunks. These lead to the
//! functions as they were before, until the image is complete: where it cannot be put in place, nothing changes.
//!
//! Compiled once to a relocatable object; hotpatchd writes the object with the image and the tables (`CARRIED`).

#![no_std]

use core::ptr;

#[repr(C)]
struct Carried {
    /// The range of addresses that the image takes, whole pages.
    addr: usize,
    size: usize,
    image: *const u8,
    segments: *const Segment,
    segment_count: usize,
    imports: *const Import,
    import_count: usize,
    /// Where the image has its zero-terminated `.eh_frame`, or 0.
    eh_frame: usize,
    register_frame: Option<unsafe extern "C" fn(usize)>,
    /// What each thunk jumps to, and what it is to jump to once the image is there.
    slots: *mut usize,
    targets: *const usize,
    thunk_count: usize,
}

#[repr(C)]
struct Segment {
    addr: usize,
    mem_size: usize,
    offset: usize,
    file_size: usize,
    prot: usize,
}

#[repr(C)]
struct Import {
    slot: usize,
    addr: usize,
    /// Whether it may be missing: then `addr` is 0.
    weak: usize,
}

extern "C" {
    #[link_name = "hotpatch_carried"]
    static CARRIED: Carried;
    fn mmap(addr: usize, size: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> usize;
    fn munmap(addr: usize, size: usize) -> i32;
    fn mprotect(addr: usize, size: usize, prot: i32) -> i32;
}

const PROT_NONE: i32 = 0;
const PROT_READ_WRITE: i32 = 3;
const MAP_PRIVATE: i32 = 0x02;
const MAP_ANONYMOUS: i32 = 0x20;
const MAP_FIXED_NOREPLACE: i32 = 0x10_0000;

#[used]
#[link_section = ".init_array"]
static AT_LOAD: unsafe extern "C" fn() = put_in_place;

unsafe extern "C" fn put_in_place() {
    let carried = &*ptr::addr_of!(CARRIED);
    if carried.size != 0 && !is_placed(carried) {
        return;
    }
    if let (Some(register), true) = (carried.register_frame, carried.eh_frame != 0) {
        register(carried.eh_frame);
    }
    for thunk in 0..carried.thunk_count {
        carried.slots.add(thunk).write_volatile(carried.targets.add(thunk).read());
    }
}

unsafe fn is_placed(carried: &Carried) -> bool {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    let got = mmap(carried.addr, carried.size, PROT_NONE, flags, -1, 0);
    if got != carried.addr {
        // A kernel before 4.17 takes the address as a hint.
        if got != usize::MAX {
            munmap(got, carried.size);
        }
        return false;
    }
    let complete = fill(carried);
    if !complete {
        munmap(carried.addr, carried.size);
    }
    complete
}

unsafe fn fill(carried: &Carried) -> bool {
    let segments = || (0..carried.segment_count).map(|index| unsafe { &*carried.segments.add(index) });
    for segment in segments() {
        if mprotect(segment.addr, segment.mem_size, PROT_READ_WRITE) != 0 {
            return false;
        }
        let from = carried.image.add(segment.offset);
        ptr::copy_nonoverlapping(from, segment.addr as *mut u8, segment.file_size);
        synchronise(segment.addr, segment.file_size);
    }
    for index in 0..carried.import_count {
        let import = &*carried.imports.add(index);
        if import.addr == 0 && import.weak == 0 {
            return false;
        }
        (import.slot as *mut usize).write(import.addr);
    }
    segments().all(|segment| mprotect(segment.addr, segment.mem_size, segment.prot as i32) == 0)
}

/// Makes what was written visible to the instruction fetch of every processor.
#[cfg(not(target_arch = "aarch64"))]
fn synchronise(_addr: usize, _size: usize) {}

#[cfg(target_arch = "aarch64")]
unsafe fn synchronise(addr: usize, size: usize) {
    use core::arch::asm;
    // The smallest line that the architecture allows.
    const LINE: usize = 16;
    for line in (addr..addr + size).step_by(LINE) {
        asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags));
    }
    asm!("dsb ish", options(nostack, preserves_flags));
    for line in (addr..addr + size).step_by(LINE) {
        asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags));
    }
    asm!("dsb ish", "isb", options(nostack, preserves_flags));
}
