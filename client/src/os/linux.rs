//! The client on Linux.

use crate::announce::{announce, Slots};
use crate::daemon::Daemon;
use crate::dl::Handle;
use crate::dylib::{Dylibs, Jump, Program, Redirect, Rewritten};
use crate::engine::Engine;
use crate::hex::{hex, random_hex};
use crate::host::{Host, Module};
use crate::hosts::Hosts;
use crate::island::{islands, ISLAND_LEN};
use crate::jump::Calls;
use crate::kind::Kind;
use crate::locals::{self, Reserve};
use crate::patcher::Patcher;
use crate::unwind::with_modules;
use crate::wire::{self, Applied, Detour, Patch, Protection, Refusal, Segment};
use crate::{arch, library_file, memory, park, STACK_SIZE, THREAD_NAME};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, mem, process, ptr, thread};

/// What can be asked for, the usual one first.
const KINDS: [Kind; 3] = [Kind::Image, Kind::Dylib, Kind::Calls];

/// Whether this process may be patched, and runs the file at `host`, by whatever name, where one is given.
pub fn is_candidate(host: Option<&OsStr>) -> bool {
    // Opened, since an emulator has its own file there for those who only look.
    let identity = |path: &Path| File::open(path)?.metadata().map(|file| (file.dev(), file.ino()));
    let runs = |host| {
        identity(Path::new(host)).is_ok_and(|host| identity(Path::new("/proc/self/exe")).is_ok_and(|own| own == host))
    };
    let has_gained_rights = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    !has_gained_rights && host.map_or(true, runs)
}

#[no_mangle]
static hotpatch_client_claimed: AtomicBool = AtomicBool::new(false);

/// Whether the caller is the first client of this process: a program that has one as a dependency may have another one
/// preloaded.
pub fn claim_process() -> bool {
    let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, b"hotpatch_client_claimed\0".as_ptr().cast()) };
    let claimed = unsafe { first.cast::<AtomicBool>().as_ref() }.unwrap_or(&hotpatch_client_claimed);
    !claimed.swap(true, Ordering::SeqCst)
}

/// What is made ready while the addresses around the program are still free.
pub struct Prepared {
    kind: Kind,
    module: Module,
    instance: String,
    region: Range<u64>,
    state: Option<PathBuf>,
    locals_offset: i64,
}

impl Prepared {
    pub fn new(daemon: &Daemon) -> Option<Prepared> {
        let kind = Kind::asked(&KINDS);
        park::choose_signal();
        let module = Module::of_executable()?;
        let region = memory::reserve(&module.reached())?;
        let instance = random_hex::<16>().ok()?;
        let state = match daemon {
            Daemon::State(state) if kind == Kind::Image => Some(state.clone()),
            _ => None,
        };
        if let Some(state) = &state {
            announce(vec![Slots::of(region.clone(), state, &instance)]);
        }
        Some(Prepared { kind, module, instance, region, state, locals_offset: locals::own_offset() })
    }

    /// To be called on the client's thread.
    pub fn into_patcher(self) -> io::Result<Box<dyn Patcher>> {
        let reserve = Reserve::find(self.locals_offset);
        separate_descriptors()?;
        let host = Host::read(self.module)?;
        let program = program(&host);
        let engine = |reserve| Engine::new(host, self.instance.clone(), self.region, reserve);
        Ok(match self.kind {
            Kind::Image => Box::new(Hosts::new(engine(reserve)?, self.state)),
            Kind::Dylib => Box::new(Dylibs::new(program, self.instance.clone(), Islands::new(engine(None)?))),
            Kind::Calls => Box::new(Dylibs::new(program, self.instance, Calls::default())),
        })
    }
}

fn program(host: &Host) -> Program {
    Program {
        build_id: host.build_id.clone(),
        exe: host.exe.to_string_lossy().into_owned(),
        target: arch::TARGET.to_owned(),
        slide: host.module.slide,
        code: host.module.code.clone(),
        page_size: host.page_size,
    }
}

/// Starts the client's thread, which takes no signals: a new thread inherits the mask of blocked ones.
pub fn spawn(client: impl FnOnce() + Send + 'static) -> Option<()> {
    unsafe {
        let (mut all, mut former) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut former);
        let spawned = thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK_SIZE).spawn(client);
        libc::pthread_sigmask(libc::SIG_SETMASK, &former, ptr::null_mut());
        spawned.ok().map(drop)
    }
}

/// Gives this thread a table of file descriptors of its own, which begins with nothing but `/dev/null` as 0, 1 and 2.
///
/// A program that closes all descriptors, or counts on their numbers, does not meet the client's; a process that it forks
/// does not inherit them; and the client keeps nothing open that the program closes.
fn separate_descriptors() -> io::Result<()> {
    if unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } != 0 {
        // A kernel before 5.9.
        if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for entry in fs::read_dir("/proc/thread-self/fd")?.collect::<Vec<_>>() {
            if let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                unsafe { libc::close(descriptor) };
            }
        }
    }
    for _ in 0..=2 {
        unsafe { libc::open(b"/dev/null\0".as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    }
    Ok(())
}

impl Engine {
    pub fn describe(&self) -> wire::Program<'_> {
        wire::Program {
            kind: wire::Kind::Image,
            in_place: true,
            short_jumps: arch::HAS_SHORT_JUMPS,
            instance: &self.instance,
            build_id: &self.host.build_id,
            exe: self.host.exe.to_string_lossy(),
            library: self
                .host
                .library()
                .map(|path| wire::Library { path: path.to_string_lossy(), tls_module: self.host.module.tls_module }),
            target: arch::TARGET,
            slide: self.host.module.slide,
            region: self.region(),
            thread_locals: self.thread_locals(),
            page_size: self.host.page_size,
            patches: self.patches(),
        }
    }
}

