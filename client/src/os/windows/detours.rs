//! Jumps written over the program's functions.
//!
//! A short jump leads to an island near the program, and that to the library, which can be anywhere.

use super::api;
use super::pe::Headers;
use super::threads::{Suspended, System, Thread};
use super::unwind::Tables;
use crate::dylib::{Jump, Redirect, Rewritten};
use crate::island::{islands, ISLAND_LEN};
use crate::wire::{OnStack, Reason, Refusal};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use std::{io, ptr, thread};

const ATTEMPTS: u32 = 8;
/// `jmp rel32`.
const DETOUR_LEN: usize = 5;
const REACH: u64 = 1 << 31;
const REGION_SIZE: u64 = 16 << 20;
/// Address space is given out in pieces that start at its multiples.
const GRANULARITY: u64 = 64 << 10;
const PAGE_SIZE: u64 = 4096;

type Code = [u8; DETOUR_LEN];

pub struct Detours {
    system: System,
    /// What is left for islands.
    free: Range<u64>,
    /// Of each patch in force, oldest first.
    patches: Vec<Vec<Undoable>>,
    /// Every body that each detoured function has had, the program's first.
    bodies: BTreeMap<u64, Vec<Range<u64>>>,
}

struct Undoable {
    from: u64,
    to: u64,
    overwritten: Code,
}

/// New first bytes for a function.
struct Change {
    from: u64,
    code: Code,
    overwritten: Code,
    /// The bodies that are not called any more.
    old_bodies: Vec<Range<u64>>,
}

impl Change {
    fn new(from: u64, code: Code, bodies: &[Range<u64>], target: u64) -> Change {
        let overwritten = unsafe { ptr::read_unaligned(from as *const Code) };
        let old_bodies = bodies.iter().filter(|body| body.start != target).cloned().collect();
        Change { from, code, overwritten, old_bodies }
    }
}

/// Why code was not rewritten this time.
enum Hindrance {
    Crowded,
    /// A thread is, or will return, between the bytes that are to be overwritten.
    Inside(u64),
    Unwritable(io::Error),
}

impl Detours {
    /// Reserves room for islands within reach of every byte of the module at `addr`.
    pub fn reserve(addr: u64) -> Option<Detours> {
        let extent = addr..addr + unsafe { Headers::of_module(addr) }?.image_size();
        let lowest = extent.end.saturating_sub(REACH).max(GRANULARITY).next_multiple_of(GRANULARITY);
        let below = extent.start.saturating_sub(REGION_SIZE);
        let above = extent.end.next_multiple_of(GRANULARITY);
        let highest = extent.start + REACH - REGION_SIZE;
        let step = REGION_SIZE as usize;
        let mut candidates = (above..highest).step_by(step).chain((lowest..=below).rev().step_by(step));
        let start = candidates.find(|&start| unsafe {
            let start = (start / GRANULARITY * GRANULARITY) as *mut _;
            !api::VirtualAlloc(start, REGION_SIZE as usize, api::MEM_RESERVE, api::PAGE_NOACCESS).is_null()
        })?;
        let start = start / GRANULARITY * GRANULARITY;
        Some(Detours {
            system: System::find()?,
            free: start..start + REGION_SIZE,
            patches: Vec::new(),
            bodies: BTreeMap::new(),
        })
    }

    /// Writes islands for the jumps; the first one's address.
    fn build_islands(&mut self, jumps: &[Jump]) -> Result<u64, Refusal> {
        let code = islands(jumps);
        let start = self.free.start;
        let next = (start + code.len() as u64).next_multiple_of(PAGE_SIZE);
        if next > self.free.end {
            return Err(Reason::Memory.because("there is no room for more jumps: restart the program"));
        }
        let (addr, size) = (start as *mut _, (next - start) as usize);
        let mut former = 0;
        let done = size == 0
            || unsafe {
                let room = api::VirtualAlloc(addr, size, api::MEM_COMMIT, api::PAGE_READWRITE);
                !room.is_null() && {
                    ptr::copy_nonoverlapping(code.as_ptr(), room.cast(), code.len());
                    api::VirtualProtect(room, size, api::PAGE_EXECUTE_READ, &mut former) != 0
                        && api::FlushInstructionCache(api::GetCurrentProcess(), room, size) != 0
                }
            };
        if !done {
            let error = io::Error::last_os_error();
            return Err(Reason::Memory.because(format!("cannot make room for jumps: {error}")));
        }
        self.free.start = next;
        Ok(start)
    }

    /// Writes all changes while no other thread runs; tries again while one is in the way.
    fn rewrite(&self, changes: &[Change], tables: &Tables) -> Result<Rewritten, Refusal> {
        let mut room = 64;
        let mut hindrance = Hindrance::Crowded;
        for attempt in 0..ATTEMPTS {
            let mut threads = Vec::with_capacity(room);
            match self.rewrite_once(changes, tables, &mut threads) {
                Ok(rewritten) => return Ok(rewritten),
                Err(Hindrance::Crowded) => room *= 4,
                Err(other) => {
                    hindrance = other;
                    thread::sleep(Duration::from_millis(1 << attempt));
                }
            }
        }
        Err(match hindrance {
            Hindrance::Crowded => Reason::Park.because("threads keep being started"),
            Hindrance::Inside(from) => {
                Reason::Park.because(format!("a thread stays in the first bytes of the function at {from:#x}"))
            }
            Hindrance::Unwritable(error) => Reason::Memory.because(format!("cannot write code: {error}")),
        })
    }

