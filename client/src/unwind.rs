//! Walks the stacks of parked threads by the unwind tables of the program.
//!
//! Everything that allocates or locks happens in [`with_modules`] and [`Walker::new`], before the threads are parked.
//! Source: Linux Standard Base, "Exception Frames"; DWARF 5, section 6.4.

use crate::announce::real_dl_iterate_phdr;
use crate::arch::{code_address, General, HAS_LINK_REGISTER, RETURN_ADDRESS, STACK_POINTER};
use crate::memory::Memory;
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult,
    EvaluationStorage, FrameDescriptionEntry, Location, NativeEndian, ParsedEhFrameHdr, Piece, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow, Value, Vendor,
};
use libc::{c_int, c_void, dl_phdr_info, size_t, PF_X, PT_GNU_EH_FRAME, PT_LOAD};
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::{ptr, slice};

type Bytes = EndianSlice<'static, NativeEndian>;
type Fde = FrameDescriptionEntry<Bytes>;

const MAX_FRAMES: usize = 100_000;
const MAX_SCANNED_WORDS: u64 = 32 << 10;
const WINDOW_SIZE: usize = 4096;

/// Unwind tables of one range of code.
#[derive(Clone)]
pub struct Module {
    code: Range<u64>,
    eh_frame: EhFrame<Bytes>,
    index: Option<ParsedEhFrameHdr<Bytes>>,
    bases: BaseAddresses,
}

impl Module {
    /// The tables of a patch that stays mapped for ever.
    pub fn of_patch(code: Range<u64>, eh_frame_addr: u64, eh_frame: &'static [u8]) -> Module {
        Module {
            code,
            eh_frame: section(eh_frame),
            index: None,
            bases: BaseAddresses::default().set_eh_frame(eh_frame_addr),
        }
    }

    /// The tables that the loader knows of a loaded object, for each of its executable segments.
    unsafe fn of_loaded(info: &dl_phdr_info) -> Vec<Module> {
        let headers = slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let range_of = |header: &libc::Elf64_Phdr| {
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            start..start.wrapping_add(header.p_memsz)
        };
        let loaded = |header: &&libc::Elf64_Phdr| header.p_type == PT_LOAD;
        let tables = || {
            let index = range_of(headers.iter().find(|header| header.p_type == PT_GNU_EH_FRAME)?);
            let bases = BaseAddresses::default().set_eh_frame_hdr(index.start);
            let parsed = EhFrameHdr::new(bytes(&index), NativeEndian).parse(&bases, 8).ok()?;
            let gimli::Pointer::Direct(eh_frame) = parsed.eh_frame_ptr() else { return None };
            let segment = headers.iter().filter(loaded).map(range_of).find(|range| range.contains(&eh_frame))?;
            Some((parsed, eh_frame..segment.end, bases.set_eh_frame(eh_frame)))
        };
        let Some((index, eh_frame, bases)) = tables() else { return Vec::new() };
        headers
            .iter()
            .filter(|header| loaded(header) && header.p_flags & PF_X != 0)
            .map(|header| Module {
                code: range_of(header),
                eh_frame: section(bytes(&eh_frame)),
                index: Some(index.clone()),
                bases: bases.clone(),
            })
            .collect()
    }

    fn find(&self, address: u64) -> Option<Fde> {
        match self.index.as_ref().and_then(|index| index.table()) {
            Some(table) => table.fde_for_address(&self.eh_frame, &self.bases, address, EhFrame::cie_from_offset),
            None => self.eh_frame.fde_for_address(&self.bases, address, EhFrame::cie_from_offset),
        }
        .ok()
    }

    /// The function around `address`.
    pub fn function(&self, address: u64) -> Option<Range<u64>> {
        self.find(address).map(|fde| fde.initial_address()..fde.end_address())
    }
}

fn section(eh_frame: &'static [u8]) -> EhFrame<Bytes> {
    let mut section = EhFrame::new(eh_frame, NativeEndian);
    section.set_vendor(if cfg!(target_arch = "aarch64") { Vendor::AArch64 } else { Vendor::Default });
    section
}

unsafe fn bytes(range: &Range<u64>) -> &'static [u8] {
    slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize)
}

