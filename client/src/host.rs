//! What the client must know of the program that it runs in.

#[cfg(target_os = "linux")]
use crate::announce::real_dl_iterate_phdr;
#[cfg(target_os = "linux")]
use crate::arch::DATA_IS_IN_REACH;
use crate::hex::hex;
#[cfg(target_os = "android")]
use libc::dl_iterate_phdr as real_dl_iterate_phdr;
use libc::{c_int, c_void, dl_phdr_info, size_t, PT_LOAD, PT_NOTE};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::{ffi::CStr, ffi::OsStr, os::unix::ffi::OsStrExt, os::unix::fs::MetadataExt, path::PathBuf};
use std::{fs, io, slice};

const NT_GNU_BUILD_ID: u32 = 3;
const PF_X: u32 = 1;
const PF_R: u32 = 4;
const HASHED: &str = "sha256-";

/// A loaded file as the dynamic loader sees it; all addresses are run-time addresses.
#[derive(Clone)]
pub struct Module {
    pub slide: u64,
    /// From the first to the last mapped byte.
    pub extent: Range<u64>,
    pub code: Vec<Range<u64>>,
    notes: Vec<Range<u64>>,
    /// The path that it was loaded from; empty for the executable.
    #[cfg(target_os = "linux")]
    pub path: PathBuf,
    /// The loader's number for its thread-locals, 0 if it has none.
    #[cfg(target_os = "linux")]
    pub tls_module: u64,
}

/// How often the dynamic loader has loaded and unloaded something.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, PartialEq)]
pub struct Loads(u64, u64);

#[cfg(target_os = "linux")]
impl Loads {
    pub fn so_far() -> Loads {
        unsafe extern "C" fn look(info: *mut dl_phdr_info, _size: size_t, loads: *mut c_void) -> c_int {
            *loads.cast::<Loads>() = Loads((*info).dlpi_adds, (*info).dlpi_subs);
            1
        }
        let mut loads = Loads(0, 0);
        unsafe { real_dl_iterate_phdr(Some(look), std::ptr::addr_of_mut!(loads).cast()) };
        loads
    }
}

impl Module {
    /// The loader reports the executable first.
    #[cfg(target_os = "linux")]
    pub fn of_executable() -> Option<Module> {
        Module::find(&|_| true)
    }

    /// The library with that build id; the first, where it is loaded several times.
    #[cfg(target_os = "linux")]
    pub fn of_library(build_id: &str) -> Option<Module> {
        Module::find(&|module| {
            !module.path.as_os_str().is_empty()
                && match module.noted_build_id() {
                    Some(id) => id == build_id,
                    // Without a note it takes reading the file.
                    None => build_id.starts_with(HASHED) && hashed(&module.path).is_ok_and(|id| id == build_id),
                }
        })
    }

    /// The library that was loaded from the place of this file, be it the same file or an earlier one.
    #[cfg(target_os = "linux")]
    pub fn from_file(file: &Path) -> Option<Module> {
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let wanted = identity(file)?;
        Module::find(&|module| !module.path.as_os_str().is_empty() && identity(&module.path) == Some(wanted))
    }

    /// The module that `addr` lies in.
    pub fn containing(addr: u64) -> Option<Module> {
        Module::find(&|module| module.extent.contains(&addr))
    }

