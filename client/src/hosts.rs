//! What is patched in a process: the program, or a library that it loads, sooner or later, and may unload again.

use crate::announce::{announce, Slots};
use crate::crash;
use crate::daemon::Library;
use crate::engine::Engine;
use crate::hex::random_hex;
use crate::host::{Host, Loads, Module};
use crate::memory;
use crate::patcher::Patcher;
use crate::wire::{Applied, Patch, Program, Ran, Refusal};
use crate::LOOK_AGAIN;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

pub struct Hosts {
    program: Engine,
    /// Of libraries that are loaded, or were a moment ago.
    libraries: Vec<Engine>,
    /// What the daemon patches; `None` where it is the program.
    wanted: Option<Library>,
    /// Builds of the wanted library that the daemon turned away.
    unwanted: Vec<String>,
    /// The instance among `libraries` that the daemon is told of.
    current: Option<String>,
    /// As of the last look; `None` where another look is due in any case.
    loads: Option<Loads>,
    /// The daemon's directory, where it is known.
    state: Option<PathBuf>,
    /// How many panics the daemon was told of.
    told_panics: u64,
}

impl Hosts {
    pub fn new(program: Engine, state: Option<PathBuf>) -> Hosts {
        Hosts {
            program,
            libraries: Vec::new(),
            wanted: None,
            unwanted: Vec::new(),
            current: None,
            loads: None,
            state,
            told_panics: 0,
        }
    }

    /// Forgets libraries that have been unloaded.
    fn look(&mut self) {
        self.loads = Some(Loads::so_far());
        let (loaded, gone) = self.libraries.drain(..).partition::<Vec<_>, _>(Engine::is_there);
        self.libraries = loaded;
        if gone.is_empty() {
            return;
        }
        self.announce();
        crash::unload();
        for mut engine in gone {
            // What has been used is not zero any more.
            if let Some(reserve) = engine.take_reserve() {
                self.program.give_reserve(reserve);
            }
            engine.retire();
        }
    }

    /// The instance to patch: of the very build, or else of another one, about which the daemon may know better.
    fn find(&mut self, library: &Library) -> Option<String> {
        let (module, build_id) = match Module::of_library(&library.build_id) {
            Some(exact) => (exact, library.build_id.clone()),
            None => {
                let other = Module::from_file(&library.path)?;
                let build_id = other.build_id(&other.path).ok()?;
                (other, build_id)
            }
        };
        if self.unwanted.contains(&build_id) {
            return None;
        }
        let known = self.libraries.iter().find(|engine| engine.host.build_id == build_id);
        known.map(|engine| engine.instance.clone()).or_else(|| self.open(module))
    }

    fn open(&mut self, module: Module) -> Option<String> {
        let region = memory::reserve(&module.reached())?;
        let host = Host::read(module).ok()?;
        let instance = random_hex::<16>().ok()?;
        let reserve = self.program.take_reserve();
        self.libraries.push(Engine::new(host, instance.clone(), region, reserve).ok()?);
        self.announce();
        Some(instance)
    }

    /// Announces the slots of all that is patched, or has been.
    fn announce(&self) {
        let Some(state) = &self.state else { return };
        let is_program_used = self.libraries.is_empty() || !self.program.is_untouched();
        let used = self.libraries.iter().chain(is_program_used.then_some(&self.program));
        announce(used.map(|engine| Slots::of(engine.reserved(), state, &engine.instance)).collect());
    }

    /// The place of the current one among the libraries.
    fn place(&self) -> Option<usize> {
        let current = self.current.as_ref()?;
        self.libraries.iter().position(|engine| engine.instance == *current)
    }

    /// Without a place for the note, faults are not noted.
    fn watch_for_crashes(&mut self) {
        let Some(patches) = self.state.as_ref().map(|state| state.join("patches")) else { return };
        let engine = self.engine();
        let _ = crash::watch(&patches.join(&engine.instance), engine.tables(), &engine.reserved());
    }

    fn engine(&mut self) -> &mut Engine {
        match self.place() {
            Some(place) => &mut self.libraries[place],
            None => &mut self.program,
        }
    }
}

impl Patcher for Hosts {
    fn turn_to(&mut self, library: Option<&Library>) -> bool {
        if self.wanted.as_ref() != library {
            self.wanted = library.cloned();
            self.unwanted.clear();
            self.loads = None;
        }
        if self.loads != Some(Loads::so_far()) {
            self.look();
            self.current = library.and_then(|library| self.find(library));
        }
        library.is_none() || self.place().is_some()
    }

    fn turn_away(&mut self) {
        let build_id = self.engine().host.build_id.clone();
        self.unwanted.push(build_id);
        self.loads = None;
    }

    fn is_lasting(&self) -> bool {
        self.wanted.is_none()
    }

    fn is_there(&mut self) -> bool {
        if self.loads.is_some_and(|loads| loads != Loads::so_far()) {
            self.look();
        }
        let is_there = self.wanted.is_none() || self.place().is_some();
        if !is_there {
            self.loads = None;
        }
        is_there
    }

    fn describe(&self) -> Program<'_> {
        self.place().map_or(&self.program, |place| &self.libraries[place]).describe()
    }

    fn apply_image(&mut self, patch: &Patch, bytes: &[u8]) -> Result<Applied, Refusal> {
        // Before as well: new code may fail in its first instant.
        self.watch_for_crashes();
        let applied = self.engine().apply(patch, bytes);
        self.watch_for_crashes();
        applied
    }

    fn take_ran(&mut self) -> Vec<Ran> {
        self.engine().take_ran()
    }

    fn has_panicked(&mut self) -> bool {
        let panics = crash::panics().map_or(0, |(panics, _)| panics.total());
        mem::replace(&mut self.told_panics, panics) != panics
    }

    fn next_look(&self) -> Option<Duration> {
        let ran = self.place().map_or(&self.program, |place| &self.libraries[place]).next_look();
        let panics = crash::panics().map(|_| LOOK_AGAIN); // which cannot wake this thread
        ran.into_iter().chain(panics).min()
    }

    fn tell_again(&mut self) {
        self.told_panics = 0;
        self.engine().tell_again();
    }

    fn undo(&mut self, to: Option<&str>) -> Result<Applied, Refusal> {
        self.engine().undo(to)
    }
}
