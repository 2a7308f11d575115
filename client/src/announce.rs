//! Tells debuggers and symbolizers of patches: through `dl_iterate_phdr`, and through gdb's JIT interface.
//!
//! std's symbolizer asks `dl_iterate_phdr` once, at the first backtrace, and remembers the answer. So every slot of
//! the region is announced from the start as a module of its own, whose file the daemon writes before it sends the patch.
//! Source: backtrace-rs, `src/symbolize/gimli/libs_dl_iterate_phdr.rs`.

use crate::memory::SLOT_SIZE;
use libc::{c_char, c_int, c_void, dl_phdr_info, size_t, Elf64_Phdr};
use std::fs::File;
use std::io::{Cursor, Write};
use std::mem::{size_of, zeroed};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

type Callback = unsafe extern "C" fn(*mut dl_phdr_info, size_t, *mut c_void) -> c_int;

/// What is added to the load address of a slot, and taken from its segment's address.
///
/// Zero would be true, the patches being linked where they run, but std takes a module at zero for the static executable
/// itself and looks into that file. Symbolizers subtract the load address, and so look one byte further back than they mean
/// to. That is still inside the call instruction: they start from the last byte of it, and no call is shorter than two.
const LOAD_ADDR: u64 = 1;

/// The slots of one region.
pub struct Slots {
    region: Range<u64>,
    /// The name of each slot's file, up to its number.
    prefix: Vec<u8>,
}

impl Slots {
    pub fn of(region: Range<u64>, state: &Path, instance: &str) -> Slots {
        let mut prefix = state.as_os_str().as_bytes().to_vec();
        prefix.extend_from_slice(format!("/patches/{instance}/slot-").as_bytes());
        Slots { region, prefix }
    }
}

/// Null until there is something to announce. Never freed: another thread may be reading.
static ANNOUNCED: AtomicPtr<Vec<Slots>> = AtomicPtr::new(ptr::null_mut());

/// Announces these slots from now on, and no others.
pub fn announce(slots: Vec<Slots>) {
    ANNOUNCED.store(Box::into_raw(Box::new(slots)), Ordering::Release);
}

/// What libc's `dl_iterate_phdr` does in a static program. The client's takes its place when the program is linked.
///
/// # Safety
/// As for `dl_iterate_phdr`.
#[cfg(feature = "linked")]
pub unsafe fn real_dl_iterate_phdr(callback: Option<Callback>, data: *mut c_void) -> c_int {
    extern "C" {
        /// The ELF header: linkers define it.
        static __ehdr_start: libc::Elf64_Ehdr;
        fn __tls_get_addr(module_and_offset: *const [usize; 2]) -> *mut c_void;
    }
    let header = ptr::addr_of!(__ehdr_start);
    let headers = header.cast::<u8>().add((*header).e_phoff as usize).cast::<Elf64_Phdr>();
    let count = (*header).e_phnum;
    let of_type = |kind| std::slice::from_raw_parts(headers, count.into()).iter().find(move |h| h.p_type == kind);
    let has_thread_locals = of_type(libc::PT_TLS).is_some();
    let mut info: dl_phdr_info = zeroed();
    // The first segment begins with the header.
    info.dlpi_addr = (header as u64).wrapping_sub(of_type(libc::PT_LOAD).map_or(0, |h| h.p_vaddr - h.p_offset));
    info.dlpi_name = b"\0".as_ptr().cast();
    info.dlpi_phdr = headers;
    info.dlpi_phnum = count;
    info.dlpi_adds = 1;
    info.dlpi_tls_modid = usize::from(has_thread_locals);
    info.dlpi_tls_data = if has_thread_locals { __tls_get_addr(&[1, 0]) } else { ptr::null_mut() };
    callback.map_or(0, |callback| callback(&mut info, size_of::<dl_phdr_info>(), data))
}

/// libc's own `dl_iterate_phdr`.
///
/// # Safety
/// As for `dl_iterate_phdr`.
#[cfg(not(feature = "linked"))]
pub unsafe fn real_dl_iterate_phdr(callback: Option<Callback>, data: *mut c_void) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        real = libc::dlsym(libc::RTLD_NEXT, b"dl_iterate_phdr\0".as_ptr().cast());
        REAL.store(real, Ordering::Relaxed);
    }
    match std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn(Option<Callback>, *mut c_void) -> c_int>>(real)
    {
        Some(real) => real(callback, data),
        None => 0,
    }
}

/// Takes the place of libc's function for the whole program, and reports the slots after the real modules.
///
/// # Safety
/// As for libc's function.
#[no_mangle]
pub unsafe extern "C" fn dl_iterate_phdr(callback: Option<Callback>, data: *mut c_void) -> c_int {
    let (Some(announced), Some(callback)) = (ANNOUNCED.load(Ordering::Acquire).as_ref(), callback) else {
        return real_dl_iterate_phdr(callback, data);
    };
    let mut relay = Relay { callback, data, last: zeroed() };
    match real_dl_iterate_phdr(Some(relay_module), ptr::addr_of_mut!(relay).cast()) {
        0 => announced.iter().map(|slots| slots.report(&relay)).find(|&stopped| stopped != 0).unwrap_or(0),
        stopped => stopped,
    }
}

/// Remembers the last module, whose counters of loads and unloads hold for the slots as well.
struct Relay {
    callback: Callback,
    data: *mut c_void,
    last: dl_phdr_info,
}

