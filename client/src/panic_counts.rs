//! How often panics went through patched code, where, and on which thread, in memory that the daemon reads.
#![cfg_attr(any(target_feature = "crt-static", feature = "linked"), allow(dead_code))] // where no panic is seen

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// Calls of patched code that a site keeps.
pub const SITE_FRAMES: usize = 16;
const SITES: usize = 64;
/// Source: "The FNV Non-Cryptographic Hash Algorithm", 64 bits; here a word at a time.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The ways of panics through patched code, and how often each was gone; `docs/wire.md` describes it. All zeros is an empty one.
///
/// Any thread writes, at any time. A new site takes the place of the oldest.
#[repr(C)]
pub struct Panics {
    /// Of all sites that there have been.
    total: AtomicU64,
    begun: AtomicU32,
    _reserved: u32,
    sites: [Site; SITES],
}

#[repr(C)]
struct Site {
    /// Counts from 1; 0 where there is none, or it is being written.
    number: AtomicU32,
    frame_count: AtomicU32,
    /// Stands for the frames.
    key: AtomicU64,
    count: AtomicU64,
    /// Of the newest panic, as far as no two come at the same time.
    tid: AtomicU32,
    is_naming: AtomicBool,
    name: [AtomicU64; 2],
    /// Inside the instructions that made the calls, innermost first.
    frames: [AtomicU64; SITE_FRAMES],
}

impl Panics {
    /// How many there have been.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Counts a panic of this thread that goes through these calls; the number of its site.
    pub fn count(&self, frames: &[u64]) -> u32 {
        self.total.fetch_add(1, Relaxed);
        let key = frames.iter().fold(FNV_BASIS, |key, frame| (key ^ frame).wrapping_mul(FNV_PRIME));
        let known = self.sites.iter().find(|site| site.key.load(Relaxed) == key && site.number.load(Acquire) != 0);
        if let Some(site) = known {
            site.count.fetch_add(1, Relaxed);
            site.name_thread();
            return site.number.load(Relaxed);
        }
        let number = self.begun.fetch_add(1, Relaxed) + 1;
        let site = &self.sites[(number - 1) as usize % SITES];
        site.number.store(0, Release);
        site.frame_count.store(frames.len() as u32, Relaxed);
        site.key.store(key, Relaxed);
        site.count.store(1, Relaxed);
        for (kept, frame) in site.frames.iter().zip(frames) {
            kept.store(*frame, Relaxed);
        }
        site.name_thread();
        site.number.store(number, Release);
        number
    }
}

impl Site {
    fn name_thread(&self) {
        if !self.is_naming.swap(true, Acquire) {
            self.tid.store(unsafe { libc::gettid() } as u32, Relaxed);
            let name = thread_name();
            for (kept, half) in self.name.iter().zip(name.chunks_exact(8)) {
                kept.store(u64::from_ne_bytes(half.try_into().unwrap_or_default()), Relaxed);
            }
            self.is_naming.store(false, Release);
        }
    }
}

/// The name of this thread, ending with a zero.
pub fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}
