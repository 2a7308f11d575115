//! The table that [`call`] looks up.

use crate::dylib::{Jump, Redirect, Rewritten};
use crate::wire::Refusal;
use std::collections::BTreeMap;
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Old address and new one, ascending.
type Table = Vec<(usize, usize)>;

/// Null until there is a patch. Tables are never freed: another thread may be looking one up.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

/// Calls `body` as the patches in force have it.
///
/// Where the client can write into the program's code, every call is led to new code anyway, and this is a plain call.
/// Where it cannot, as on a device, only what is called through this function is: put it around what a loop repeats.
pub fn call<F: FnMut() -> R, R>(mut body: F) -> R {
    let known: fn(&mut F) -> R = enter::<F, R>;
    let current = match replacement(known as usize) {
        // A patch has the same function at another address: same name, and so the same types.
        Some(addr) => unsafe { transmute::<usize, fn(&mut F) -> R>(addr) },
        None => known,
    };
    current(&mut body)
}

/// What the table has the address of: there is one for each `body`, compiled with the code around it.
#[inline(never)]
fn enter<F: FnMut() -> R, R>(body: &mut F) -> R {
    body()
}

fn replacement(known: usize) -> Option<usize> {
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() }?;
    let found = table.binary_search_by_key(&known, |&(from, _)| from).ok()?;
    Some(table[found].1)
}

/// Leads nothing but calls through [`call`] to new bodies.
#[derive(Default)]
pub struct Calls {
    /// Of each patch in force, oldest first.
    jumps: Vec<Vec<Jump>>,
}

impl Calls {
    fn publish(&self) {
        let merged: BTreeMap<usize, usize> =
            self.jumps.iter().flatten().map(|jump| (jump.from.start as usize, jump.to as usize)).collect();
        TABLE.store(Box::into_raw(Box::new(merged.into_iter().collect())), Ordering::Release);
    }
}

impl Redirect for Calls {
    const IN_PLACE: bool = false;

    fn put(&mut self, jumps: Vec<Jump>) -> Result<Rewritten, Refusal> {
        self.jumps.push(jumps);
        self.publish();
        Ok(Rewritten::default())
    }

    fn keep(&mut self, kept: usize) -> Result<Rewritten, Refusal> {
        self.jumps.truncate(kept);
        self.publish();
        Ok(Rewritten::default())
    }
}