unsafe extern "C" fn relay_module(info: *mut dl_phdr_info, size: size_t, data: *mut c_void) -> c_int {
    let relay = &mut *data.cast::<Relay>();
    relay.last = *info;
    let mut told = relay.last;
    if is_executable(info) && is_executable_replaced() {
        told.dlpi_name = EXECUTABLE.as_ptr().cast();
    }
    (relay.callback)(&mut told, size.min(size_of::<dl_phdr_info>()), relay.data)
}

/// The running file itself, also when its path has led to a newer build since, or nowhere.
const EXECUTABLE: &[u8] = b"/proc/self/exe\0";

unsafe fn is_executable(info: *const dl_phdr_info) -> bool {
    let name = (*info).dlpi_name;
    name.is_null() || *name == 0
}

/// Whether another file has taken the place of the executable. Symbolizers that look for it by its path would find nothing.
/// Source: proc(5), on `/proc/pid/exe`.
unsafe fn is_executable_replaced() -> bool {
    const MARK: &[u8] = b" (deleted)";
    let mut path = [0u8; libc::PATH_MAX as usize + MARK.len()];
    let length = libc::readlink(EXECUTABLE.as_ptr().cast(), path.as_mut_ptr().cast(), path.len());
    usize::try_from(length).is_ok_and(|length| path[..length].ends_with(MARK))
}

impl Slots {
    unsafe fn report(&self, relay: &Relay) -> c_int {
        let mut name = [0u8; libc::PATH_MAX as usize];
        for (slot, addr) in self.region.clone().step_by(SLOT_SIZE as usize).enumerate() {
            let mut cursor = Cursor::new(&mut name[..]);
            let written = cursor.write_all(&self.prefix).and_then(|()| write!(cursor, "{slot}.elf\0"));
            if written.is_err() {
                return 0; // no file can have so long a name
            }
            let mut segment: Elf64_Phdr = zeroed();
            segment.p_type = libc::PT_LOAD;
            segment.p_flags = libc::PF_R | libc::PF_X;
            segment.p_vaddr = addr - LOAD_ADDR;
            segment.p_memsz = SLOT_SIZE;
            let mut info = relay.last;
            info.dlpi_addr = LOAD_ADDR;
            info.dlpi_name = name.as_ptr().cast::<c_char>();
            info.dlpi_phdr = &segment;
            info.dlpi_phnum = 1;
            info.dlpi_tls_modid = 0;
            info.dlpi_tls_data = ptr::null_mut();
            let stopped = (relay.callback)(&mut info, size_of::<dl_phdr_info>(), relay.data);
            if stopped != 0 {
                return stopped;
            }
        }
        0
    }
}

/// Source: gdb manual, "JIT Compilation Interface".
#[repr(C)]
pub struct JitEntry {
    next: *mut JitEntry,
    previous: *mut JitEntry,
    symfile_addr: *const c_void,
    symfile_size: u64,
}

#[repr(C)]
pub struct JitDescriptor {
    version: u32,
    action: u32,
    relevant: *mut JitEntry,
    first: *mut JitEntry,
}

const JIT_REGISTER: u32 = 1;
const JIT_UNREGISTER: u32 = 2;

#[no_mangle]
pub static mut __jit_debug_descriptor: JitDescriptor =
    JitDescriptor { version: 1, action: 0, relevant: ptr::null_mut(), first: ptr::null_mut() };

/// gdb puts a breakpoint here.
#[no_mangle]
#[inline(never)]
pub extern "C" fn __jit_debug_register_code() {
    std::hint::black_box(());
}

/// A patch that gdb knows of.
pub struct Shown(*mut JitEntry);

/// Shows the linked patch at `path` to gdb, until [`hide_from_gdb`]. A file that cannot be read is passed over: only debugging
/// suffers.
///
/// # Safety
/// Only one thread at a time may call it.
pub unsafe fn show_to_gdb(path: &Path) -> Option<Shown> {
    let file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let flags = libc::MAP_PRIVATE;
    let mapped = libc::mmap(ptr::null_mut(), size as usize, libc::PROT_READ, flags, file.as_raw_fd(), 0);
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let descriptor = ptr::addr_of_mut!(__jit_debug_descriptor);
    let next = (*descriptor).first;
    let entry =
        Box::into_raw(Box::new(JitEntry { next, previous: ptr::null_mut(), symfile_addr: mapped, symfile_size: size }));
    if !next.is_null() {
        (*next).previous = entry;
    }
    (*descriptor).first = entry;
    (*descriptor).relevant = entry;
    (*descriptor).action = JIT_REGISTER;
    __jit_debug_register_code();
    Some(Shown(entry))
}

/// Takes [`show_to_gdb`] back.
///
/// # Safety
/// Only one thread at a time may call it.
pub unsafe fn hide_from_gdb(Shown(shown): Shown) {
    let descriptor = ptr::addr_of_mut!(__jit_debug_descriptor);
    let entry = Box::from_raw(shown);
    match entry.previous.as_mut() {
        Some(previous) => previous.next = entry.next,
        None => (*descriptor).first = entry.next,
    }
    if let Some(next) = entry.next.as_mut() {
        next.previous = entry.previous;
    }
    (*descriptor).relevant = shown;
    (*descriptor).action = JIT_UNREGISTER;
    __jit_debug_register_code();
    libc::munmap(entry.symfile_addr.cast_mut(), entry.symfile_size as usize);
}
