//! The client on Windows, 64-bit x86.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("hotpatch-client knows Windows on x86-64 only: depend on it for other targets");

use crate::daemon::Daemon;
use crate::dylib::{Dylibs, Program};
use crate::hex::{hex, random_hex};
use crate::jump::Calls;
use crate::kind::Kind;
use crate::patcher::Patcher;
use crate::{STACK_SIZE, THREAD_NAME};
use sha2::{Digest, Sha256};
use std::env::consts::ARCH;
use std::ffi::{CString, OsStr};
use std::ops::Range;
use std::os::windows::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs, io, process, ptr, thread};

#[path = "windows/api.rs"]
mod api;
#[path = "windows/detours.rs"]
mod detours;
#[path = "windows/pe.rs"]
mod pe;
#[path = "windows/threads.rs"]
mod threads;
#[path = "windows/unwind.rs"]
mod unwind;

use self::detours::Detours;

/// What can be asked for, the usual one first.
const KINDS: [Kind; 2] = [Kind::Dylib, Kind::Calls];

/// Source: "Overview of x64 ABI conventions" and its ARM64 counterpart; both have pages of this size.
const PAGE_SIZE: u64 = 4096;

/// Whether this process runs the file at `host`, by whatever name, where one is given.
pub fn is_candidate(host: Option<&OsStr>) -> bool {
    let runs = |host| {
        let (host, own) = (fs::canonicalize(Path::new(host)), env::current_exe().and_then(fs::canonicalize));
        host.is_ok_and(|host| own.is_ok_and(|own| own == host))
    };
    host.map_or(true, runs)
}

/// Whether the caller is the first client of this process: nothing preloads another one here.
pub fn claim_process() -> bool {
    true
}

/// What is made ready while the addresses around the program are still free.
pub struct Prepared {
    /// Where code is to be written, and can be.
    detours: Option<Detours>,
    instance: String,
}

impl Prepared {
    pub fn new(_: &Daemon) -> Option<Prepared> {
        let detours = match Kind::asked(&KINDS) {
            Kind::Dylib => Detours::reserve(own_module()),
            Kind::Calls => None,
        };
        Some(Prepared { detours, instance: random_hex::<16>().ok()? })
    }

    /// To be called on the client's thread.
    pub fn into_patcher(self) -> io::Result<Box<dyn Patcher>> {
        let program = program()?;
        Ok(match self.detours {
            Some(detours) => Box::new(Dylibs::new(program, self.instance, detours)),
            None => Box::new(Dylibs::new(program, self.instance, Calls::default())),
        })
    }
}

/// Run-time address of the program's own module.
fn own_module() -> u64 {
    unsafe { api::GetModuleHandleW(ptr::null()) as u64 }
}

fn program() -> io::Result<Program> {
    let exe = env::current_exe()?;
    let file = fs::read(&exe)?;
    // Those in memory have the address where the loader put the module in place of the one it was linked for.
    let headers = pe::Headers::parse(&file).ok_or(io::ErrorKind::InvalidData)?;
    let addr = own_module();
    let abi = if cfg!(target_env = "gnu") { "gnu" } else { "msvc" };
    Ok(Program {
        build_id: headers.debug_id().unwrap_or_else(|| format!("sha256-{}", hex(&Sha256::digest(&file)))),
        exe: exe.to_string_lossy().into_owned(),
        target: format!("{ARCH}-pc-windows-{abi}"),
        slide: addr.wrapping_sub(headers.image_base()),
        code: unsafe { pe::Headers::of_module(addr) }.map(|headers| headers.code(addr)).unwrap_or_default(),
        page_size: PAGE_SIZE,
    })
}

pub fn spawn(client: impl FnOnce() + Send + 'static) -> Option<()> {
    thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK_SIZE).spawn(client).ok().map(drop)
}

/// A loaded DLL.
pub struct Library {
    addr: u64,
}

impl Library {
    pub fn load(file_name: &str, bytes: &[u8]) -> Result<Library, String> {
        if !pe::is_whole(bytes) {
            return Err("it is not a whole PE file".to_owned());
        }
        let path = place(file_name, bytes).map_err(|error| error.to_string())?;
        match unsafe { api::LoadLibraryW(wide(path.as_os_str()).as_ptr()) } as u64 {
            0 => Err(io::Error::last_os_error().to_string()),
            addr => Ok(Library { addr }),
        }
    }

    pub fn symbol(&self, name: &str) -> Option<u64> {
        let name = CString::new(name).ok()?;
        let found = unsafe { api::GetProcAddress(self.addr as api::Module, name.as_ptr().cast()) } as u64;
        (found != 0).then_some(found)
    }

    pub fn code_around(&self, _: u64) -> Vec<Range<u64>> {
        unsafe { pe::Headers::of_module(self.addr) }.map(|headers| headers.code(self.addr)).unwrap_or_default()
    }
}

fn wide(text: &OsStr) -> Vec<u16> {
    text.encode_wide().chain([0]).collect()
}

/// Puts a library into this process's own directory, which only this user can read. It cannot be deleted while the process
/// runs; the next one does it.
fn place(file_name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    const PREFIX: &str = "hotpatchd-";
    let directory = DIRECTORY.get_or_init(|| {
        let temp = env::temp_dir();
        for entry in fs::read_dir(&temp).into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
            if pid.is_some_and(|pid| pid == process::id() || !is_running(pid)) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        temp.join(format!("{PREFIX}{}", process::id()))
    });
    fs::create_dir_all(directory)?;
    // The loader takes two libraries of the same name for one, wherever they are.
    let path = directory.join(format!("{}-{file_name}", &hex(&Sha256::digest(bytes))[..16]));
    fs::write(&path, bytes)?;
    Ok(path)
}

fn is_running(pid: u32) -> bool {
    let process = unsafe { api::OpenProcess(api::SYNCHRONIZE, 0, pid) };
    if process.is_null() {
        return false;
    }
    let running = unsafe { api::WaitForSingleObject(process, 0) } == api::WAIT_TIMEOUT;
    unsafe { api::CloseHandle(process) };
    running
}
