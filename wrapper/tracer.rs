//! Writes down which files a process opens, lists, or looks for in vain. It is preloaded into rustc, where proc macros
//! read files that rustc knows nothing of, and into build scripts.
//!
//! `HOTPATCHD_TRACE` names the file to append to. Without it, and with `HOTPATCHD_TRACE_BUILD_SCRIPTS`, the process that
//! cargo started as a build script begins a trace beside its `OUT_DIR`, and its children go on with it; every other
//! process is left alone. `HOTPATCHD_TRACE_SCOPE` has a line for each directory of which is told; after a `-`, one below
//! these of which is not.
//!
//! A record is a letter, an absolute path without `.` and `..`, and a null byte:
//!
//! - `r`: opened for reading, or executed;
//! - `w`: opened for writing, what it had held before being of no interest;
//! - `l`: a directory whose entries are listed;
//! - `m`: looked for, and missing;
//! - `u`: executed, and out of sight from here on, because nothing can be preloaded into it (in or out of scope);
//! - `e`: a variable of the environment that was asked for (a name in place of the path).
//!
//! It can run in any program at any moment: in signal handlers, between fork and exec, with few bytes of stack left. So
//! it allocates nothing, takes no lock, makes its own system calls without touching errno, and keeps no descriptor.
//! It has no Rust standard library in it, and needs of libc only what every libc has.

#![no_std]

use core::arch::asm;
use core::ffi::{c_char, c_int, c_uint, c_void, CStr};
use core::mem::transmute;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};

const AT_FDCWD: c_int = -100;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;
const ENOENT: c_int = 2;
const ENOTDIR: c_int = 20;
const ENOSYS: c_int = 38;
const O_ACCMODE: c_int = 0o3;
const O_WRONLY: c_int = 0o1;
const O_CREAT: c_int = 0o100;
const O_EXCL: c_int = 0o200;
const O_TRUNC: c_int = 0o1000;
const O_APPEND: c_int = 0o2000;
const O_CLOEXEC: c_int = 0o2_000_000;
#[cfg(target_arch = "x86_64")]
const O_DIRECTORY: c_int = 0o200_000;
#[cfg(target_arch = "aarch64")]
const O_DIRECTORY: c_int = 0o40_000;
const PATH_MAX: usize = 4096;
const VARIABLES: &[u8] = b"CARGO_PKG_";
const TRACE_NAME: &[u8] = b"/hotpatchd-trace\0";

#[link(name = "c")]
extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    fn __errno_location() -> *mut c_int;
    static environ: *const *const c_char;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        unsafe { syscall(number::EXIT_GROUP, [127, 0, 0, 0, 0]) };
    }
}

/// Source: the kernel's `syscall_64.tbl` and `asm-generic/unistd.h`.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const PREAD: usize = 17;
    pub const GETCWD: usize = 79;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const READLINKAT: usize = 267;
    pub const FACCESSAT: usize = 269;
    pub const STATX: usize = 332;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const GETCWD: usize = 17;
    pub const FACCESSAT: usize = 48;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PREAD: usize = 67;
    pub const READLINKAT: usize = 78;
    pub const EXIT_GROUP: usize = 94;
    pub const STATX: usize = 291;
}

/// The result, or a negative error number.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: usize, args: [usize; 5]) -> isize {
    let result;
    asm!(
        "syscall",
        inlateout("rax") number as isize => result,
        in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
        lateout("rcx") _, lateout("r11") _,
        options(nostack),
    );
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: usize, args: [usize; 5]) -> isize {
    let result;
    asm!(
        "svc 0",
        in("x8") number, inlateout("x0") args[0] as isize => result,
        in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4],
        options(nostack),
    );
    result
}

unsafe fn sys_open(path: *const u8, flags: c_int) -> isize {
    let args = [AT_FDCWD as usize, path as usize, (flags | O_CLOEXEC) as usize, 0o600, 0];
    syscall(number::OPENAT, args)
}

