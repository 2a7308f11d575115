//! What patches are, and how calls are led to them.

use std::env;

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// Images, and jumps written into the program's code.
    #[cfg(target_os = "linux")]
    Image,
    /// Shared libraries, and jumps written into the program's code.
    Dylib,
    /// Shared libraries, which [`crate::call`] calls into.
    Calls,
}

impl Kind {
    /// The one that the environment asks for, if it is among those that are `possible` here, or else the first of them.
    pub fn asked(possible: &[Kind]) -> Kind {
        let asked = match env::var("HOTPATCHD_KIND").as_deref() {
            #[cfg(target_os = "linux")]
            Ok("image") => Kind::Image,
            Ok("dylib") => Kind::Dylib,
            Ok("calls") => Kind::Calls,
            _ => possible[0],
        };
        if possible.contains(&asked) {
            asked
        } else {
            possible[0]
        }
    }

    /// Whether the environment asks for nothing to be written into the program's code.
    #[cfg(target_os = "linux")]
    pub fn is_calls_asked() -> bool {
        env::var("HOTPATCHD_KIND").as_deref() == Ok("calls")
    }
}
