//! Walks the stacks of suspended threads, by tables that were found beforehand: to ask the system for them takes locks.

use super::api::{self, Context, Module, RuntimeFunction};
use super::pe::Headers;
use std::mem::size_of;
use std::ops::Range;
use std::{ptr, slice};

const MAX_FRAMES: usize = 1024;

/// The loaded modules' tables of functions. The modules stay while this exists.
pub struct Tables(Vec<Table>);

struct Table {
    extent: Range<u64>,
    functions: &'static [RuntimeFunction],
}

impl Tables {
    pub fn find() -> Tables {
        let mut modules: Vec<Module> = vec![ptr::null_mut(); 1024];
        let size = (modules.len() * size_of::<Module>()) as u32;
        let mut needed = 0;
        let process = unsafe { api::GetCurrentProcess() };
        if unsafe { api::K32EnumProcessModules(process, modules.as_mut_ptr(), size, &mut needed) } == 0 {
            needed = 0;
        }
        modules.truncate(needed as usize / size_of::<Module>());
        Tables(modules.into_iter().filter_map(Table::pin).collect())
    }

    /// The function that `addr` lies in.
    pub fn function(&self, addr: u64) -> Option<Range<u64>> {
        let (start, function) = self.lookup(addr)?;
        Some(start + u64::from(function.begin)..start + u64::from(function.end))
    }

    /// The start of the module that `addr` lies in, and the entry of its function.
    fn lookup(&self, addr: u64) -> Option<(u64, &'static RuntimeFunction)> {
        let table = self.0.iter().find(|table| table.extent.contains(&addr))?;
        let offset = (addr - table.extent.start) as u32;
        let after = table.functions.partition_point(|function| function.begin <= offset);
        let function = table.functions.get(after.checked_sub(1)?)?;
        (offset < function.end).then_some((table.extent.start, function))
    }

    /// Calls `visit` with the address at which each frame goes on, and whether it is one that a call returns to, from the
    /// innermost frame on, as far as the stack can be followed.
    pub fn walk(&self, mut context: Context, stack: &Range<u64>, mut visit: impl FnMut(u64, bool)) {
        for depth in 0..MAX_FRAMES {
            let returns = depth > 0;
            visit(context.rip, returns);
            let is_on_stack = context.rsp >= stack.start && context.rsp < stack.end.saturating_sub(8);
            let is_in_module = self.0.iter().any(|table| table.extent.contains(&context.rip));
            if !is_on_stack || !is_in_module {
                return;
            }
            match self.lookup(context.rip - u64::from(returns)) {
                Some((module, function)) => unsafe {
                    let (mut handler_data, mut frame) = (ptr::null_mut(), 0);
                    api::RtlVirtualUnwind(
                        0,
                        module,
                        context.rip,
                        function,
                        &mut context,
                        &mut handler_data,
                        &mut frame,
                        ptr::null_mut(),
                    );
                },
                // A function without an entry has not moved the stack pointer.
                None => {
                    context.rip = unsafe { *(context.rsp as *const u64) };
                    context.rsp += 8;
                }
            }
        }
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for table in &self.0 {
            unsafe { api::FreeLibrary(table.extent.start as Module) };
        }
    }
}

impl Table {
    fn pin(module: Module) -> Option<Table> {
        let mut pinned = ptr::null_mut();
        if unsafe { api::GetModuleHandleExW(api::FROM_ADDRESS, module.cast(), &mut pinned) } == 0 {
            return None; // it has gone meanwhile
        }
        let start = pinned as u64;
        let headers = unsafe { Headers::of_module(start) };
        let (extent, functions) = headers
            .map_or((start..start, (0, 0)), |headers| (start..start + headers.image_size(), headers.functions()));
        let (offset, size) = functions;
        let functions = match offset {
            0 => &[],
            _ => unsafe {
                let first = (start + u64::from(offset)) as *const RuntimeFunction;
                slice::from_raw_parts(first, size as usize / size_of::<RuntimeFunction>())
            },
        };
        Some(Table { extent, functions })
    }
}
