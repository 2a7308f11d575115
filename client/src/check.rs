//! Decides whether a patch can be applied, before anything is touched.

use crate::arch::{detour, DETOUR_LEN};
#[cfg(not(feature = "linked"))]
use crate::dl::Handle;
use crate::hex::{hex, unhex};
use crate::host::Host;
use crate::locals::{Initial, Reserve};
use crate::memory::pages;
use crate::proof::Entry;
use crate::unwind::{check_eh_frame, contains};
use crate::wire::{Patch, Protection, Reason, Refusal};
use sha2::{Digest, Sha256};
use std::ops::Range;

/// What has to be done for a patch that may be applied.
pub struct Plan {
    /// Page-aligned, in the order of the message; do not overlap.
    pub segments: Vec<Placed>,
    /// Slot address and the value that it gets.
    pub slots: Vec<(u64, u64)>,
    /// Executable segments.
    pub code: Vec<Range<u64>>,
    pub eh_frame: Option<Range<u64>>,
    pub detours: Vec<Jump>,
    pub thread_locals: Vec<Initial>,
    /// The first free page after the patch.
    pub end: u64,
}

pub struct Placed {
    pub pages: Range<u64>,
    pub addr: u64,
    /// Where its content is in the bytes of the patch.
    pub content: Range<usize>,
    pub prot: Protection,
}

pub struct Jump {
    /// The replaced function.
    pub from: Range<u64>,
    /// Bytes from its start on that nothing else has.
    pub room: usize,
    /// What lies between functions nearby, for the long jump that a short one leads to.
    pub padding: Vec<Range<u64>>,
    pub way: Way,
}

/// Where a detour leads.
#[derive(Clone, Copy)]
pub struct Way {
    /// The new code.
    pub to: u64,
    /// What it passes through.
    pub entry: Option<Entry>,
}

impl Way {
    pub fn straight(to: u64) -> Way {
        Way { to, entry: None }
    }

    /// Where the jump itself goes.
    pub fn first(&self) -> u64 {
        self.entry.map_or(self.to, |entry| entry.addr)
    }
}

/// What the client has applied so far, as far as the check depends on it.
pub struct Ground<'a> {
    pub host: &'a Host,
    pub region_end: u64,
    pub next: u64,
    /// Executable segments of all patches so far.
    pub code: &'a [Range<u64>],
    pub reserve: Option<&'a Reserve>,
}

/// Checks everything that the daemon says of a patch.
pub fn check(patch: &Patch, bytes: &[u8], ground: &Ground) -> Result<Plan, Refusal> {
    if bytes.len() as u64 != patch.size || hex(&Sha256::digest(bytes)) != patch.patch {
        return Err(Reason::Hash.because("the bytes are not those that the message announced"));
    }
    if patch.build_id != ground.host.build_id {
        let own = &ground.host.build_id;
        return Err(Reason::BuildId.because(format!("for build {}, this program is {own}", patch.build_id)));
    }
    let segments = place_segments(patch, bytes, ground)?;
    let code: Vec<Range<u64>> = patch
        .segments
        .iter()
        .filter(|segment| segment.prot == Protection::Rx)
        .map(|segment| segment.addr..segment.addr + segment.mem_size)
        .collect();
    let end = segments.iter().map(|segment| segment.pages.end).max().unwrap_or(ground.next);
    Ok(Plan {
        slots: resolve_imports(patch, ground.host)?,
        eh_frame: find_eh_frame(patch, bytes, &code)?,
        detours: place_detours(patch, ground, &code)?,
        thread_locals: place_thread_locals(patch, ground)?,
        end,
        segments,
        code,
    })
}

fn place_segments(patch: &Patch, bytes: &[u8], ground: &Ground) -> Result<Vec<Placed>, Refusal> {
    let free = ground.next..ground.region_end;
    let mut placed: Vec<Placed> = Vec::new();
    for segment in &patch.segments {
        let wrong = |what: &str| Reason::Address.because(format!("the segment at {:#x} {what}", segment.addr));
        let end = segment.addr.checked_add(segment.mem_size).filter(|&end| end <= free.end);
        let range = segment.addr..end.ok_or_else(|| wrong("ends outside the region"))?;
        if range.start < free.start {
            return Err(wrong("starts before the free part of the region"));
        }
        if range.start % ground.host.page_size != 0 || range.is_empty() {
            return Err(wrong("is empty or does not start on a page"));
        }
        let pages = pages(&range);
        if placed.iter().any(|other| pages.start < other.pages.end && other.pages.start < pages.end) {
            return Err(wrong("overlaps another one"));
        }
        let content_end = segment.offset.checked_add(segment.file_size);
        let content_end = content_end.filter(|&end| end <= bytes.len() as u64 && segment.file_size <= segment.mem_size);
        let Some(content_end) = content_end else {
            return Err(Reason::Malformed.because(format!("the segment at {:#x} lacks content", segment.addr)));
        };
        let content = segment.offset as usize..content_end as usize;
        placed.push(Placed { pages, addr: segment.addr, content, prot: segment.prot });
    }
    Ok(placed)
}