unsafe fn sys_close(descriptor: isize) {
    syscall(number::CLOSE, [descriptor as usize, 0, 0, 0, 0]);
}

/// A C string of limited length; `None` instead of one that is cut off.
struct Text {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl Text {
    const fn new() -> Self {
        Self { bytes: [0; PATH_MAX], len: 0 }
    }

    fn push(&mut self, more: &[u8]) -> Option<()> {
        // One byte is left for the null byte at the end.
        let room = self.bytes.get_mut(self.len..PATH_MAX - 1)?.get_mut(..more.len())?;
        room.copy_from_slice(more);
        self.len += more.len();
        Some(())
    }

    fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// With the null byte.
    fn terminated(&mut self) -> &[u8] {
        if let Some(end) = self.bytes.get_mut(self.len) {
            *end = 0;
        }
        self.bytes.get(..=self.len).unwrap_or(&[])
    }

    /// Goes on from the directory that this text names to where a path leads, by its letters alone.
    fn walk(&mut self, path: &[u8], first: usize) -> Option<()> {
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    let shorter = self.get().iter().rposition(|byte| *byte == b'/');
                    self.len = shorter.unwrap_or(0).max(first);
                }
                name => {
                    self.push(b"/")?;
                    self.push(name)?;
                }
            }
        }
        Some(())
    }
}

unsafe fn bytes_of<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        &[]
    } else {
        CStr::from_ptr(text).to_bytes()
    }
}

unsafe fn variable<'a>(mut list: *const *const c_char, name: &[u8]) -> Option<&'a [u8]> {
    while !list.is_null() && !(*list).is_null() {
        if let Some(b"=") = bytes_of(*list).strip_prefix(name).and_then(|rest| rest.get(..1)) {
            return bytes_of(*list).get(name.len() + 1..);
        }
        list = list.add(1);
    }
    None
}

/// Text that is set once, before anybody reads it.
struct Setting {
    bytes: [AtomicU64; PATH_MAX / 8],
    len: AtomicUsize,
}

impl Setting {
    const fn new() -> Self {
        #[allow(clippy::declare_interior_mutable_const)]
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Self { bytes: [ZERO; PATH_MAX / 8], len: AtomicUsize::new(0) }
    }

    fn set(&self, text: &[u8]) -> Option<()> {
        if text.len() >= PATH_MAX {
            return None;
        }
        for (place, chunk) in self.bytes.iter().zip(text.chunks(8)) {
            let mut word = [0; 8];
            word.get_mut(..chunk.len())?.copy_from_slice(chunk);
            place.store(u64::from_ne_bytes(word), Relaxed);
        }
        self.len.store(text.len(), Relaxed);
        Some(())
    }

    /// A null byte follows.
    fn get(&self) -> &[u8] {
        // They are not written to again once `ACTIVE` is set.
        unsafe { core::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len.load(Relaxed)) }
    }
}

static ACTIVE: AtomicBool = AtomicBool::new(false);
static TRACE: Setting = Setting::new();
static SCOPE: Setting = Setting::new();

/// What was told already; a record whose place another took is told again.
static TOLD: [AtomicU64; 2048] = {
    #[allow(clippy::declare_interior_mutable_const)]
    const NOTHING: AtomicU64 = AtomicU64::new(0);
    [NOTHING; 2048]
};

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn is_in_scope(path: &[u8]) -> bool {
    let mut inside = false;
    for line in SCOPE.get().split(|byte| *byte == b'\n') {
        match line.strip_prefix(b"-") {
            Some(excluded) if is_below(path, excluded) => return false,
            None if !line.is_empty() && is_below(path, line) => inside = true,
            _ => {}
        }
    }
    inside
}

/// Whether it is new.
fn remember(record: &[u8]) -> bool {
    // FNV-1a
    let hash = record
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let place = TOLD.get(hash as usize % TOLD.len());
    place.is_some_and(|place| place.swap(hash, Relaxed) != hash)
}