    /// One attempt of [`Detours::rewrite`].
    fn rewrite_once(
        &self,
        changes: &[Change],
        tables: &Tables,
        threads: &mut Vec<Thread>,
    ) -> Result<Rewritten, Hindrance> {
        let mut running: Vec<(usize, usize)> = Vec::with_capacity(threads.capacity() * changes.len());
        let begun = Instant::now();

        // From here until the threads go on: no allocation, no lock, no panic.
        let suspended = Suspended::all(self.system, threads).map_err(|_| Hindrance::Crowded)?;
        for (number, thread) in suspended.threads().iter().enumerate() {
            let (Some(context), Some(stack)) = (thread.context(), thread.stack(self.system)) else { continue };
            let mut inside = None;
            let seen = running.len();
            tables.walk(context, &stack, |at, returns| {
                let within = at.wrapping_sub(u64::from(returns));
                for (which, change) in changes.iter().enumerate() {
                    if change.from < at && at < change.from + DETOUR_LEN as u64 {
                        inside = Some(change.from);
                    }
                    let runs = change.old_bodies.iter().any(|body| body.start < within && within < body.end);
                    if runs && !running.iter().skip(seen).any(|&(other, _)| other == which) {
                        running.push((which, number));
                    }
                }
            });
            if let Some(from) = inside {
                return Err(Hindrance::Inside(from));
            }
        }
        for (done, change) in changes.iter().enumerate() {
            if let Err(error) = write_code(change.from, &change.code) {
                for change in changes.iter().take(done + 1) {
                    let _ = write_code(change.from, &change.overwritten);
                }
                return Err(Hindrance::Unwritable(error));
            }
        }
        drop(suspended);
        let parked = begun.elapsed();

        let on_stack = changes.iter().enumerate().filter_map(|(which, change)| {
            let names = running.iter().filter(|(other, _)| *other == which).map(|&(_, number)| threads[number].name());
            let names: Vec<String> = names.collect();
            (!names.is_empty()).then_some(OnStack { from: change.from, threads: names })
        });
        let on_stack = on_stack.collect();
        Ok(Rewritten { threads: threads.len(), parked, on_stack })
    }
}

impl Redirect for Detours {
    const IN_PLACE: bool = true;

    fn put(&mut self, jumps: Vec<Jump>) -> Result<Rewritten, Refusal> {
        let first = self.build_islands(&jumps)?;
        let tables = Tables::find();
        let mut changes = Vec::with_capacity(jumps.len());
        for (jump, island) in jumps.iter().zip((first..).step_by(ISLAND_LEN as usize)) {
            let bodies = self.bodies.entry(jump.from.start).or_insert_with(|| vec![jump.from.clone()]);
            changes.push(Change::new(jump.from.start, detour(jump.from.start, island), bodies, jump.to));
        }
        let rewritten = self.rewrite(&changes, &tables)?;
        for jump in &jumps {
            let bodies = self.bodies.entry(jump.from.start).or_default();
            bodies.extend(tables.function(jump.to));
        }
        let undoable = changes.iter().zip(&jumps).map(|(change, jump)| Undoable {
            from: change.from,
            to: jump.to,
            overwritten: change.overwritten,
        });
        self.patches.push(undoable.collect());
        Ok(rewritten)
    }

    fn keep(&mut self, kept: usize) -> Result<Rewritten, Refusal> {
        let mut restored = BTreeMap::new();
        for jump in self.patches[kept..].iter().rev().flatten() {
            restored.insert(jump.from, jump.overwritten); // the oldest comes last and counts
        }
        let changes = restored.into_iter().map(|(from, code)| {
            let mut in_force = self.patches[..kept].iter().rev().flatten();
            let target = in_force.find(|jump| jump.from == from).map_or(from, |jump| jump.to);
            Change::new(from, code, &self.bodies[&from], target)
        });
        let changes: Vec<Change> = changes.collect();
        let rewritten = self.rewrite(&changes, &Tables::find())?;
        self.patches.truncate(kept);
        Ok(rewritten)
    }
}

/// The jump from a function to an island, which is within reach.
fn detour(from: u64, to: u64) -> Code {
    let [a, b, c, d] = (to.wrapping_sub(from + DETOUR_LEN as u64) as i32).to_le_bytes();
    [0xe9, a, b, c, d]
}

/// Writes over code, and has other processors fetch it anew.
///
/// The system makes the page writable for the moment. It has to stay executable meanwhile, since the client's own code may
/// be in it; no other thread runs then.
fn write_code(addr: u64, code: &Code) -> io::Result<()> {
    let addr = addr as *mut _;
    let written = unsafe {
        let process = api::GetCurrentProcess();
        api::WriteProcessMemory(process, addr, code.as_ptr().cast(), DETOUR_LEN, ptr::null_mut()) != 0
            && api::FlushInstructionCache(process, addr, DETOUR_LEN) != 0
    };
    if written {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