/// Calls `action` with the tables of everything loaded, and with the loader's lock held: nothing is unloaded meanwhile.
pub fn with_modules(mut action: impl FnMut(Vec<Module>)) {
    type Action<'a> = &'a mut dyn FnMut(Vec<Module>);
    unsafe extern "C" fn collect(info: *mut dl_phdr_info, _size: size_t, modules: *mut c_void) -> c_int {
        (*modules.cast::<Vec<Module>>()).extend(Module::of_loaded(&*info));
        0
    }
    // The lock is recursive: this call back holds it, the inner call lists the modules.
    unsafe extern "C" fn locked(_info: *mut dl_phdr_info, _size: size_t, action: *mut c_void) -> c_int {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let mut modules: Vec<Module> = Vec::new();
            real_dl_iterate_phdr(Some(collect), ptr::addr_of_mut!(modules).cast());
            (*action.cast::<Action>())(modules);
        }));
        1
    }
    let mut action: Action = &mut action;
    unsafe { real_dl_iterate_phdr(Some(locked), ptr::addr_of_mut!(action).cast()) };
}

/// Room for unwinding that is not on the heap.
struct Fixed;

impl UnwindContextStorage<usize> for Fixed {
    type Rules = [(Register, RegisterRule<usize>); 64];
    type Stack = [UnwindTableRow<usize, Self>; 4];
}

impl EvaluationStorage<Bytes> for Fixed {
    type Stack = [Value; 64];
    type ExpressionStack = [(Bytes, Bytes); 4];
    type Result = [Piece<Bytes>; 1];
}

/// Where a thread is, or will return to, and its registers there.
#[derive(Clone, Copy)]
pub struct Registers {
    pub at: u64,
    pub general: General,
}

/// What stacks are read from.
pub trait Source {
    /// Fills `into` from `addr` on, as far as can be read; returns the bytes read. Takes no lock, allocates nothing.
    fn read(&self, addr: u64, into: &mut [u8]) -> usize;
}

impl Source for Memory {
    fn read(&self, addr: u64, into: &mut [u8]) -> usize {
        Memory::read(self, addr, into)
    }
}

/// Walks stacks without allocating or locking.
pub struct Walker<'a> {
    modules: Vec<Module>,
    context: Box<UnwindContext<usize, Fixed>>,
    stack: Window<'a>,
}

enum Step {
    /// The registers of the caller; whether it was interrupted there, instead of having made a call.
    Caller(Registers, bool),
    /// There is no caller.
    Outermost,
}

impl<'a> Walker<'a> {
    pub fn new(modules: Vec<Module>, memory: &'a dyn Source) -> Walker<'a> {
        let stack = Window { memory, bytes: [0; WINDOW_SIZE], start: 0, len: 0 };
        Walker { modules, context: Box::new(UnwindContext::new_in()), stack }
    }

    /// The function around `address`, in any module.
    pub fn function(&self, address: u64) -> Option<Range<u64>> {
        self.modules.iter().find_map(|module| module.function(address))
    }

    /// Calls `visit` with each address at which the thread is or to which it will return, and whether it is one that
    /// a call will return to.
    ///
    /// Where the tables end too early, every word further up the stack counts as an address to return to. The stack of a
    /// thread that libc has started ends below its thread pointer; beyond are other threads' stacks.
    pub fn walk(&mut self, mut registers: Registers, thread_pointer: u64, mut visit: impl FnMut(u64, bool)) {
        let mut frames = 0;
        let whole = self.unwind(&mut registers, |at, returns| {
            visit(at, returns);
            frames += 1;
            frames < MAX_FRAMES
        });
        if whole {
            return;
        }
        let start = registers.general[STACK_POINTER];
        let words = match thread_pointer.checked_sub(start) {
            Some(size) => MAX_SCANNED_WORDS.min(size / 8),
            None => MAX_SCANNED_WORDS,
        };
        for word in 0..words {
            match self.stack.read(start.wrapping_add(word * 8)) {
                Some(value) => visit(code_address(value), true),
                None => return,
            }
        }
    }

    /// Calls `visit` as [`Walker::walk`] does, while it returns true, as far as the tables lead; tells whether that is all the way.
    /// `registers` become those of the last frame.
    pub fn unwind(&mut self, registers: &mut Registers, mut visit: impl FnMut(u64, bool) -> bool) -> bool {
        self.stack.len = 0; // the threads have run since it was filled
        let mut interrupted = true;
        while visit(registers.at, !interrupted) {
            match self.step(registers, interrupted) {
                Some(Step::Caller(caller, caller_interrupted)) => {
                    (*registers, interrupted) = (caller, caller_interrupted);
                }
                Some(Step::Outermost) => return true,
                None => return false,
            }
        }
        false
    }

    fn step(&mut self, registers: &Registers, interrupted: bool) -> Option<Step> {
        let address = if interrupted { registers.at } else { registers.at.wrapping_sub(1) };
        // An interrupted function may have its return address in the link register still; one that has made a call cannot.
        let in_register = HAS_LINK_REGISTER && interrupted;
        let module = self.modules.iter().find(|module| module.code.contains(&address))?;
        let fde = module.find(address)?;
        let section = &module.eh_frame;
        let row = fde.unwind_info_for_address(section, &module.bases, &mut self.context, address).ok()?;
        let stack = &mut self.stack;
        let general = &registers.general;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                general.get(usize::from(register.0))?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => evaluate(expression, &fde, section, general, None, stack)?,
        };
        let mut caller = *general;
        caller[STACK_POINTER] = cfa;
        for (number, value) in caller.iter_mut().enumerate() {
            *value = match row.register(Register(number as u16)) {
                RegisterRule::Undefined if number == RETURN_ADDRESS && !in_register => return Some(Step::Outermost),
                RegisterRule::Undefined | RegisterRule::SameValue => *value,
                RegisterRule::Offset(offset) => stack.read(cfa.wrapping_add_signed(offset))?,
                RegisterRule::ValOffset(offset) => cfa.wrapping_add_signed(offset),
                RegisterRule::Register(other) => *general.get(usize::from(other.0))?,
                RegisterRule::Expression(expression) => {
                    let at = evaluate(&expression, &fde, section, general, Some(cfa), stack)?;
                    stack.read(at)?
                }
                RegisterRule::ValExpression(expression) => {
                    evaluate(&expression, &fde, section, general, Some(cfa), stack)?
                }
                _ => return None,
            };
        }
        match code_address(caller[RETURN_ADDRESS]) {
            0 => Some(Step::Outermost),
            at => Some(Step::Caller(Registers { at, general: caller }, fde.is_signal_trampoline())),
        }
    }
}

