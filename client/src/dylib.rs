//! Applies patches that are shared libraries.

use crate::hex::hex;
use crate::os::Library;
use crate::patcher::Patcher;
use crate::wire::{self, Applied, Dylib, Reason, Refusal, Region, ThreadLocals, Timings};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

const SLOT_SIZE: u64 = 64 << 10;

/// The module that is patched, at run-time addresses.
pub struct Program {
    pub build_id: String,
    pub exe: String,
    pub target: String,
    pub slide: u64,
    pub code: Vec<Range<u64>>,
    pub page_size: u64,
}

/// Leads calls of the function at `from` to the one at `to`; both are run-time addresses.
pub struct Jump {
    pub from: Range<u64>,
    pub to: u64,
}

/// How calls of replaced functions are led to their new bodies, and back.
pub trait Redirect {
    /// Whether it writes into the program's code.
    const IN_PLACE: bool;

    /// Puts jumps in force on top of those of earlier calls.
    fn put(&mut self, jumps: Vec<Jump>) -> Result<Rewritten, Refusal>;

    /// Makes it as it was after the first `kept` calls of `put`, less those taken back.
    fn keep(&mut self, kept: usize) -> Result<Rewritten, Refusal>;
}

/// What redirecting told.
#[derive(Default)]
pub struct Rewritten {
    pub threads: usize,
    pub parked: Duration,
    pub on_stack: Vec<wire::OnStack>,
}

pub struct Dylibs<R> {
    program: Program,
    instance: String,
    redirect: R,
    /// By the hash of their bytes. They stay for good: threads may be inside, pointers may point there.
    loaded: BTreeMap<String, Library>,
    /// In force, oldest first.
    patches: Vec<String>,
}

impl<R: Redirect> Dylibs<R> {
    pub fn new(program: Program, instance: String, redirect: R) -> Dylibs<R> {
        Dylibs { program, instance, redirect, loaded: BTreeMap::new(), patches: Vec::new() }
    }

    fn check(&self, patch: &Dylib, bytes: &[u8]) -> Result<(), Refusal> {
        if bytes.len() as u64 != patch.size || hex(&Sha256::digest(bytes)) != patch.patch {
            return Err(Reason::Hash.because("the bytes are not those that the message announced"));
        }
        if patch.build_id != self.program.build_id {
            let own = &self.program.build_id;
            return Err(Reason::BuildId.because(format!("for build {}, this program is {own}", patch.build_id)));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if patch.file_name.starts_with('.') || !patch.file_name.bytes().all(allowed) || patch.file_name.is_empty() {
            return Err(Reason::Malformed.because(format!("{:?} is not the name of a file", patch.file_name)));
        }
        let mut starts = Vec::with_capacity(patch.jumps.len());
        for jump in &patch.jumps {
            if !self.program.code.iter().any(|range| range.contains(&jump.from)) {
                return Err(
                    Reason::Address.because(format!("the jump from {:#x} starts outside the program", jump.from))
                );
            }
            starts.push(jump.from);
        }
        starts.sort_unstable();
        match starts.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Reason::Malformed.because(format!("two jumps start at {:#x}", pair[0]))),
            None => Ok(()),
        }
    }

    /// The library of a patch that has been checked, loaded unless it is there already.
    fn load(&mut self, patch: &Dylib, bytes: &[u8]) -> Result<&Library, Refusal> {
        if !self.loaded.contains_key(&patch.patch) {
            let library = Library::load(&patch.file_name, bytes)
                .map_err(|error| Reason::Load.because(format!("cannot load {}: {error}", patch.file_name)))?;
            self.loaded.insert(patch.patch.clone(), library);
        }
        Ok(&self.loaded[&patch.patch])
    }

    fn answer(&self, rewritten: Rewritten, verify: Duration, load: Duration, begun: Instant) -> Applied {
        let us = |duration: Duration| duration.as_micros() as u64;
        Applied {
            next: 0,
            threads: rewritten.threads,
            timings_us: Timings {
                verify: us(verify),
                copy: us(load),
                park: us(rewritten.parked),
                total: us(begun.elapsed()),
            },
            on_stack: rewritten.on_stack,
            proof: false,
        }
    }
}

impl<R: Redirect> Patcher for Dylibs<R> {
    fn describe(&self) -> wire::Program<'_> {
        wire::Program {
            kind: wire::Kind::Dylib,
            in_place: R::IN_PLACE,
            short_jumps: false,
            instance: &self.instance,
            build_id: &self.program.build_id,
            exe: Cow::Borrowed(&self.program.exe),
            library: None,
            target: &self.program.target,
            slide: self.program.slide,
            region: Region { addr: 0, size: 0, slot_size: SLOT_SIZE, next: 0 },
            thread_locals: ThreadLocals::default(),
            page_size: self.program.page_size,
            patches: self.patches.iter().map(String::as_str).collect(),
        }
    }

    fn apply_dylib(&mut self, patch: &Dylib, bytes: &[u8]) -> Result<Applied, Refusal> {
        let begun = Instant::now();
        self.check(patch, bytes)?;
        let verify = begun.elapsed();
        let jumps = place_jumps(patch, self.load(patch, bytes)?)?;
        let load = begun.elapsed() - verify;
        let rewritten = self.redirect.put(jumps)?;
        self.patches.push(patch.patch.clone());
        Ok(self.answer(rewritten, verify, load, begun))
    }

    fn undo(&mut self, to: Option<&str>) -> Result<Applied, Refusal> {
        let begun = Instant::now();
        let kept = match to {
            None => 0,
            Some(id) => {
                let found = self.patches.iter().rposition(|patch| patch == id);
                1 + found.ok_or_else(|| Reason::UnknownPatch.because(format!("no patch {id} is in force")))?
            }
        };
        let rewritten = self.redirect.keep(kept)?;
        self.patches.truncate(kept);
        Ok(self.answer(rewritten, Duration::ZERO, Duration::ZERO, begun))
    }
}

/// The jumps of a patch, with where they lead in the library as it was loaded.
fn place_jumps(patch: &Dylib, library: &Library) -> Result<Vec<Jump>, Refusal> {
    let symbol = &patch.anchor.symbol;
    let anchor = library.symbol(symbol).ok_or_else(|| Refusal {
        symbol: Some(symbol.clone()),
        ..Reason::Import.because(format!("{} does not export {symbol}", patch.file_name))
    })?;
    let slide = anchor.wrapping_sub(patch.anchor.addr);
    let code = library.code_around(anchor);
    let jumps = patch.jumps.iter().map(|jump| {
        let to = jump.to.wrapping_add(slide);
        if !code.iter().any(|range| range.contains(&to)) {
            let detail = format!("the jump to {:#x} leads outside the code of {}", jump.to, patch.file_name);
            return Err(Reason::Address.because(detail));
        }
        Ok(Jump { from: jump.from..jump.from.saturating_add(jump.size), to })
    });
    jumps.collect()
}