unsafe fn tell(record: &mut Text) {
    let record = record.terminated();
    if !remember(record) {
        return;
    }
    let file = sys_open(TRACE.get().as_ptr(), O_WRONLY | O_APPEND | O_CREAT);
    if file >= 0 {
        syscall(number::WRITE, [file as usize, record.as_ptr() as usize, record.len(), 0, 0]);
        sys_close(file);
    }
}

/// Tells of a path, relative to an open directory, if it is in scope.
#[inline(never)]
unsafe fn tell_path(kind: u8, directory: c_int, path: *const c_char) {
    let path = bytes_of(path);
    if path.is_empty() {
        return;
    }
    let mut record = Text::new();
    let told = (|| {
        record.push(&[kind])?;
        if !path.starts_with(b"/") {
            push_directory(&mut record, directory)?;
        }
        record.walk(path, 1)
    })();
    if told.is_some() && record.get().get(1..).is_some_and(is_in_scope) {
        tell(&mut record);
    }
}

unsafe fn push_directory(text: &mut Text, directory: c_int) -> Option<()> {
    let room = text.bytes.get_mut(text.len..PATH_MAX - 1)?;
    let (place, size) = (room.as_mut_ptr() as usize, room.len());
    let length = if directory == AT_FDCWD {
        // The null byte counts.
        syscall(number::GETCWD, [place, size, 0, 0, 0]) - 1
    } else {
        let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
        let mut digits = 1;
        while directory / 10_i32.pow(digits) > 0 && digits < 9 {
            digits += 1;
        }
        for (index, power) in (0..digits).rev().enumerate() {
            *link.get_mut(14 + index)? = b'0' + (directory / 10_i32.pow(power) % 10) as u8;
        }
        syscall(number::READLINKAT, [AT_FDCWD as usize, link.as_ptr() as usize, place, size, 0])
    };
    let length = usize::try_from(length).ok()?;
    // The root is the only one that ends in a slash; what follows begins with one.
    text.len += if length == 1 { 0 } else { length };
    Some(())
}

/// Tells of an attempt to open a file.
unsafe fn tell_open(directory: c_int, path: *const c_char, flags: c_int, worked: bool) {
    if !ACTIVE.load(Acquire) {
        return;
    }
    let writes = flags & O_ACCMODE != 0;
    let kind = if !worked {
        if !is_missing() || flags & O_CREAT != 0 {
            return;
        }
        b'm'
    } else if flags & O_DIRECTORY != 0 && !writes {
        b'l'
    } else if writes && (flags & O_TRUNC != 0 || flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL) {
        b'w'
    } else if flags & O_ACCMODE == O_WRONLY {
        return;
    } else {
        b'r'
    };
    tell_path(kind, directory, path);
}

/// Tells of an answer that something is missing.
unsafe fn tell_probe(directory: c_int, path: *const c_char, result: c_int) {
    if result != 0 && ACTIVE.load(Acquire) && is_missing() {
        tell_path(b'm', directory, path);
    }
}

unsafe fn is_missing() -> bool {
    matches!(*__errno_location(), ENOENT | ENOTDIR)
}

/// Tells of a program that is about to be executed.
unsafe fn tell_program(path: *const c_char, environment: *const *const c_char) {
    if !ACTIVE.load(Acquire) || path.is_null() {
        return;
    }
    tell_path(b'r', AT_FDCWD, path);
    let preloads =
        variable(environment, b"LD_PRELOAD").is_some() && variable(environment, b"HOTPATCHD_TRACE").is_some();
    if !preloads || !is_traceable(path.cast(), 0) {
        let mut record = Text::new();
        if record.push(b"u").and_then(|()| record.push(bytes_of(path))).is_some() {
            tell(&mut record);
        }
    }
}

