//! The client on Android, where the program is a shared library that the system's launcher has loaded.
//!
//! Apps may not make their code writable: only hot calls reach patches.

use crate::daemon::Daemon;
use crate::dl::Handle;
use crate::dylib::{Dylibs, Program};
use crate::hex::random_hex;
use crate::host::Module;
use crate::jump::Calls;
use crate::patcher::Patcher;
use crate::{library_file, start, STACK_SIZE, THREAD_NAME};
use std::env::consts::ARCH;
use std::ffi::{c_char, c_int, c_void, CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::{mem, thread};

/// Every process that the program has been loaded into is its own.
pub fn is_candidate(_: Option<&OsStr>) -> bool {
    true
}

/// Whether the caller is the first client of this process: nothing preloads another one here.
pub fn claim_process() -> bool {
    true
}

pub struct Prepared {
    module: Module,
    instance: String,
}

impl Prepared {
    pub fn new(_: &Daemon) -> Option<Prepared> {
        let module = Module::containing(own_code())?;
        Some(Prepared { module, instance: random_hex::<16>().ok()? })
    }

    /// To be called on the client's thread.
    pub fn into_patcher(self) -> io::Result<Box<dyn Patcher>> {
        let exe = own_file()?;
        let program = Program {
            build_id: self.module.build_id(Path::new(&exe))?,
            exe,
            target: format!("{ARCH}-linux-android"),
            slide: self.module.slide,
            code: self.module.code,
            page_size: unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 },
        };
        Ok(Box::new(Dylibs::new(program, self.instance, Calls::default())))
    }
}

/// An address in the library that this code was linked into.
fn own_code() -> u64 {
    start as *const () as u64
}

/// The file of that library.
fn own_file() -> io::Result<String> {
    unsafe {
        let mut found: libc::Dl_info = mem::zeroed();
        if libc::dladdr(own_code() as *const c_void, &mut found) == 0 || found.dli_fname.is_null() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(CStr::from_ptr(found.dli_fname).to_string_lossy().into_owned())
    }
}

pub fn spawn(client: impl FnOnce() + Send + 'static) -> Option<()> {
    thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK_SIZE).spawn(client).ok().map(drop)
}

/// A loaded shared library.
pub struct Library {
    handle: Handle,
    /// Keeps the path alive by which debuggers and symbolizers find the file.
    _file: File,
}

impl Library {
    /// Apps may not load what lies in a directory that they can write to, but they may load files in memory.
    pub fn load(file_name: &str, bytes: &[u8]) -> Result<Library, String> {
        if !library_file::is_whole(bytes) {
            return Err("it is not a whole ELF file".to_owned());
        }
        let mut file = library_file::in_memory(file_name).map_err(|error| error.to_string())?;
        file.write_all(bytes).map_err(|error| error.to_string())?;
        let name = CString::new(file_name).map_err(|error| error.to_string())?;
        let extra = Extra { flags: USE_LIBRARY_FD, library_fd: file.as_raw_fd(), ..unsafe { mem::zeroed() } };
        let flags = libc::RTLD_NOW | libc::RTLD_LOCAL;
        let handle = unsafe { Handle::checked(android_dlopen_ext(name.as_ptr(), flags, &extra)) }?;
        Ok(Library { handle, _file: file })
    }

    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.handle.symbol(name)
    }

    /// The executable parts of the library that `addr` lies in.
    pub fn code_around(&self, addr: u64) -> Vec<Range<u64>> {
        Module::containing(addr).map(|module| module.code).unwrap_or_default()
    }
}

const USE_LIBRARY_FD: u64 = 0x10;

/// `android_dlextinfo`. Source: Android NDK, `android/dlext.h`.
#[repr(C)]
struct Extra {
    flags: u64,
    reserved_addr: *mut c_void,
    reserved_size: usize,
    relro_fd: c_int,
    library_fd: c_int,
    library_fd_offset: i64,
    library_namespace: *mut c_void,
}

#[link(name = "dl")]
extern "C" {
    fn android_dlopen_ext(name: *const c_char, flags: c_int, extra: *const Extra) -> *mut c_void;
}
