//! The client on macOS and in the iOS simulator.
//!
//! Pages of signed code cannot be written: only hot calls reach patches.

use crate::daemon::Daemon;
use crate::dl::Handle;
use crate::dylib::{Dylibs, Program};
use crate::hex::{hex, random_hex};
use crate::jump::Calls;
use crate::patcher::Patcher;
use crate::{STACK_SIZE, THREAD_NAME};
use sha2::{Digest, Sha256};
use std::env::consts::ARCH;
use std::ffi::{c_void, OsStr};
use std::fs::{self, DirBuilder};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::{env, io, mem, process, ptr, slice, thread};

/// Whether this process runs the file at `host`, by whatever name, where one is given.
pub fn is_candidate(host: Option<&OsStr>) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let own = env::current_exe().ok().and_then(|exe| identity(&exe));
    let has_gained_rights = unsafe { libc::issetugid() } != 0;
    !has_gained_rights && host.map_or(true, |host| own.is_some() && identity(Path::new(host)) == own)
}

/// Whether the caller is the first client of this process: nothing preloads another one here.
pub fn claim_process() -> bool {
    true
}

pub struct Prepared {
    instance: String,
}

impl Prepared {
    pub fn new(_: &Daemon) -> Option<Prepared> {
        Some(Prepared { instance: random_hex::<16>().ok()? })
    }

    /// To be called on the client's thread.
    pub fn into_patcher(self) -> io::Result<Box<dyn Patcher>> {
        let exe = env::current_exe()?;
        let header = Header(unsafe { _dyld_get_image_header(0) });
        let build_id = match header.uuid() {
            Some(uuid) => hex(&uuid),
            None => format!("sha256-{}", hex(&Sha256::digest(fs::read(&exe)?))),
        };
        let program = Program {
            build_id,
            exe: exe.to_string_lossy().into_owned(),
            target: target(),
            slide: header.slide(),
            code: header.code(),
            page_size: unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 },
        };
        Ok(Box::new(Dylibs::new(program, self.instance, Calls::default())))
    }
}

fn target() -> String {
    match (cfg!(target_os = "macos"), ARCH) {
        (true, _) => format!("{ARCH}-apple-darwin"),
        (false, "x86_64") => format!("{ARCH}-apple-ios"),
        (false, _) => format!("{ARCH}-apple-ios-sim"),
    }
}

pub fn spawn(client: impl FnOnce() + Send + 'static) -> Option<()> {
    thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK_SIZE).spawn(client).ok().map(drop)
}

/// A loaded shared library.
pub struct Library {
    handle: Handle,
}

impl Library {
    /// From a directory that only this user can enter.
    pub fn load(file_name: &str, bytes: &[u8]) -> Result<Library, String> {
        let place = || {
            let name = format!("hotpatchd-{}-{}", process::id(), random_hex::<8>()?);
            let directory = env::temp_dir().join(name);
            DirBuilder::new().mode(0o700).create(&directory)?;
            let path = directory.join(file_name);
            fs::write(&path, bytes)?;
            Ok(path)
        };
        let path = place().map_err(|error: io::Error| error.to_string())?;
        Ok(Library { handle: Handle::open(&path.to_string_lossy())? })
    }

    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.handle.symbol(name)
    }

    /// The executable parts of the library that `addr` lies in.
    pub fn code_around(&self, addr: u64) -> Vec<Range<u64>> {
        unsafe {
            let mut found: libc::Dl_info = mem::zeroed();
            match libc::dladdr(addr as *const c_void, &mut found) {
                0 => Vec::new(),
                _ => Header(found.dli_fbase.cast()).code(),
            }
        }
    }
}

/// The header of a loaded 64-bit Mach-O file, which stays. Source: `mach-o/loader.h`.
struct Header(*const MachHeader);

#[repr(C)]
struct MachHeader {
    magic: u32,
    cpu: [u32; 2],
    kind: u32,
    command_count: u32,
    commands_size: u32,
    flags: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    command: u32,
    size: u32,
    name: [u8; 16],
    addr: u64,
    mem_size: u64,
    offset: u64,
    file_size: u64,
    max_protection: u32,
    protection: u32,
}

const LC_SEGMENT_64: u32 = 0x19;
const LC_UUID: u32 = 0x1b;
const VM_PROT_EXECUTE: u32 = 4;

extern "C" {
    fn _dyld_get_image_header(index: u32) -> *const MachHeader;
}

impl Header {
    /// Load commands with their numbers.
    fn commands(&self) -> impl Iterator<Item = (u32, &'static [u8])> {
        let (header, first) = unsafe { (&*self.0, self.0.add(1).cast::<u8>()) };
        let mut rest = unsafe { slice::from_raw_parts(first, header.commands_size as usize) };
        (0..header.command_count).map_while(move |_| {
            let word = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
            let (command, size) = (word(0)?, word(4)? as usize);
            let content = rest.get(..size.max(8))?;
            rest = &rest[content.len()..];
            Some((command, content))
        })
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        let segments = self
            .commands()
            .filter(|(command, content)| *command == LC_SEGMENT_64 && content.len() >= mem::size_of::<Segment>());
        segments.map(|(_, content)| unsafe { ptr::read_unaligned(content.as_ptr().cast()) })
    }

    /// The segment with the header in it tells where the file was linked to be.
    fn slide(&self) -> u64 {
        let text = self.segments().find(|segment| segment.offset == 0 && segment.file_size != 0);
        text.map_or(0, |segment| (self.0 as u64).wrapping_sub(segment.addr))
    }

    fn code(&self) -> Vec<Range<u64>> {
        let slide = self.slide();
        let executable = self.segments().filter(|segment| segment.protection & VM_PROT_EXECUTE != 0);
        let ranges = executable.map(|segment| {
            let start = segment.addr.wrapping_add(slide);
            start..start.wrapping_add(segment.mem_size)
        });
        ranges.collect()
    }

    fn uuid(&self) -> Option<[u8; 16]> {
        let (_, content) = self.commands().find(|(command, _)| *command == LC_UUID)?;
        content.get(8..24)?.try_into().ok()
    }
}
