//! Libraries that come over the wire, before the loader sees them.

use libc::{Elf64_Phdr, PT_LOAD};
use std::ffi::CString;
use std::fs::File;
use std::mem::size_of;
use std::os::fd::FromRawFd;
use std::{io, ptr};

/// A file without a place on disk.
pub fn in_memory(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    match unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC) } {
        descriptor @ 0.. => Ok(unsafe { File::from_raw_fd(descriptor as i32) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the file has all the bytes that its program headers speak of. The loader maps them without a look at the
/// file's size, and a touch of what is missing ends the process.
pub fn is_whole(file: &[u8]) -> bool {
    // Source: elf(5), `Elf64_Ehdr`: `e_phoff` and `e_phnum`.
    let (Some(start), Some(count)) = (read::<u64>(file, 32), read::<u16>(file, 56)) else { return false };
    let mut headers = (0..u64::from(count)).map(|number| {
        let at = start.checked_add(number * size_of::<Elf64_Phdr>() as u64)?;
        read::<Elf64_Phdr>(file, at)
    });
    file.starts_with(b"\x7fELF")
        && headers.all(|header| {
            header.is_some_and(|segment| {
                let end = segment.p_offset.checked_add(segment.p_filesz);
                segment.p_type != PT_LOAD || end.is_some_and(|end| end <= file.len() as u64)
            })
        })
}

fn read<T: Copy>(file: &[u8], at: u64) -> Option<T> {
    let at = usize::try_from(at).ok()?;
    let bytes = file.get(at..at.checked_add(size_of::<T>())?)?;
    // All types that are read here are plain integers.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}
