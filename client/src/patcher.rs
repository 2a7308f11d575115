//! What a session asks of the part that applies patches.

use crate::daemon::Library;
use crate::wire::{Applied, Dylib, Program, Reason, Refusal};
use std::time::Duration;

#[cfg(target_os = "linux")]
use crate::wire::{Patch, Ran};

pub trait Patcher {
    /// Turns to a loaded library, or to the program itself; tells whether it is there.
    fn turn_to(&mut self, library: Option<&Library>) -> bool {
        library.is_none()
    }

    /// Whether what is patched stays as long as the process.
    fn is_lasting(&self) -> bool {
        true
    }

    /// The daemon does not want what it was told is there.
    fn turn_away(&mut self) {}

    /// Whether what is patched is still there.
    fn is_there(&mut self) -> bool {
        true
    }

    /// What `hello` says of the program and of the patches in force.
    fn describe(&self) -> Program<'_>;

    #[cfg(target_os = "linux")]
    fn apply_image(&mut self, _patch: &Patch, _bytes: &[u8]) -> Result<Applied, Refusal> {
        Err(Reason::Malformed.because("this client takes libraries, not images"))
    }

    /// What has run for the first time, and was not told yet.
    #[cfg(target_os = "linux")]
    fn take_ran(&mut self) -> Vec<Ran> {
        Vec::new()
    }

    /// Whether panics went through patched code that were not told yet.
    #[cfg(target_os = "linux")]
    fn has_panicked(&mut self) -> bool {
        false
    }

    /// How soon to ask for these again; `None` where there is nothing to wait for.
    fn next_look(&self) -> Option<Duration> {
        None
    }

    /// The daemon may not have heard what it was told.
    fn tell_again(&mut self) {}

    fn apply_dylib(&mut self, _patch: &Dylib, _bytes: &[u8]) -> Result<Applied, Refusal> {
        Err(Reason::Malformed.because("this client takes images, not libraries"))
    }

    /// Takes back all patches after `to`, or all.
    fn undo(&mut self, to: Option<&str>) -> Result<Applied, Refusal>;
}
