//! What is patched in a process: the program, or a library that it loads, sooner or later, and may unload again.

use crate::announce::{announce, Slots};
use crate::engine::Engine;
use crate::hex::random_hex;
use crate::host::{Host, Loads, Module};
use crate::memory;
use crate::patcher::Patcher;
use crate::wire::{Applied, Patch, Program, Refusal};
use std::path::PathBuf;

pub struct Hosts {
    program: Engine,
    /// Of libraries that are loaded, or were a moment ago.
    libraries: Vec<Engine>,
    /// The build id of the library that is patched; `None` where it is the program.
    library: Option<String>,
    /// As of the last look.
    loads: Loads,
    /// The daemon's directory, where it is known.
    state: Option<PathBuf>,
}

impl Hosts {
    pub fn new(program: Engine, state: Option<PathBuf>) -> Hosts {
        Hosts { program, libraries: Vec::new(), library: None, loads: Loads::so_far(), state }
    }

    /// Forgets libraries that have been unloaded.
    fn look(&mut self) {
        self.loads = Loads::so_far();
        let (loaded, gone) = self.libraries.drain(..).partition::<Vec<_>, _>(|engine| engine.host.is_loaded());
        self.libraries = loaded;
        if gone.is_empty() {
            return;
        }
        self.announce();
        for mut engine in gone {
            // What has been used is not zero any more.
            if let Some(reserve) = engine.take_reserve() {
                self.program.give_reserve(reserve);
            }
            engine.retire();
        }
    }

    fn has(&self, build_id: &str) -> bool {
        self.libraries.iter().any(|engine| engine.host.build_id == build_id)
    }

    /// Makes ready to patch a library, if it is loaded.
    fn open(&mut self, build_id: &str) -> Option<()> {
        let module = Module::of_library(build_id)?;
        let region = memory::reserve(&module.reached())?;
        let reserve = self.program.take_reserve();
        let host = Host::read(module).ok()?;
        self.libraries.push(Engine::new(host, random_hex::<16>().ok()?, region, reserve).ok()?);
        self.announce();
        Some(())
    }

    /// Announces the slots of all that is patched, or has been.
    fn announce(&self) {
        let Some(state) = &self.state else { return };
        let is_program_used = self.libraries.is_empty() || !self.program.is_untouched();
        let used = self.libraries.iter().chain(is_program_used.then_some(&self.program));
        announce(used.map(|engine| Slots::of(engine.reserved(), state, &engine.instance)).collect());
    }

    fn current(&self) -> &Engine {
        let found = self.library.as_ref().and_then(|id| self.libraries.iter().find(|l| l.host.build_id == *id));
        found.unwrap_or(&self.program)
    }

    fn current_mut(&mut self) -> &mut Engine {
        let found = self.library.as_ref().and_then(|id| self.libraries.iter_mut().find(|l| l.host.build_id == *id));
        found.unwrap_or(&mut self.program)
    }
}

impl Patcher for Hosts {
    fn turn_to(&mut self, library: Option<&str>) -> bool {
        let is_news = self.library.as_deref() != library || self.loads != Loads::so_far();
        self.library = library.map(str::to_owned);
        if is_news {
            self.look();
        }
        library.map_or(true, |id| self.has(id) || is_news && self.open(id).is_some())
    }

    fn is_lasting(&self) -> bool {
        self.library.is_none()
    }

    fn is_there(&mut self) -> bool {
        if self.loads != Loads::so_far() {
            self.look();
        }
        self.library.as_ref().map_or(true, |id| self.has(id))
    }

    fn describe(&self) -> Program<'_> {
        self.current().describe()
    }

    fn apply_image(&mut self, patch: &Patch, bytes: &[u8]) -> Result<Applied, Refusal> {
        self.current_mut().apply(patch, bytes)
    }

    fn undo(&mut self, to: Option<&str>) -> Result<Applied, Refusal> {
        self.current_mut().undo(to)
    }
}
