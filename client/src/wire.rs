//! The messages, as docs/wire.md gives them.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

pub const PROTOCOL: u32 = 1;
pub const MAX_FRAME_BYTES: usize = 256 << 20;

/// Number of a message on its connection; every message has one.
#[derive(Deserialize)]
pub struct Numbered {
    pub seq: u64,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromDaemon {
    Challenge {
        protocol: u32,
        nonce: String,
    },
    Welcome {
        proof: String,
    },
    Reject {
        retry: bool,
    },
    #[cfg(target_os = "linux")]
    Patch(Patch),
    Dylib(Dylib),
    Undo {
        to: Option<String>,
    },
}

#[cfg(target_os = "linux")]
pub use image::*;

#[cfg(target_os = "linux")]
mod image {
    use super::Detour;
    use serde::Deserialize;
    use std::path::PathBuf;

    #[derive(Deserialize)]
    pub struct Patch {
        pub patch: String,
        pub build_id: String,
        pub size: u64,
        pub segments: Vec<Segment>,
        pub imports: Vec<Import>,
        /// Libraries that an import may come from which the program has not loaded.
        #[serde(default)]
        pub libraries: Vec<String>,
        pub eh_frame: Option<EhFrame>,
        pub detours: Vec<Detour>,
        pub thread_locals: Vec<ThreadLocal>,
        #[serde(default)]
        pub idle: Vec<Idle>,
        /// Whether to tell when its functions run for the first time.
        #[serde(default)]
        pub proof: bool,
        pub elf: Option<PathBuf>,
    }

    /// A function that no thread may be inside, and the type and the reason to tell if one is.
    #[derive(Deserialize, Clone)]
    pub struct Idle {
        pub from: u64,
        pub size: u64,
        pub symbol: String,
        pub detail: String,
    }

    #[derive(Deserialize)]
    pub struct Segment {
        pub addr: u64,
        pub mem_size: u64,
        pub offset: u64,
        pub file_size: u64,
        pub prot: Protection,
    }

    #[derive(Deserialize, Clone, Copy, PartialEq)]
    #[serde(rename_all = "lowercase")]
    pub enum Protection {
        R,
        Rw,
        Rx,
    }

    #[derive(Deserialize)]
    pub struct Import {
        pub name: String,
        pub slot: u64,
        /// It may be missing: the slot gets 0 then.
        #[serde(default)]
        pub weak: bool,
    }

    #[derive(Deserialize)]
    pub struct EhFrame {
        pub addr: u64,
        pub size: u64,
    }

    #[derive(Deserialize)]
    pub struct ThreadLocal {
        pub offset: i64,
        pub data: String,
    }
}

#[derive(Deserialize)]
pub struct Dylib {
    pub patch: String,
    pub build_id: String,
    pub size: u64,
    pub file_name: String,
    pub url: Option<String>,
    pub anchor: Anchor,
    pub jumps: Vec<Detour>,
}

#[derive(Deserialize)]
pub struct Anchor {
    pub symbol: String,
    pub addr: u64,
}

#[derive(Deserialize)]
pub struct Detour {
    pub from: u64,
    pub to: u64,
    pub size: u64,
    #[cfg(target_os = "linux")]
    pub room: Option<u64>,
    #[cfg(target_os = "linux")]
    #[serde(default)]
    pub padding: Vec<Padding>,
}

/// Bytes between two functions that belong to neither.
#[cfg(target_os = "linux")]
#[derive(Deserialize)]
pub struct Padding {
    pub addr: u64,
    pub size: u64,
}

#[derive(Serialize)]
pub struct ToDaemon<'a> {
    pub seq: u64,
    #[serde(flatten)]
    pub body: Body<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body<'a> {
    Hello(Hello<'a>),
    Applied {
        answers: u64,
        #[serde(flatten)]
        applied: Applied,
    },
    Refused {
        answers: u64,
        #[serde(flatten)]
        refusal: Refusal,
    },
    #[cfg(target_os = "linux")]
    Ran(Ran),
    /// Panics have gone through patched code since the last such message: the note has their counts.
    #[cfg(target_os = "linux")]
    Panicked {},
}

#[derive(Serialize)]
pub struct Hello<'a> {
    pub protocol: u32,
    pub proof: String,
    pub nonce: &'a str,
    pub pid: u32,
    #[serde(flatten)]
    pub program: Program<'a>,
}

#[derive(Serialize)]
pub struct Program<'a> {
    pub kind: Kind,
    pub in_place: bool,
    pub short_jumps: bool,
    pub instance: &'a str,
    pub build_id: &'a str,
    pub exe: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<Library<'a>>,
    pub target: &'a str,
    pub slide: u64,
    pub region: Region,
    pub thread_locals: ThreadLocals,
    pub page_size: u64,
    pub patches: Vec<&'a str>,
}

/// The library that is patched in a program.
#[derive(Serialize)]
pub struct Library<'a> {
    pub path: Cow<'a, str>,
    pub tls_module: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[cfg(target_os = "linux")]
    Image,
    Dylib,
}

#[derive(Serialize)]
pub struct Region {
    pub addr: u64,
    pub size: u64,
    pub slot_size: u64,
    pub next: u64,
}

#[derive(Serialize, Default)]
pub struct ThreadLocals {
    pub offset: i64,
    pub size: u64,
}

#[derive(Serialize)]
pub struct Applied {
    pub next: u64,
    pub threads: usize,
    pub timings_us: Timings,
    pub on_stack: Vec<OnStack>,
    /// Whether first executions will be told.
    pub proof: bool,
}

/// Functions of a patch that have run for the first time.
#[cfg(target_os = "linux")]
#[derive(Serialize)]
pub struct Ran {
    pub patch: String,
    pub from: Vec<u64>,
    /// From the patch's coming into force to the look that found it.
    pub after_us: u64,
    /// Since the look before that.
    pub within_us: u64,
}

#[derive(Serialize)]
pub struct Timings {
    pub verify: u64,
    pub copy: u64,
    pub park: u64,
    pub total: u64,
}

#[derive(Serialize)]
pub struct OnStack {
    pub from: u64,
    pub threads: Vec<String>,
}

#[derive(Serialize, Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
    pub symbol: Option<String>,
    /// The function that it is about, where its name is not known here.
    pub from: Option<u64>,
}

#[derive(Serialize, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Hash,
    BuildId,
    Address,
    Import,
    #[cfg(target_os = "linux")]
    Layout,
    Load,
    #[cfg(any(target_os = "linux", windows))]
    Memory,
    #[cfg(any(target_os = "linux", windows))]
    Park,
    #[cfg(target_os = "linux")]
    TooShort,
    Malformed,
    UnknownPatch,
}

impl Reason {
    /// A refusal for this reason; `detail` says what is wrong with which thing.
    pub fn because(self, detail: impl Into<String>) -> Refusal {
        Refusal { reason: self, detail: detail.into(), symbol: None, from: None }
    }
}