    fn find(wanted: &dyn Fn(&Module) -> bool) -> Option<Module> {
        struct Search<'a> {
            wanted: &'a dyn Fn(&Module) -> bool,
            found: Option<Module>,
        }
        unsafe extern "C" fn look(info: *mut dl_phdr_info, _size: size_t, search: *mut c_void) -> c_int {
            let search = &mut *search.cast::<Search>();
            search.found = Module::parse(&*info).filter(search.wanted);
            c_int::from(search.found.is_some())
        }
        let mut search = Search { wanted, found: None };
        unsafe { real_dl_iterate_phdr(Some(look), std::ptr::addr_of_mut!(search).cast()) };
        search.found
    }

    unsafe fn parse(info: &dl_phdr_info) -> Option<Module> {
        let range_of = |header: &libc::Elf64_Phdr| {
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            start..start.wrapping_add(header.p_memsz)
        };
        let headers = slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let of_type = |kind| headers.iter().filter(move |header| header.p_type == kind);
        // A header may speak of what is in the file only.
        let is_readable = |range: &Range<u64>| {
            let mut readable = of_type(PT_LOAD).filter(|header| header.p_flags & PF_R != 0).map(range_of);
            readable.any(|loaded| loaded.start <= range.start && range.end <= loaded.end)
        };
        Some(Module {
            slide: info.dlpi_addr,
            extent: of_type(PT_LOAD).map(|h| range_of(h).start).min()?
                ..of_type(PT_LOAD).map(|h| range_of(h).end).max()?,
            code: of_type(PT_LOAD).filter(|h| h.p_flags & PF_X != 0).map(range_of).collect(),
            notes: of_type(PT_NOTE).map(range_of).filter(is_readable).collect(),
            #[cfg(target_os = "linux")]
            path: match info.dlpi_name.is_null() {
                true => PathBuf::new(),
                false => OsStr::from_bytes(CStr::from_ptr(info.dlpi_name).to_bytes()).into(),
            },
            #[cfg(target_os = "linux")]
            tls_module: info.dlpi_tls_modid as u64,
        })
    }

    /// What the region has to be near to.
    #[cfg(target_os = "linux")]
    pub fn reached(&self) -> Range<u64> {
        if !DATA_IS_IN_REACH {
            return self.extent.clone();
        }
        let first = self.code.iter().map(|range| range.start).min();
        let end = self.code.iter().map(|range| range.end).max();
        first.unwrap_or(self.extent.start)..end.unwrap_or(self.extent.end)
    }

    /// The content of the GNU build-id note in hex, or `sha256-` and the hash of the module's file.
    pub fn build_id(&self, file: &Path) -> io::Result<String> {
        self.noted_build_id().map_or_else(|| hashed(file), Ok)
    }

    fn noted_build_id(&self) -> Option<String> {
        self.notes.iter().find_map(|range| {
            let bytes = unsafe { slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize) };
            build_id_note(bytes).map(hex)
        })
    }
}

/// The build id of a file without a note.
fn hashed(file: &Path) -> io::Result<String> {
    Ok(format!("{HASHED}{}", hex(&Sha256::digest(fs::read(file)?))))
}

/// Finds the build id among ELF notes. Source: elf(5), "Notes".
fn build_id_note(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let word = |at: usize| Some(u32::from_ne_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name_size, size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let content_at = 12 + name_size.next_multiple_of(4);
        let content = notes.get(content_at..content_at + size)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return Some(content);
        }
        notes = notes.get(content_at + size.next_multiple_of(4)..)?;
    }
}

/// What `hello` says of the program, or of a library in it that is patched.
#[cfg(target_os = "linux")]
pub struct Host {
    pub module: Module,
    pub build_id: String,
    /// Of the program.
    pub exe: PathBuf,
    pub page_size: u64,
}

#[cfg(target_os = "linux")]
impl Host {
    /// The host that a module is, be it the executable or a library.
    pub fn read(module: Module) -> io::Result<Host> {
        let exe = Path::new("/proc/self/exe");
        let page_size = crate::memory::page_size();
        let file = if module.path.as_os_str().is_empty() { exe } else { &module.path };
        Ok(Host { build_id: module.build_id(file)?, exe: fs::read_link(exe)?, page_size, module })
    }

    /// The library, where it is one.
    pub fn library(&self) -> Option<&Path> {
        Some(&*self.module.path).filter(|path| !path.as_os_str().is_empty())
    }

    /// Whether the dynamic loader still has it where it was.
    pub fn is_loaded(&self) -> bool {
        self.library().is_none()
            || Module::of_library(&self.build_id).is_some_and(|module| {
                module.extent == self.module.extent && module.tls_module == self.module.tls_module
            })
    }
}
