//! Tells when new code runs for the first time.
//!
//! A detour leads to an entry of its own, in a block of the region, which jumps to where its slot says. At first that is the
//! second part of the entry: it writes the address of the new code into the slot, and goes there. So the slot tells whether
//! the code has run; each later call costs one jump more than without; and threads that call at the same time only read. The
//! instructions of a block are written once, before anything leads there.
//!
//! An entry stands between a call and the function: it changes nothing but what linkers' veneers may change there as well
//! (r11, or x16 and x17), and leaves flags and stack alone.

use crate::arch::{encode_entry, synchronize_code, ENTRY_CFA, ENTRY_LEN, ENTRY_REACH, ENTRY_RECORD, RETURN_ADDRESS};
use crate::memory::{discard, page_size, pages, protect};
use crate::unwind::Module;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, ptr, slice};

/// Slot and target of an entry.
const WORDS_LEN: u64 = 16;

/// What a detour leads to, instead of the new code itself.
#[derive(Clone, Copy)]
pub struct Entry {
    pub addr: u64,
    words: u64,
}

impl Entry {
    pub fn code(&self) -> Range<u64> {
        self.addr..self.addr + ENTRY_LEN
    }

    /// Makes the entry lead to `target`, which counts as not run; nothing leads to the entry yet.
    pub fn lead_to(&self, target: u64) {
        self.word(8).store(target, Ordering::Relaxed);
        self.word(0).store(self.addr + ENTRY_RECORD, Ordering::Release);
    }

    /// Whether the code that the entry leads to has run.
    pub fn has_run(&self) -> bool {
        self.word(0).load(Ordering::Relaxed) == self.word(8).load(Ordering::Relaxed)
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        unsafe { &*((self.words + offset) as *const AtomicU64) } // an entry is only had of a block, which stays mapped
    }
}

/// Pages of entries, and behind them pages of their words.
struct Block {
    entries: Range<u64>,
    used: u64,
}

impl Block {
    /// Makes a block of as many pages as `count` entries need, at the start of `free`.
    fn make(free: &Range<u64>, count: u64) -> io::Result<Block> {
        let entries = pages(&(free.start..free.start + (count * ENTRY_LEN).max(1)));
        let block = Block { entries, used: 0 };
        if block.range().end > free.end || block.range().end - block.range().start > ENTRY_REACH {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        block.write().map_err(|error| {
            discard(&block.range());
            error
        })?;
        Ok(block)
    }

    fn write(&self) -> io::Result<()> {
        let entries = (0..self.capacity()).map(|number| self.entry(number));
        let code: Vec<u8> = entries.flat_map(|entry| encode_entry(entry.addr, entry.words, entry.words + 8)).collect();
        let start = self.entries.start as *mut u8;
        protect(&self.range(), libc::PROT_READ | libc::PROT_WRITE)?;
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), start, code.len()) };
        protect(&self.entries, libc::PROT_READ | libc::PROT_EXEC)?;
        synchronize_code(&self.entries);
        match code == unsafe { slice::from_raw_parts(start, code.len()) } {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn range(&self) -> Range<u64> {
        let words = self.capacity() * WORDS_LEN;
        self.entries.start..self.entries.end + words.next_multiple_of(page_size())
    }

    fn capacity(&self) -> u64 {
        (self.entries.end - self.entries.start) / ENTRY_LEN
    }

    fn entry(&self, number: u64) -> Entry {
        Entry { addr: self.entries.start + number * ENTRY_LEN, words: self.entries.end + number * WORDS_LEN }
    }

    /// The unwind table of the entries. Source: Linux Standard Base, "Exception Frames".
    fn table(&self) -> Module {
        let entry = |mut content: Vec<u8>| {
            content.resize(content.len().next_multiple_of(8) + 4, 0); // with the length, a multiple of 8
            [&(content.len() as u32).to_ne_bytes()[..], &content].concat()
        };
        let identity = [0, 0, 0, 0, 1, 0, 1, 0x78, RETURN_ADDRESS as u8]; // version 1, factors 1 and -8
        let common = entry([&identity[..], ENTRY_CFA].concat());
        let to_common = (common.len() as u32 + 4).to_ne_bytes();
        let (start, size) = (self.entries.start.to_ne_bytes(), (self.entries.end - self.entries.start).to_ne_bytes());
        let described = entry([&to_common[..], &start, &size].concat());
        let section: &[u8] = [common, described, vec![0; 4]].concat().leak();
        Module::of_patch(self.entries.clone(), section.as_ptr() as u64, section)
    }
}

/// All entries of one region. None is used twice: a thread may be about to go through it for ever.
#[derive(Default)]
pub struct Blocks {
    blocks: Vec<Block>,
}

/// Entries for a patch that is not in force yet.
pub struct Taken {
    pub entries: Vec<Entry>,
    block: Option<Block>,
}

impl Blocks {
    /// Finds entries, which belong to nobody before they are kept; where a block is needed for them, it begins with `free`.
    pub fn take(&self, count: u64, free: &Range<u64>) -> io::Result<Taken> {
        let (block, first) = match self.blocks.last() {
            Some(last) if last.capacity() - last.used >= count => (None, last.used),
            _ => (Some(Block::make(free, count)?), 0),
        };
        let source = block.as_ref().or(self.blocks.last());
        let entries = source.map_or(Vec::new(), |block| (first..first + count).map(|n| block.entry(n)).collect());
        Ok(Taken { entries, block })
    }

    /// Takes note that entries are in use; the unwind table of a block that is new.
    pub fn keep(&mut self, taken: Taken) -> Option<Module> {
        let table = taken.block.as_ref().map(Block::table);
        self.blocks.extend(taken.block);
        if let Some(last) = self.blocks.last_mut() {
            last.used += taken.entries.len() as u64;
        }
        table
    }
}

impl Taken {
    /// The first address behind a block that is new.
    pub fn end(&self) -> Option<u64> {
        self.block.as_ref().map(|block| block.range().end)
    }

    /// Gives back what a patch that came to nothing has.
    pub fn give_back(self) {
        if let Some(block) = self.block {
            discard(&block.range());
        }
    }
}