/// As `tell_program`, for a program that is looked for on PATH.
#[inline(never)]
unsafe fn tell_program_on_path(name: *const c_char, environment: *const *const c_char) {
    if !ACTIVE.load(Acquire) || name.is_null() {
        return;
    }
    if bytes_of(name).contains(&b'/') {
        return tell_program(name, environment);
    }
    let mut path = Text::new();
    for directory in variable(environ, b"PATH").unwrap_or(b"/bin:/usr/bin").split(|byte| *byte == b':') {
        path.len = 0;
        let made = path.push(directory).and_then(|()| path.push(b"/")).and_then(|()| path.push(bytes_of(name)));
        let place = path.terminated().as_ptr();
        const X_OK: usize = 1;
        if made.is_some() && syscall(number::FACCESSAT, [AT_FDCWD as usize, place as usize, X_OK, 0, 0]) == 0 {
            return tell_program(place.cast(), environment);
        }
    }
}

/// Whether a library can be preloaded into a program: it has a dynamic loader, is of this machine, and gets no
/// privileges. True as well for what cannot be read.
unsafe fn is_traceable(path: *const u8, depth: usize) -> bool {
    let file = sys_open(path, 0);
    if file < 0 {
        return true;
    }
    let traceable = is_file_traceable(file as usize, depth);
    sys_close(file);
    traceable
}

unsafe fn is_file_traceable(file: usize, depth: usize) -> bool {
    // `struct statx`: the mode is at offset 28.
    let mut stat = [0_u8; 256];
    const AT_EMPTY_PATH: usize = 0x1000;
    const STATX_MODE: usize = 2;
    const SET_ID: u16 = 0o6000;
    let empty = b"\0".as_ptr() as usize;
    syscall(number::STATX, [file, empty, AT_EMPTY_PATH, STATX_MODE, stat.as_mut_ptr() as usize]);
    if u16_at(&stat, 28) & SET_ID != 0 {
        return false;
    }
    let mut head = [0_u8; 1024];
    let read = syscall(number::READ, [file, head.as_mut_ptr() as usize, head.len() - 1, 0, 0]);
    if read > 2 && head.starts_with(b"#!") && depth == 0 {
        return is_interpreter_traceable(&mut head);
    }
    if read < 64 || !head.starts_with(b"\x7fELF") {
        return true;
    }
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    const ELFCLASS64: u8 = 2;
    if u16_at(&head, 18) != MACHINE || head[4] != ELFCLASS64 {
        return false;
    }
    // Source: elf(5): `e_phoff` at 32, `e_phentsize` at 54, `e_phnum` at 56; `p_type` comes first.
    let offset = u64::from_ne_bytes([head[32], head[33], head[34], head[35], head[36], head[37], head[38], head[39]]);
    let (size, count) = (u64::from(u16_at(&head, 54)), u64::from(u16_at(&head, 56)));
    const PT_INTERP: u32 = 3;
    for index in 0..count {
        let mut kind = [0_u8; 4];
        let place = (offset + index * size) as usize;
        if syscall(number::PREAD, [file, kind.as_mut_ptr() as usize, kind.len(), place, 0]) != 4 {
            return true;
        }
        if u32::from_ne_bytes(kind) == PT_INTERP {
            return true;
        }
    }
    false
}

unsafe fn is_interpreter_traceable(head: &mut [u8; 1024]) -> bool {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = head.iter().skip(2).position(|byte| !is_space(byte)).map(|index| index + 2) else {
        return true;
    };
    let Some(end) = head.iter().skip(start).position(|byte| is_space(byte) || matches!(byte, b'\n' | 0)) else {
        return true;
    };
    if let Some(place) = head.get_mut(start + end) {
        *place = 0;
    }
    is_traceable(head.as_ptr().wrapping_add(start), 1)
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    match bytes.get(offset..offset + 2) {
        Some(&[low, high]) => u16::from_ne_bytes([low, high]),
        _ => 0,
    }
}