/// Leads calls to a library by way of the region: what it adds there is an image of nothing but far jumps.
struct Islands {
    engine: Engine,
    /// The image of each call of `put` in force.
    images: Vec<String>,
    put: u64,
}

impl Islands {
    fn new(engine: Engine) -> Islands {
        Islands { engine, images: Vec::new(), put: 0 }
    }
}

impl Redirect for Islands {
    const IN_PLACE: bool = true;

    fn put(&mut self, jumps: Vec<Jump>) -> Result<Rewritten, Refusal> {
        self.put += 1;
        let mut bytes = islands(&jumps);
        bytes.extend(self.put.to_le_bytes()); // no two images have the same bytes, and so the same name
        let size = bytes.len() as u64;
        let addr = self.engine.region().next;
        let image = Patch {
            patch: hex(&Sha256::digest(&bytes)),
            build_id: self.engine.host.build_id.clone(),
            size,
            segments: vec![Segment { addr, mem_size: size, offset: 0, file_size: size, prot: Protection::Rx }],
            imports: Vec::new(),
            libraries: Vec::new(),
            eh_frame: None,
            detours: jumps
                .iter()
                .zip((addr..).step_by(ISLAND_LEN as usize))
                .map(|(jump, to)| Detour {
                    from: jump.from.start,
                    to,
                    size: jump.from.end - jump.from.start,
                    room: None,
                    padding: Vec::new(),
                })
                .collect(),
            thread_locals: Vec::new(),
            idle: Vec::new(),
            proof: false,
            elf: None,
        };
        for (detour, body) in image.detours.iter().zip(bodies_at(&jumps)) {
            self.engine.leads_on(detour.to, body);
        }
        let rewritten = self.engine.apply(&image, &bytes)?.into();
        self.images.push(image.patch);
        Ok(rewritten)
    }

    fn keep(&mut self, kept: usize) -> Result<Rewritten, Refusal> {
        let to = kept.checked_sub(1).map(|last| &*self.images[last]);
        let rewritten = self.engine.undo(to)?.into();
        self.images.truncate(kept);
        Ok(rewritten)
    }
}

/// The functions that the jumps lead to, as far as can be told.
fn bodies_at(jumps: &[Jump]) -> Vec<Range<u64>> {
    let mut bodies = Vec::with_capacity(jumps.len());
    with_modules(|modules| {
        bodies.extend(jumps.iter().map(|jump| {
            let body = modules.iter().find_map(|module| module.function(jump.to));
            body.unwrap_or(jump.to..jump.to)
        }));
    });
    bodies
}

impl From<Applied> for Rewritten {
    fn from(applied: Applied) -> Rewritten {
        Rewritten {
            threads: applied.threads,
            parked: Duration::from_micros(applied.timings_us.park),
            on_stack: applied.on_stack,
        }
    }
}

/// A loaded shared library.
pub struct Library {
    handle: Handle,
    /// Keeps the path alive by which debuggers and symbolizers find the file.
    _file: File,
}

impl Library {
    pub fn load(file_name: &str, bytes: &[u8]) -> Result<Library, String> {
        if !library_file::is_whole(bytes) {
            return Err("it is not a whole ELF file".to_owned());
        }
        let (file, path) = place(file_name, bytes).map_err(|error| error.to_string())?;
        Ok(Library { handle: Handle::open(&path)?, _file: file })
    }

    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.handle.symbol(name)
    }

    /// The executable parts of the library that `addr` lies in.
    pub fn code_around(&self, addr: u64) -> Vec<Range<u64>> {
        Module::containing(addr).map(|module| module.code).unwrap_or_default()
    }
}

/// Puts a library where the loader can read it, and nobody else finds it.
///
/// The loader takes two libraries of the same path for one. This path goes on being this one's: the file stays open, in the
/// client's own table of descriptors.
fn place(file_name: &str, bytes: &[u8]) -> io::Result<(File, String)> {
    let mut file = library_file::in_memory(file_name).or_else(|_| nameless_file())?;
    file.write_all(bytes)?;
    let (tid, fd) = (unsafe { libc::gettid() }, file.as_raw_fd());
    let path = format!("/proc/{}/task/{tid}/fd/{fd}", process::id());
    Ok((file, path))
}

/// For kernels that are set up to refuse code in memory files.
fn nameless_file() -> io::Result<File> {
    let path = env::temp_dir().join(format!("hotpatchd-{}", random_hex::<16>()?));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o700).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}
