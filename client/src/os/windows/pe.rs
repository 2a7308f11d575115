//! What has to be known of a PE file. Source: "PE Format", Microsoft.

use crate::hex::hex;
use std::ops::Range;
use std::slice;

const PE32_PLUS: u16 = 0x20b;
const SECTION_LEN: usize = 40;
const SECTION_EXECUTABLE: u32 = 0x2000_0000;
const DEBUG_DIRECTORY: usize = 6;
const DEBUG_ENTRY_LEN: usize = 28;
const CODEVIEW: u32 = 2;
/// Loaded headers take at least one page.
const LOADED_LEN: usize = 4096;

/// The headers of a 64-bit file, as they are on disk or in memory.
pub struct Headers<'a> {
    bytes: &'a [u8],
    optional: usize,
    sections: usize,
    section_count: usize,
}

impl<'a> Headers<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Headers<'a>> {
        let signature = u32_at(bytes, 0x3c)? as usize;
        if bytes.get(..2)? != b"MZ" || bytes.get(signature..signature.checked_add(4)?)? != b"PE\0\0" {
            return None;
        }
        let optional = signature + 24;
        let headers = Headers {
            bytes,
            optional,
            sections: optional + usize::from(u16_at(bytes, signature + 20)?),
            section_count: usize::from(u16_at(bytes, signature + 6)?),
        };
        let end = headers.sections + headers.section_count * SECTION_LEN;
        let is_known =
            u16_at(bytes, optional)? == PE32_PLUS && headers.sections >= optional + 144 && end <= bytes.len();
        is_known.then_some(headers)
    }

    /// # Safety
    /// A module is loaded at `addr`, and stays.
    pub unsafe fn of_module(addr: u64) -> Option<Headers<'static>> {
        Headers::parse(slice::from_raw_parts(addr as *const u8, LOADED_LEN))
    }

    /// The address that the file was linked for; in memory, the one where it is.
    pub fn image_base(&self) -> u64 {
        u64::from(self.u32(self.optional + 24)) | u64::from(self.u32(self.optional + 28)) << 32
    }

    /// Where the file says which debug information belongs to it: GUID and age in hex.
    pub fn debug_id(&self) -> Option<String> {
        let directory = self.optional + 112 + DEBUG_DIRECTORY * 8;
        if self.u32(self.optional + 108) as usize <= DEBUG_DIRECTORY || directory + 8 > self.sections {
            return None;
        }
        let (start, size) = (self.offset_of(self.u32(directory))?, self.u32(directory + 4) as usize);
        let entries = self.bytes.get(start..start.checked_add(size)?)?;
        entries.chunks_exact(DEBUG_ENTRY_LEN).find_map(|entry| {
            let content = self.bytes.get(u32_at(entry, 24)? as usize..)?;
            let is_known = u32_at(entry, 12)? == CODEVIEW && content.starts_with(b"RSDS");
            let (guid, age) = (content.get(4..20)?, u32_at(content, 20)?);
            is_known.then(|| format!("{}{age:x}", hex(guid)))
        })
    }

    /// Where in the file the byte at a relative address is.
    fn offset_of(&self, addr: u32) -> Option<usize> {
        self.sections().find_map(|at| {
            let within = addr.checked_sub(self.u32(at + 12)).filter(|&within| within < self.u32(at + 16))?;
            Some(self.u32(at + 20) as usize + within as usize)
        })
    }

    /// Executable sections of the module at `addr`.
    pub fn code(&self, addr: u64) -> Vec<Range<u64>> {
        let executable = self.sections().filter(|&at| self.u32(at + 36) & SECTION_EXECUTABLE != 0);
        let ranges = executable.map(|at| {
            let start = addr + u64::from(self.u32(at + 12));
            start..start + u64::from(self.u32(at + 8))
        });
        ranges.collect()
    }

    /// Size of the module in memory.
    pub fn image_size(&self) -> u64 {
        u64::from(self.u32(self.optional + 56))
    }

    /// Relative address and size of the table of functions.
    pub fn functions(&self) -> (u32, u32) {
        (self.u32(self.optional + 136), self.u32(self.optional + 140))
    }

    fn sections(&self) -> impl Iterator<Item = usize> {
        (self.sections..).step_by(SECTION_LEN).take(self.section_count)
    }

    /// What lies within the headers, whose end has been checked.
    fn u32(&self, at: usize) -> u32 {
        u32_at(self.bytes, at).unwrap_or_default()
    }
}

/// Whether the file has all the bytes that its section headers speak of.
pub fn is_whole(file: &[u8]) -> bool {
    Headers::parse(file).is_some_and(|headers| {
        headers.sections().all(|at| {
            let end = u64::from(headers.u32(at + 16)) + u64::from(headers.u32(at + 20));
            end <= file.len() as u64
        })
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
