//! Room in every thread for the thread-locals that patches bring.
//!
//! What is loaded when the program starts has its thread-locals at one offset from the thread pointer in all threads,
//! those that run and those to come. New threads get a copy of the initial image, which is part of the loaded file.
//! Source: U. Drepper, "ELF Handling For Thread-Local Storage", section 3.4; glibc, `elf/dl-tls.c`.

use crate::announce::real_dl_iterate_phdr;
use crate::arch::thread_pointer;
use crate::memory::{pages, protect};
use crate::wire::ThreadLocals;
use libc::{c_int, c_void, dl_phdr_info, size_t, PT_GNU_RELRO, PT_TLS};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::{io, iter, ptr, slice};

const SIZE: usize = 4096;

#[repr(C, align(64))]
struct Block {
    room: UnsafeCell<[u8; SIZE]>,
    /// Zeros at the end of the thread-locals are not in the file; this makes the room lie before them.
    _end: u8,
}

thread_local! {
    static BLOCK: Block = const { Block { room: UnsafeCell::new([0; SIZE]), _end: 1 } };
}

/// Where the calling thread has its block, from its thread pointer.
pub fn own_offset() -> i64 {
    own_block().wrapping_sub(thread_pointer()) as i64
}

fn own_block() -> u64 {
    BLOCK.with(|block| block.room.get() as u64)
}

/// What a new thread-local starts with.
pub struct Initial {
    /// From the thread pointer.
    pub offset: i64,
    pub content: Vec<u8>,
}

/// The blocks of all threads.
pub struct Reserve {
    offset: i64,
    /// Where the initial image has the block.
    image_addr: u64,
    /// The whole pages that the loader write-protected once it had relocated them.
    relro: Range<u64>,
    thread_start: u64,
}

impl Reserve {
    /// `None` unless the calling thread has its block at `offset` as well, where another thread has it.
    pub fn find(offset: i64) -> Option<Reserve> {
        unsafe extern "C" fn visit(info: *mut dl_phdr_info, _size: size_t, found: *mut c_void) -> c_int {
            let Some((image_addr, relro)) = image_of(&*info) else { return 0 };
            *found.cast::<Option<(u64, Range<u64>)>>() = Some((image_addr, relro));
            1
        }
        let mut found: Option<(u64, Range<u64>)> = None;
        if own_offset() == offset {
            unsafe { real_dl_iterate_phdr(Some(visit), ptr::addr_of_mut!(found).cast()) };
        }
        let (image_addr, relro) = found?;
        Some(Reserve { offset, image_addr, relro, thread_start: thread_start() })
    }

    pub fn describe(&self) -> ThreadLocals {
        ThreadLocals { offset: self.offset, size: SIZE as u64 }
    }

    pub fn holds(&self, initial: &Initial) -> bool {
        let start = initial.offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        start.is_some_and(|start| start <= SIZE && initial.content.len() <= SIZE - start)
    }

    /// Makes ready to write `initials`, all of which the reserve holds: the image is writable as long as the result lives.
    pub fn unlock<'a>(&'a self, initials: &'a [Initial]) -> io::Result<Unlocked<'a>> {
        protect(&pages(&(self.image_addr..self.image_addr + SIZE as u64)), libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Unlocked { reserve: self, initials })
    }
}

/// libc's function that starts threads.
fn thread_start() -> u64 {
    if cfg!(feature = "linked") {
        libc::pthread_create as *const () as u64
    } else {
        unsafe { libc::dlsym(libc::RTLD_NEXT, b"pthread_create\0".as_ptr().cast()) as u64 }
    }
}

/// The address of the block in the initial image of a module that has it, and the module's protected pages.
unsafe fn image_of(info: &dl_phdr_info) -> Option<(u64, Range<u64>)> {
    let headers = slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
    let tls = headers.iter().find(|header| header.p_type == PT_TLS)?;
    // The loader tells where this thread has its copy of the module's thread-locals.
    let place = own_block().checked_sub(info.dlpi_tls_data as u64)?;
    if place + SIZE as u64 > tls.p_filesz {
        return None;
    }
    let relro = headers.iter().find(|header| header.p_type == PT_GNU_RELRO).map_or(0..0, |relro| {
        let start = info.dlpi_addr + relro.p_vaddr;
        // A page of which only a part is meant stays writable.
        let end = start + relro.p_memsz;
        pages(&(start..start)).start..pages(&(end..end)).start
    });
    Some((info.dlpi_addr + tls.p_vaddr + place, relro))
}

/// Contents about to be written.
pub struct Unlocked<'a> {
    reserve: &'a Reserve,
    initials: &'a [Initial],
}

impl Unlocked<'_> {
    /// The function that starts threads: in it, a thread may have copied the image for one that does not exist yet.
    pub fn thread_start(&self) -> u64 {
        self.reserve.thread_start
    }

    /// Writes to the blocks of this thread and of those with the given thread pointers, and to the image for new threads.
    /// Cannot fail, takes no lock, allocates nothing.
    ///
    /// # Safety
    /// The threads are parked.
    pub unsafe fn write(&self, thread_pointers: impl Iterator<Item = u64>) {
        let of_image = self.reserve.image_addr.wrapping_add_signed(-self.reserve.offset);
        for thread_pointer in thread_pointers.chain(iter::once(thread_pointer())).chain(iter::once(of_image)) {
            for initial in self.initials {
                let at = thread_pointer.wrapping_add_signed(initial.offset) as *mut u8;
                ptr::copy_nonoverlapping(initial.content.as_ptr(), at, initial.content.len());
            }
        }
    }
}

impl Drop for Unlocked<'_> {
    fn drop(&mut self) {
        // If it fails, the image merely stays writable.
        let _ = protect(&self.reserve.relro, libc::PROT_READ);
    }
}