fn resolve_imports(patch: &Patch, host: &Host) -> Result<Vec<(u64, u64)>, Refusal> {
    let scope = Scope::of(host, &patch.libraries);
    let holds = |slot: &Range<u64>| {
        let writable = patch.segments.iter().filter(|segment| segment.prot != Protection::Rx);
        writable.into_iter().any(|segment| contains(&(segment.addr..segment.addr + segment.mem_size), slot))
    };
    let mut slots = Vec::with_capacity(patch.imports.len());
    for import in &patch.imports {
        if !import.slot.checked_add(8).is_some_and(|end| holds(&(import.slot..end))) {
            let detail = format!("the slot of {} at {:#x} is in no data segment", import.name, import.slot);
            return Err(Reason::Address.because(detail));
        }
        let found = scope.look_up(&import.name);
        let Some(found) = found.or_else(|| if import.weak { Some(0) } else { scope.load(&import.name) }) else {
            let detail = match cfg!(feature = "linked") {
                true => format!("a static program looks nothing up by name, and so not {}", import.name),
                false => format!("no loaded library has the symbol {}", import.name),
            };
            return Err(Refusal { symbol: Some(import.name.clone()), ..Reason::Import.because(detail) });
        };
        slots.push((import.slot, found));
    }
    Ok(slots)
}

/// Where imports are found: in what the program has loaded, in what a library was loaded with, and then in what the
/// program could have been linked with, which stays loaded.
#[cfg(not(feature = "linked"))]
struct Scope<'a> {
    library: Option<Handle>,
    more: &'a [String],
}

#[cfg(not(feature = "linked"))]
impl Scope<'_> {
    fn of<'a>(host: &Host, more: &'a [String]) -> Scope<'a> {
        Scope { library: host.library().and_then(Handle::of_loaded), more }
    }

    fn look_up(&self, name: &str) -> Option<u64> {
        Handle::of_all().symbol(name).or_else(|| self.library.as_ref()?.symbol(name))
    }

    fn load(&self, name: &str) -> Option<u64> {
        self.more.iter().find_map(|path| Handle::open(path).ok()?.symbol(name))
    }
}

#[cfg(not(feature = "linked"))]
impl Drop for Scope<'_> {
    fn drop(&mut self) {
        if let Some(library) = self.library.take() {
            library.close();
        }
    }
}

#[cfg(feature = "linked")]
struct Scope;

#[cfg(feature = "linked")]
impl Scope {
    fn of(_host: &Host, _more: &[String]) -> Scope {
        Scope
    }

    fn look_up(&self, _name: &str) -> Option<u64> {
        None
    }

    fn load(&self, _name: &str) -> Option<u64> {
        None
    }
}

fn find_eh_frame(patch: &Patch, bytes: &[u8], code: &[Range<u64>]) -> Result<Option<Range<u64>>, Refusal> {
    let Some(eh_frame) = &patch.eh_frame else { return Ok(None) };
    let content = patch.segments.iter().find_map(|segment| {
        let offset = eh_frame.addr.checked_sub(segment.addr)?;
        let end = offset.checked_add(eh_frame.size).filter(|&end| end <= segment.file_size)?;
        bytes.get((segment.offset + offset) as usize..(segment.offset + end) as usize)
    });
    let content =
        content.ok_or_else(|| Reason::Address.because(format!("eh_frame at {:#x} is in no segment", eh_frame.addr)))?;
    check_eh_frame(content, eh_frame.addr, code).map_err(|detail| Reason::Malformed.because(detail))?;
    Ok(Some(eh_frame.addr..eh_frame.addr + eh_frame.size))
}

fn place_detours(patch: &Patch, ground: &Ground, code: &[Range<u64>]) -> Result<Vec<Jump>, Refusal> {
    let mut detours = Vec::with_capacity(patch.detours.len());
    for jump in &patch.detours {
        let wrong =
            |what: &str| Reason::Address.because(format!("the detour from {:#x} to {:#x} {what}", jump.from, jump.to));
        let room = jump.room.map_or(DETOUR_LEN, |room| room.min(DETOUR_LEN as u64) as usize);
        let overwritten = jump.from..jump.from.saturating_add(room as u64);
        let mut replaceable = ground.host.module.code.iter().chain(ground.code);
        if !replaceable.any(|range| contains(range, &overwritten)) {
            return Err(wrong("starts outside the program's code"));
        }
        if !ground.code.iter().chain(code).any(|range| range.contains(&jump.to)) {
            return Err(wrong("leads outside the patches' code"));
        }
        detour(jump.from, jump.to).ok_or_else(|| wrong("is too long"))?;
        let between: Vec<Range<u64>> =
            jump.padding.iter().map(|gap| gap.addr..gap.addr.saturating_add(gap.size)).collect();
        if !between.iter().all(|gap| ground.host.module.code.iter().any(|range| contains(range, gap))) {
            return Err(wrong("has padding outside the program's code"));
        }
        let from = jump.from..jump.from.saturating_add(jump.size);
        detours.push(Jump { from, room, padding: between, way: Way::straight(jump.to) });
    }
    detours.sort_by_key(|jump| jump.from.start);
    if let Some(pair) = detours.windows(2).find(|pair| pair[1].from.start - pair[0].from.start < pair[0].room as u64) {
        return Err(Reason::Malformed.because(format!("two detours overlap at {:#x}", pair[1].from.start)));
    }
    Ok(detours)
}

fn place_thread_locals(patch: &Patch, ground: &Ground) -> Result<Vec<Initial>, Refusal> {
    let initials = patch.thread_locals.iter().map(|local| {
        let wrong =
            |reason: Reason, what: &str| reason.because(format!("the thread-local at offset {} {what}", local.offset));
        let content = unhex(&local.data).ok_or_else(|| wrong(Reason::Malformed, "has data that is not hex"))?;
        let initial = Initial { offset: local.offset, content };
        match ground.reserve {
            Some(reserve) if reserve.holds(&initial) => Ok(initial),
            _ => Err(wrong(Reason::Address, "is outside the reserve")),
        }
    });
    initials.collect()
}
