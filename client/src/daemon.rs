//! Where the daemon is.

use crate::os;
use serde::Deserialize;
use std::path::PathBuf;
use std::{env, fs};

/// How the daemon is found.
pub enum Daemon {
    /// By the file in its state directory.
    State(PathBuf),
    Address(Address),
}

/// What is to be known of a daemon.
#[derive(Deserialize, Clone)]
pub struct Address {
    pub url: String,
    pub token: String,
    /// What is patched; `None` where it is the program itself.
    #[serde(default)]
    pub library: Option<Library>,
}

/// A shared library that programs may load at any time.
#[derive(Deserialize, Clone, PartialEq)]
pub struct Library {
    pub build_id: String,
    /// Where it was built.
    pub path: PathBuf,
}

impl Daemon {
    /// What the environment says; `None` where this program is not to be patched.
    ///
    /// A device has no environment to speak of: there the program was built with the daemon's address in it.
    pub fn find() -> Option<Daemon> {
        if !os::is_candidate(env::var_os("HOTPATCHD_HOST").as_deref()) {
            return None;
        }
        if let Some(state) = env::var_os("HOTPATCHD_STATE").filter(|state| !state.is_empty()) {
            return Some(Daemon::State(state.into()));
        }
        let value = |name: &str, built_in: Option<&str>| {
            let set = env::var(name).ok().or_else(|| built_in.map(str::to_owned));
            set.filter(|value| !value.is_empty())
        };
        let url = value("HOTPATCHD_URL", option_env!("HOTPATCHD_URL"))?;
        let token = value("HOTPATCHD_TOKEN", option_env!("HOTPATCHD_TOKEN"))?;
        Some(Daemon::Address(Address { url, token, library: None }))
    }

    /// The daemon as it is now, if there is one.
    pub fn address(&self) -> Option<Address> {
        match self {
            Daemon::State(state) => serde_json::from_slice(&fs::read(state.join("daemon.json")).ok()?).ok(),
            Daemon::Address(address) => Some(address.clone()),
        }
    }
}
