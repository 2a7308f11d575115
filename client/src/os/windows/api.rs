//! What the client uses of the Windows API, as the headers of the Windows SDK declare it.

use std::ffi::c_void;

pub type Handle = *mut c_void;
pub type Module = *mut c_void;

pub const SYNCHRONIZE: u32 = 0x0010_0000;
pub const WAIT_TIMEOUT: u32 = 258;
pub const MEM_COMMIT: u32 = 0x1000;
pub const MEM_RESERVE: u32 = 0x2000;
pub const PAGE_NOACCESS: u32 = 0x01;
pub const PAGE_READWRITE: u32 = 0x04;
pub const PAGE_EXECUTE_READ: u32 = 0x20;
pub const THREAD_SUSPEND_RESUME: u32 = 0x0002;
pub const THREAD_GET_CONTEXT: u32 = 0x0008;
pub const THREAD_QUERY_INFORMATION: u32 = 0x0040;
pub const FROM_ADDRESS: u32 = 0x0004;
/// Control, integer and floating point registers.
pub const CONTEXT_FULL: u32 = 0x0010_000b;

/// `CONTEXT` of x86-64, as far as it is looked into.
#[repr(C, align(16))]
pub struct Context {
    homes: [u64; 6],
    pub flags: u32,
    mxcsr: u32,
    segments: [u16; 6],
    eflags: u32,
    debug: [u64; 6],
    before_rsp: [u64; 4],
    pub rsp: u64,
    before_rip: [u64; 11],
    pub rip: u64,
    rest: [u8; 976],
}

const _: () = assert!(std::mem::size_of::<Context>() == 1232);

/// `RUNTIME_FUNCTION`; addresses relative to the module.
#[repr(C)]
pub struct RuntimeFunction {
    pub begin: u32,
    pub end: u32,
    pub unwind: u32,
}

/// `THREAD_BASIC_INFORMATION`.
#[repr(C)]
pub struct ThreadBasics {
    pub status: i32,
    pub teb: *const Teb,
    pub process: usize,
    pub thread: usize,
    pub affinity: usize,
    pub priorities: [i32; 2],
}

/// The beginning of a thread's `TEB`.
#[repr(C)]
pub struct Teb {
    handlers: usize,
    pub stack_base: u64,
    pub stack_limit: u64,
}

pub type NtGetNextThread = unsafe extern "system" fn(Handle, Handle, u32, u32, u32, *mut Handle) -> i32;
pub type NtQueryInformationThread = unsafe extern "system" fn(Handle, u32, *mut ThreadBasics, u32, *mut u32) -> i32;

#[link(name = "kernel32")]
extern "system" {
    pub fn CloseHandle(handle: Handle) -> i32;
    pub fn GetModuleHandleW(name: *const u16) -> Module;
    pub fn GetProcAddress(module: Module, name: *const u8) -> *mut c_void;
    pub fn LoadLibraryW(path: *const u16) -> Module;
    pub fn OpenProcess(access: u32, inherit: i32, pid: u32) -> Handle;
    pub fn WaitForSingleObject(handle: Handle, milliseconds: u32) -> u32;
    pub fn FlushInstructionCache(process: Handle, addr: *const c_void, size: usize) -> i32;
    pub fn FreeLibrary(module: Module) -> i32;
    pub fn GetCurrentProcess() -> Handle;
    pub fn GetCurrentThreadId() -> u32;
    pub fn GetModuleHandleExW(flags: u32, addr: *const u16, module: *mut Module) -> i32;
    pub fn GetThreadContext(thread: Handle, context: *mut Context) -> i32;
    pub fn GetThreadDescription(thread: Handle, text: *mut *mut u16) -> i32;
    pub fn GetThreadId(thread: Handle) -> u32;
    pub fn K32EnumProcessModules(process: Handle, modules: *mut Module, size: u32, needed: *mut u32) -> i32;
    pub fn LocalFree(memory: *mut c_void) -> *mut c_void;
    pub fn ResumeThread(thread: Handle) -> u32;
    pub fn RtlVirtualUnwind(
        handler_kind: u32,
        module: u64,
        rip: u64,
        function: *const RuntimeFunction,
        context: *mut Context,
        handler_data: *mut *mut c_void,
        frame: *mut u64,
        pointers: *mut c_void,
    ) -> *mut c_void;
    pub fn SuspendThread(thread: Handle) -> u32;
    pub fn VirtualAlloc(addr: *mut c_void, size: usize, kind: u32, protection: u32) -> *mut c_void;
    pub fn VirtualProtect(addr: *mut c_void, size: usize, protection: u32, former: *mut u32) -> i32;
    pub fn WriteProcessMemory(
        process: Handle,
        addr: *mut c_void,
        bytes: *const c_void,
        size: usize,
        written: *mut usize,
    ) -> i32;
}