/// The function of a name that a program would call without this library.
struct Next {
    name: &'static str,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static str) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    unsafe fn find(&self) -> *mut c_void {
        let mut function = self.found.load(Relaxed);
        if function.is_null() {
            function = dlsym(RTLD_NEXT, self.name.as_ptr().cast());
            self.found.store(function, Relaxed);
        }
        function
    }
}

/// Defines functions that call libc's of the same name and then look at what came of it. Where libc has none, which
/// only a program notices that asks for it by name, they fail as the kernel does.
macro_rules! interpose {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty, failing with $failure:expr;
       before $before:expr; after |$value:ident| $after:expr;)*) => {$(
        mod $name {
            pub static NEXT: super::Next = super::Next::new(concat!(stringify!($name), "\0"));
        }
        /// # Safety
        /// As libc's.
        #[no_mangle]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            let function = $name::NEXT.find();
            if function.is_null() {
                *__errno_location() = ENOSYS;
                return $failure;
            }
            $before;
            let function: unsafe extern "C" fn($($type),*) -> $result = transmute(function);
            let $value = function($($arg),*);
            $after;
            $value
        }
    )*};
}

// Programs call some of these with fewer arguments, or through a prototype with `...`: in both machines' calling
// conventions on Linux a word more is of no consequence.
macro_rules! opens {
    ($($name:ident)*) => { interpose! {$(
        fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int, failing with -1;
            before (); after |file| tell_open(AT_FDCWD, path, flags, file >= 0);
    )*} };
}
macro_rules! opens_at {
    ($($name:ident)*) => { interpose! {$(
        fn $name(directory: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int, failing with -1;
            before (); after |file| tell_open(directory, path, flags, file >= 0);
    )*} };
}
macro_rules! creates {
    ($($name:ident)*) => { interpose! {$(
        fn $name(path: *const c_char, mode: c_uint) -> c_int, failing with -1;
            before (); after |file| tell_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, file >= 0);
    )*} };
}
macro_rules! opens_streams {
    ($($name:ident)*) => { interpose! {$(
        fn $name(path: *const c_char, mode: *const c_char) -> *mut c_void, failing with ptr::null_mut();
            before (); after |stream| tell_open(AT_FDCWD, path, stream_flags(mode), !stream.is_null());
    )*} };
}
macro_rules! probes {
    ($($name:ident($($arg:ident: $type:ty),*) of ($directory:expr, $path:expr);)*) => { interpose! {$(
        fn $name($($arg: $type),*) -> c_int, failing with -1;
            before (); after |result| tell_probe($directory, $path, result);
    )*} };
}

unsafe fn stream_flags(mode: *const c_char) -> c_int {
    match bytes_of(mode).first() {
        Some(b'w') => O_WRONLY | O_CREAT | O_TRUNC,
        Some(b'a') => O_WRONLY | O_CREAT,
        _ => 0,
    }
}

