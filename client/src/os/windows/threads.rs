//! Stops all other threads of the process, and lets them go on.
//!
//! While a [`Suspended`] exists nothing here or in its user may allocate, lock or panic: a suspended thread may hold the
//! heap's lock.

use super::api::{self, Context, Handle, NtGetNextThread, NtQueryInformationThread, ThreadBasics};
use std::mem::{self, transmute};
use std::ops::Range;
use std::{ptr, slice};

/// The system's functions for which there may be no import library.
#[derive(Clone, Copy)]
pub struct System {
    next_thread: NtGetNextThread,
    query_thread: NtQueryInformationThread,
}

impl System {
    pub fn find() -> Option<System> {
        let ntdll: Vec<u16> = "ntdll.dll\0".encode_utf16().collect();
        unsafe {
            let ntdll = api::GetModuleHandleW(ntdll.as_ptr());
            let next_thread = api::GetProcAddress(ntdll, b"NtGetNextThread\0".as_ptr());
            let query_thread = api::GetProcAddress(ntdll, b"NtQueryInformationThread\0".as_ptr());
            (!next_thread.is_null() && !query_thread.is_null())
                .then(|| System { next_thread: transmute(next_thread), query_thread: transmute(query_thread) })
        }
    }
}

/// There are more threads than there is room for.
pub struct Crowded;

pub struct Thread {
    handle: Handle,
    id: u32,
}

impl Thread {
    /// The registers with which it will go on, once it is suspended.
    pub fn context(&self) -> Option<Context> {
        let mut context: Context = unsafe { mem::zeroed() };
        context.flags = api::CONTEXT_FULL;
        (unsafe { api::GetThreadContext(self.handle, &mut context) } != 0).then_some(context)
    }

    /// Where its stack is.
    pub fn stack(&self, system: System) -> Option<Range<u64>> {
        const BASIC: u32 = 0;
        let mut basics: ThreadBasics = unsafe { mem::zeroed() };
        let size = mem::size_of::<ThreadBasics>() as u32;
        let status = unsafe { (system.query_thread)(self.handle, BASIC, &mut basics, size, ptr::null_mut()) };
        if status < 0 {
            return None;
        }
        let block = unsafe { basics.teb.as_ref() }?;
        Some(block.stack_limit..block.stack_base)
    }

    /// Its name, or else its number. Not to be called while threads are suspended.
    pub fn name(&self) -> String {
        let mut text = ptr::null_mut();
        if unsafe { api::GetThreadDescription(self.handle, &mut text) } < 0 || text.is_null() {
            return self.id.to_string();
        }
        let length = (0..).take_while(|&at| unsafe { *text.add(at) } != 0).count();
        let name = String::from_utf16_lossy(unsafe { slice::from_raw_parts(text, length) });
        unsafe { api::LocalFree(text.cast()) };
        if name.is_empty() {
            self.id.to_string()
        } else {
            name
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        unsafe { api::CloseHandle(self.handle) };
    }
}

/// All other threads stand still; they go on when this is dropped.
pub struct Suspended<'a> {
    threads: &'a [Thread],
}

impl Suspended<'_> {
    /// Stops all other threads, or none, and writes down which they are; there is room in `threads` for as many as it has
    /// capacity.
    pub fn all(system: System, threads: &mut Vec<Thread>) -> Result<Suspended<'_>, Crowded> {
        threads.clear();
        let result = loop {
            let known = threads.len();
            match suspend_new(system, threads) {
                // A thread that ran on may have started another: done when a look around finds nobody new.
                Ok(()) if threads.len() == known => break Ok(()),
                Ok(()) => {}
                Err(crowded) => break Err(crowded),
            }
        };
        let suspended = Suspended { threads };
        result.map(|()| suspended)
    }

    pub fn threads(&self) -> &[Thread] {
        self.threads
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        for thread in self.threads {
            unsafe { api::ResumeThread(thread.handle) };
        }
    }
}

/// Stops the threads that are not in the list yet.
fn suspend_new(system: System, threads: &mut Vec<Thread>) -> Result<(), Crowded> {
    let access = api::THREAD_SUSPEND_RESUME | api::THREAD_GET_CONTEXT | api::THREAD_QUERY_INFORMATION;
    let own = unsafe { api::GetCurrentThreadId() };
    let mut last = ptr::null_mut();
    let mut passed_over = None; // its handle is needed to get the next one
    loop {
        let mut handle = ptr::null_mut();
        if unsafe { (system.next_thread)(api::GetCurrentProcess(), last, access, 0, 0, &mut handle) } < 0 {
            return Ok(());
        }
        last = handle;
        drop(passed_over.take());
        let thread = Thread { handle, id: unsafe { api::GetThreadId(handle) } };
        let is_known = thread.id == own || threads.iter().any(|known| known.id == thread.id);
        if !is_known && threads.len() == threads.capacity() {
            return Err(Crowded);
        }
        // A thread that is ending cannot be suspended, and need not be.
        if is_known || unsafe { api::SuspendThread(handle) } == u32::MAX {
            passed_over = Some(thread);
        } else {
            threads.push(thread);
        }
    }
}
