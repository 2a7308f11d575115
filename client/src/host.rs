//! What the client must know of the program that it runs in.

use crate::announce::real_dl_iterate_phdr;
use crate::memory::page_size;
use libc::{c_int, c_void, dl_phdr_info, size_t, PF_X, PT_LOAD, PT_NOTE};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::PathBuf;
use std::{fs, io, slice};

const NT_GNU_BUILD_ID: u32 = 3;

/// The main executable as the dynamic loader sees it; all addresses are run-time addresses.
#[derive(Clone)]
pub struct Module {
    pub slide: u64,
    /// From the first to the last mapped byte.
    pub extent: Range<u64>,
    pub code: Vec<Range<u64>>,
    notes: Vec<Range<u64>>,
}

impl Module {
    /// The loader reports the executable first.
    pub fn of_executable() -> Option<Module> {
        unsafe extern "C" fn first(info: *mut dl_phdr_info, _size: size_t, found: *mut c_void) -> c_int {
            *found.cast::<Option<Module>>() = Module::parse(&*info);
            1
        }
        let mut found: Option<Module> = None;
        unsafe { real_dl_iterate_phdr(Some(first), std::ptr::addr_of_mut!(found).cast()) };
        found
    }

    unsafe fn parse(info: &dl_phdr_info) -> Option<Module> {
        let range_of = |header: &libc::Elf64_Phdr| {
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            start..start.wrapping_add(header.p_memsz)
        };
        let headers = slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let of_type = |kind| headers.iter().filter(move |header| header.p_type == kind);
        Some(Module {
            slide: info.dlpi_addr,
            extent: of_type(PT_LOAD).map(|h| range_of(h).start).min()?
                ..of_type(PT_LOAD).map(|h| range_of(h).end).max()?,
            code: of_type(PT_LOAD).filter(|h| h.p_flags & PF_X != 0).map(range_of).collect(),
            notes: of_type(PT_NOTE).map(range_of).collect(),
        })
    }

    /// The content of the GNU build-id note in hex, or `sha256-` and the hash of the program's file.
    pub fn build_id(&self) -> io::Result<String> {
        let note = self.notes.iter().find_map(|range| {
            let bytes = unsafe { slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize) };
            build_id_note(bytes)
        });
        Ok(match note {
            Some(id) => hex(id),
            None => format!("sha256-{}", hex(&Sha256::digest(fs::read("/proc/self/exe")?))),
        })
    }
}

/// Finds the build id among ELF notes. Source: elf(5), "Notes".
fn build_id_note(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let word = |at: usize| Some(u32::from_ne_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name_size, size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let content_at = 12 + name_size.next_multiple_of(4);
        let content = notes.get(content_at..content_at + size)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return Some(content);
        }
        notes = notes.get(content_at + size.next_multiple_of(4)..)?;
    }
}

/// What `hello` says of the program.
pub struct Host {
    pub module: Module,
    pub build_id: String,
    pub exe: PathBuf,
    pub page_size: u64,
}

impl Host {
    pub fn read(module: Module) -> io::Result<Host> {
        Ok(Host { build_id: module.build_id()?, exe: fs::read_link("/proc/self/exe")?, page_size: page_size(), module })
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `text` gives in hex.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
    digits
        .filter(|digits| digits.len() % 2 == 0)
        .map(|digits| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// `N` random bytes in hex.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) } {
        read if read == N as isize => Ok(hex(&bytes)),
        _ => Err(io::Error::last_os_error()),
    }
}