opens! { open open64 __open_2 __open64_2 }
opens_at! { openat openat64 __openat_2 __openat64_2 }
creates! { creat creat64 }
opens_streams! { fopen fopen64 }
probes! {
    access(path: *const c_char, mode: c_int) of (AT_FDCWD, path);
    eaccess(path: *const c_char, mode: c_int) of (AT_FDCWD, path);
    euidaccess(path: *const c_char, mode: c_int) of (AT_FDCWD, path);
    faccessat(directory: c_int, path: *const c_char, mode: c_int, flags: c_int) of (directory, path);
    stat(path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    stat64(path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    lstat(path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    lstat64(path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    fstatat(directory: c_int, path: *const c_char, result: *mut c_void, flags: c_int) of (directory, path);
    fstatat64(directory: c_int, path: *const c_char, result: *mut c_void, flags: c_int) of (directory, path);
    statx(directory: c_int, path: *const c_char, flags: c_int, mask: c_uint, result: *mut c_void) of (directory, path);
    __xstat(version: c_int, path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    __xstat64(version: c_int, path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    __lxstat(version: c_int, path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
    __lxstat64(version: c_int, path: *const c_char, result: *mut c_void) of (AT_FDCWD, path);
}

type Strings = *const *const c_char;
type SpawnData = *const c_void;
interpose! {
    fn opendir(path: *const c_char) -> *mut c_void, failing with ptr::null_mut();
        before (); after |stream| tell_open(AT_FDCWD, path, O_DIRECTORY, !stream.is_null());
    fn getenv(name: *const c_char) -> *mut c_char, failing with ptr::null_mut();
        before (); after |_value| tell_variable(name);
    fn secure_getenv(name: *const c_char) -> *mut c_char, failing with ptr::null_mut();
        before (); after |_value| tell_variable(name);
    fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int, failing with -1;
        before tell_program(path, envp); after |_result| ();
    fn execv(path: *const c_char, argv: Strings) -> c_int, failing with -1;
        before tell_program(path, environ); after |_result| ();
    fn execvp(name: *const c_char, argv: Strings) -> c_int, failing with -1;
        before tell_program_on_path(name, environ); after |_result| ();
    fn execvpe(name: *const c_char, argv: Strings, envp: Strings) -> c_int, failing with -1;
        before tell_program_on_path(name, envp); after |_result| ();
    fn posix_spawn(pid: *mut c_int, path: *const c_char, actions: SpawnData, attributes: SpawnData, argv: Strings,
                   envp: Strings) -> c_int, failing with ENOSYS;
        before tell_program(path, envp); after |_result| ();
    fn posix_spawnp(pid: *mut c_int, name: *const c_char, actions: SpawnData, attributes: SpawnData, argv: Strings,
                    envp: Strings) -> c_int, failing with ENOSYS;
        before tell_program_on_path(name, envp); after |_result| ();
}

unsafe fn tell_variable(name: *const c_char) {
    if !ACTIVE.load(Acquire) || !bytes_of(name).starts_with(VARIABLES) {
        return;
    }
    let mut record = Text::new();
    if record.push(b"e").and_then(|()| record.push(bytes_of(name))).is_some() {
        tell(&mut record);
    }
}

#[used]
#[link_section = ".init_array"]
static START: unsafe extern "C" fn() = start;

unsafe extern "C" fn start() {
    // Those that run between fork and exec, when the dynamic loader may be in the middle of something.
    for function in [&execve::NEXT, &execv::NEXT, &execvp::NEXT, &execvpe::NEXT] {
        function.find();
    }
    let ready = SCOPE.set(variable(environ, b"HOTPATCHD_TRACE_SCOPE").unwrap_or(b"")).and_then(|()| {
        match variable(environ, b"HOTPATCHD_TRACE") {
            Some(file) => TRACE.set(file),
            None => start_build_script(),
        }
    });
    ACTIVE.store(ready.is_some(), Release);
}

/// Cargo sets `OUT_DIR` for a build script and for the compile of the package, and for the latter the crate's name.
unsafe fn start_build_script() -> Option<()> {
    variable(environ, b"HOTPATCHD_TRACE_BUILD_SCRIPTS")?;
    let out_dir = variable(environ, b"OUT_DIR")?;
    if variable(environ, b"CARGO_CRATE_NAME").is_some() {
        return None;
    }
    let mut path = Text::new();
    path.walk(out_dir, 0)?;
    path.walk(b"..", 0)?;
    path.push(TRACE_NAME)?;
    TRACE.set(path.get().strip_suffix(b"\0")?)?;
    let file = sys_open(TRACE.get().as_ptr(), O_WRONLY | O_CREAT | O_TRUNC);
    if file < 0 {
        return None;
    }
    sys_close(file);
    setenv(b"HOTPATCHD_TRACE\0".as_ptr().cast(), TRACE.get().as_ptr().cast(), 1);
    Some(())
}