fn evaluate(
    expression: &UnwindExpression<usize>,
    fde: &Fde,
    section: &EhFrame<Bytes>,
    general: &General,
    initial: Option<u64>,
    stack: &mut Window,
) -> Option<u64> {
    let code = expression.get(section).ok()?;
    let mut evaluation = Evaluation::<Bytes, Fixed>::new_in(code.0, fde.cie().encoding());
    evaluation.set_max_iterations(1000);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = *general.get(usize::from(register.0))?;
                evaluation.resume_with_register(Value::Generic(value)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(stack.read(address)?)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result().first()?.location {
        Location::Address { address } => Some(address),
        _ => None,
    }
}

/// Checks what libgcc takes on trust when frames are registered: every entry is well-formed, with a 32-bit length, and
/// describes code in `code` (or nothing, at address 0); after the last one comes the zero terminator.
pub fn check_eh_frame(section: &[u8], addr: u64, code: &[Range<u64>]) -> Result<(), String> {
    let bases = BaseAddresses::default().set_eh_frame(addr);
    let eh_frame = EhFrame::new(section, NativeEndian);
    let mut entries = eh_frame.entries(&bases);
    let malformed = |error: gimli::Error| format!("eh_frame is malformed: {error}");
    let mut end = 0;
    while let Some(entry) = entries.next().map_err(malformed)? {
        let (offset, length) = match entry {
            CieOrFde::Cie(cie) => (cie.offset(), cie.entry_len()),
            CieOrFde::Fde(partial) => {
                let fde = partial.parse(EhFrame::cie_from_offset).map_err(malformed)?;
                let function = fde.initial_address()..fde.end_address();
                if function.start != 0 && !code.iter().any(|range| contains(range, &function)) {
                    return Err(format!("eh_frame describes code outside the patch, at {:#x}", function.start));
                }
                (fde.offset(), fde.entry_len())
            }
        };
        end = offset + 4 + length;
        if section.get(offset..offset + 4) != Some(&(length as u32).to_ne_bytes()) {
            return Err("eh_frame has an entry with a 64-bit length".into());
        }
    }
    match section.get(end..) {
        Some(rest) if rest.len() >= 4 && rest.iter().all(|&byte| byte == 0) => Ok(()),
        _ => Err("eh_frame does not end with a zero terminator".into()),
    }
}

pub fn contains(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.start <= inner.end && inner.end <= outer.end
}

/// Words of a stack, read a piece at a time.
struct Window<'a> {
    memory: &'a dyn Source,
    bytes: [u8; WINDOW_SIZE],
    start: u64,
    len: usize,
}

impl Window<'_> {
    fn read(&mut self, addr: u64) -> Option<u64> {
        let offset = addr.wrapping_sub(self.start) as usize;
        if offset.checked_add(8)? > self.len {
            self.start = addr;
            self.len = self.memory.read(addr, &mut self.bytes);
            return self.word(0);
        }
        self.word(offset)
    }

    fn word(&self, offset: usize) -> Option<u64> {
        let word = self.bytes.get(..self.len)?.get(offset..offset + 8)?;
        Some(u64::from_ne_bytes(word.try_into().ok()?))
    }
}
