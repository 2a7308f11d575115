//! Where the daemon is.

use crate::os;
use std::env;
use std::path::PathBuf;

/// How the daemon is found.
pub enum Daemon {
    /// By the file in its state directory.
    State(PathBuf),
    Address {
        url: String,
        token: String,
    },
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
        Some(Daemon::Address { url, token })
    }
}
