//! What depends on the processor: the detour, the thread pointer, the registers of an interrupted thread, and the way
//! back from a signal handler. Another processor is another module with the same names.

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

/// The target triple that the client was built for.
pub const TARGET: &str = match (cfg!(target_arch = "x86_64"), cfg!(target_env = "musl")) {
    (true, false) => "x86_64-unknown-linux-gnu",
    (true, true) => "x86_64-unknown-linux-musl",
    (false, false) => "aarch64-unknown-linux-gnu",
    (false, true) => "aarch64-unknown-linux-musl",
};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use libc::c_void;
    use std::arch::{asm, global_asm};
    use std::ops::Range;

    /// Bytes that a detour overwrites: `jmp rel32`.
    pub const DETOUR_LEN: usize = 5;

    /// Bytes that a short jump overwrites: `jmp rel8`.
    pub const SHORT_LEN: usize = 2;
    pub const HAS_SHORT_JUMPS: bool = true;

    /// Where the call ends that may follow a function's first `push`, and bytes of one in another place.
    pub const SECOND_CALL_END: u64 = 6;
    pub const CALL_LEN: usize = 32;

    /// Offsets of the bytes of a detour but its first, as bits.
    const UNDER_DETOUR: u8 = 0b11110;

    /// How far a 32-bit displacement reaches, in bytes, to code and to data.
    pub const REACH: u64 = 1 << 31;
    pub const DATA_IS_IN_REACH: bool = false;

    /// Sizes of the region, the first that there is room for.
    pub const REGION_SIZES: [u64; 1] = [128 << 20];

    /// DWARF register numbers. Source: System V ABI, AMD64 supplement, figure 3.36.
    pub const STACK_POINTER: usize = 7;
    pub const RETURN_ADDRESS: usize = 16;

    pub const HAS_LINK_REGISTER: bool = false;

    /// General registers by DWARF number.
    pub type General = [u64; 17];

    /// The address that a saved return address stands for.
    pub fn code_address(saved: u64) -> u64 {
        saved
    }

    /// A function that returns `value`, for trying out whether written code is executed.
    pub fn returning(value: u8) -> Vec<u8> {
        vec![0xb8, value, 0, 0, 0, 0xc3] // mov eax, value; ret
    }

    /// Lets the processor execute what has been written to `range`. Source: Intel SDM, volume 3, section 12.6: it looks by itself.
    pub fn synchronize_code(_range: &Range<u64>) {}

    /// Encodes the jump that leads from `from` to `to`, or `None` where it does not reach.
    pub fn detour(from: u64, to: u64) -> Option<[u8; DETOUR_LEN]> {
        let next = from.checked_add(DETOUR_LEN as u64)?;
        let displacement = i32::try_from(to.wrapping_sub(next) as i64).ok()?;
        let [a, b, c, d] = displacement.to_le_bytes();
        Some([0xe9, a, b, c, d])
    }

    /// Encodes the short jump that leads from `from` to `to`, or `None` where it does not reach.
    pub fn short_jump(from: u64, to: u64) -> Option<[u8; SHORT_LEN]> {
        let displacement = i8::try_from(to.wrapping_sub(from.checked_add(SHORT_LEN as u64)?) as i64).ok()?;
        Some([0xeb, displacement as u8])
    }

    /// Whether bytes may be what compilers and linkers put between functions: breakpoints, zeros, `nop` of any length.
    pub fn may_be_padding(code: &[u8]) -> bool {
        code.iter()
            .all(|byte| matches!(byte, 0xcc | 0x00 | 0x90 | 0x66 | 0x2e | 0x0f | 0x1f | 0x40 | 0x44 | 0x80 | 0x84))
    }

    /// Where the call leads that a function at `from` begins with, but for a `push`.
    pub fn second_call(from: u64, code: &[u8]) -> Option<u64> {
        match *code {
            [0x50..=0x57, 0xe8, a, b, c, d, ..] => {
                Some(from.wrapping_add(SECOND_CALL_END).wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into()))
            }
            _ => None,
        }
    }

    /// Whether a byte before a short jump changes nothing that matters at a call: `nop`, the segment and REX prefixes, which
    /// such a jump ignores, and what sets the carry flag alone. Source: System V ABI, AMD64 supplement, 3.2.1.
    pub fn is_idle(byte: u8) -> bool {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64 | 0x65 | 0x90 | 0xf5 | 0xf8 | 0xf9)
    }

    /// Encodes a call of `target` that returns to another place.
    pub fn encode_call(returns_to: u64, target: u64) -> [u8; CALL_LEN] {
        let mut code = [0xcc; CALL_LEN];
        code[..12].copy_from_slice(&[0xff, 0x35, 10, 0, 0, 0, 0xff, 0x25, 12, 0, 0, 0]); // push [returns_to]; jmp [target]
        code[16..24].copy_from_slice(&returns_to.to_le_bytes());
        code[24..].copy_from_slice(&target.to_le_bytes());
        code
    }

    /// Where instructions other than the first may begin under a detour: bit n stands for offset n.
    fn begin_under_detour(code: &[u8]) -> u8 {
        let mut begin = 0;
        let mut at = 0;
        while at < DETOUR_LEN {
            begin |= 1 << at;
            at += match code.get(at..).unwrap_or_default() {
                [0x50..=0x57, ..] => 1,                    // push
                [0x41, 0x50..=0x57, ..] | [0xeb, ..] => 2, // push; jmp
                [0x48, 0x89, 0xc0..=0xff, ..] => 3,        // mov
                [0x48, 0x83, 0xec, ..] => 4,               // sub rsp
                [0xf3, 0x0f, 0x1e, 0xfa, ..] => 4,         // endbr64
                [0xe8 | 0xe9, ..] => 5,                    // call; jmp
                [0x48, 0x81, 0xec, ..] => 7,               // sub rsp
                _ => {
                    begin |= !0 << (at + 1); // its length is not known
                    break;
                }
            };
        }
        begin & UNDER_DETOUR
    }

    /// Where a function seems to be entered in the middle of its detour, from its byte `start` on: a loop may begin right
    /// behind a `push`. Bytes count that look like such a jump, whichever instruction they are of, if an instruction may
    /// begin where it leads. Bit n stands for offset n.
    pub fn entered_under_detour(code: &[u8], start: usize) -> u8 {
        let lands = |next: usize, distance: i32| match next as i64 + i64::from(distance) {
            offset @ 1..=4 => 1 << offset,
            _ => 0,
        };
        let jumps = (start..code.len()).map(|at| match code[at..] {
            [0x70..=0x7f | 0xe0..=0xe3 | 0xeb, near, ..] => lands(at + 2, i32::from(near as i8)),
            [0xe9, a, b, c, d, ..] => lands(at + 5, i32::from_le_bytes([a, b, c, d])),
            [0x0f, 0x80..=0x8f, a, b, c, d, ..] => lands(at + 6, i32::from_le_bytes([a, b, c, d])),
            [0xff, 0x10..=0x13 | 0x16..=0x17 | 0xd0..=0xd7, ..] => lands(at + 2, 0), // call: it is returned there
            [0xff, 0x14 | 0x50..=0x53 | 0x55..=0x57, ..] => lands(at + 3, 0),
            [0xff, 0x54, ..] => lands(at + 4, 0),
            _ => 0,
        });
        jumps.fold(0, |all, one| all | one) & begin_under_detour(code)
    }

    /// An entry of [`crate::proof`]: its size, where its second part begins, how far its words may be away, and how the
    /// frame of whoever called is found in it (`DW_CFA_def_cfa rsp+8`, `DW_CFA_offset rip` at -8).
    pub const ENTRY_LEN: u64 = 32;
    pub const ENTRY_RECORD: u64 = 8;
    pub const ENTRY_REACH: u64 = 1 << 31;
    pub const ENTRY_CFA: &[u8] = &[0x0c, 7, 8, 0x90, 1];

    /// Encodes an entry at `addr`. Source: System V ABI, AMD64 supplement, 3.2.1: no function gets anything in r11.
    pub fn encode_entry(addr: u64, slot: u64, target: u64) -> Vec<u8> {
        let mut code = Vec::with_capacity(ENTRY_LEN as usize);
        let mut put = |opcode: &[u8], word: u64| {
            let next = addr + (code.len() + opcode.len() + 4) as u64;
            code.extend_from_slice(opcode);
            code.extend_from_slice(&(word.wrapping_sub(next) as u32).to_le_bytes());
            if code.len() < ENTRY_RECORD as usize {
                code.resize(ENTRY_RECORD as usize, 0xcc);
            }
        };
        put(&[0xff, 0x25], slot); // jmp [slot]
        put(&[0x4c, 0x8b, 0x1d], target); // mov r11, [target]
        put(&[0x4c, 0x89, 0x1d], slot); // mov [slot], r11
        code.extend_from_slice(&[0x41, 0xff, 0xe3]); // jmp r11
        code.resize(ENTRY_LEN as usize, 0xcc);
        code
    }

    /// What the calling thread's thread-locals are at fixed offsets from. Source: System V ABI, AMD64 supplement, 3.4.2.
    pub fn thread_pointer() -> u64 {
        let pointer;
        unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags)) };
        pointer
    }

    /// The program counter and the registers that a signal handler's third argument holds.
    ///
    /// # Safety
    /// `context` is what the kernel passed to a handler that has not returned.
    pub unsafe fn registers(context: *const libc::ucontext_t) -> (u64, General) {
        use libc::*;
        const DWARF_ORDER: [c_int; 17] = [
            REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
        ];
        let saved = &(*context).uc_mcontext.gregs;
        (saved[REG_RIP as usize] as u64, DWARF_ORDER.map(|register| saved[register as usize] as u64))
    }

    /// Calls a function on the stack that ends at `top`, a multiple of 16.
    ///
    /// # Safety
    /// Nothing else uses that stack, and the function returns.
    pub unsafe fn call_on_stack(top: u64, function: extern "C" fn(*mut c_void), argument: *mut c_void) {
        asm!(
            "xchg rsp, r12", "call {function}", "mov rsp, r12",
            function = in(reg) function, inout("r12") top => _, in("rdi") argument, clobber_abi("C"),
        );
    }

    /// Where a signal handler returns to, for the kernel, which has no place of its own for that.
    pub fn restorer() -> Option<unsafe extern "C" fn()> {
        extern "C" {
            fn hotpatch_client_sigreturn();
        }
        Some(hotpatch_client_sigreturn)
    }

    // The exact bytes by which unwinders and debuggers recognise a signal frame.
    // Source: gcc, libgcc/config/i386/linux-unwind.h.
    global_asm!(
        ".pushsection .text.hotpatch_client_sigreturn,\"ax\",@progbits",
        ".globl hotpatch_client_sigreturn",
        ".hidden hotpatch_client_sigreturn",
        ".type hotpatch_client_sigreturn,@function",
        "nop",
        "hotpatch_client_sigreturn:",
        ".byte 0x48,0xc7,0xc0,0x0f,0,0,0", // mov $15 (rt_sigreturn), %rax
        "syscall",
        ".size hotpatch_client_sigreturn, . - hotpatch_client_sigreturn",
        ".popsection",
    );
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use libc::c_void;
    use std::arch::asm;
    use std::ops::Range;

    /// Bytes that a detour overwrites: `b`.
    pub const DETOUR_LEN: usize = 4;

    pub const SHORT_LEN: usize = 2;
    pub const HAS_SHORT_JUMPS: bool = false;
    pub const SECOND_CALL_END: u64 = 8;
    pub const CALL_LEN: usize = 32;

    /// How far a branch reaches, in bytes. Data is reached by page, 4 GiB away.
    pub const REACH: u64 = 128 << 20;
    pub const DATA_IS_IN_REACH: bool = true;

    /// Sizes of the region, the first that there is room for: the program's code takes its part of the reach.
    pub const REGION_SIZES: [u64; 4] = [64 << 20, 32 << 20, 16 << 20, 8 << 20];

    /// DWARF register numbers. Source: DWARF for the Arm 64-bit Architecture, section 4.1.
    pub const STACK_POINTER: usize = 31;
    pub const RETURN_ADDRESS: usize = 30;

    pub const HAS_LINK_REGISTER: bool = true;

    /// General registers by DWARF number.
    pub type General = [u64; 32];

    /// The address that a saved return address stands for: functions that sign theirs do it in the upper bits.
    pub fn code_address(saved: u64) -> u64 {
        saved & ((1 << 48) - 1)
    }

    /// A function that returns `value`, for trying out whether written code is executed.
    pub fn returning(value: u8) -> Vec<u8> {
        let load = 0x5280_0000 | u32::from(value) << 5; // mov w0, value
        [load, 0xd65f_03c0].iter().flat_map(|instruction| instruction.to_le_bytes()).collect()
    }

    /// Encodes the jump that leads from `from` to `to`, or `None` where it does not reach.
    pub fn detour(from: u64, to: u64) -> Option<[u8; DETOUR_LEN]> {
        let displacement = to.wrapping_sub(from) as i64;
        let reaches = (-(REACH as i64)..REACH as i64).contains(&displacement) && displacement % 4 == 0;
        reaches.then(|| (0x1400_0000 | (displacement >> 2) as u32 & 0x03ff_ffff).to_le_bytes())
    }

    pub fn short_jump(_from: u64, _to: u64) -> Option<[u8; SHORT_LEN]> {
        None
    }

    pub fn may_be_padding(_code: &[u8]) -> bool {
        false
    }

    pub fn second_call(_from: u64, _code: &[u8]) -> Option<u64> {
        None
    }

    pub fn is_idle(_byte: u8) -> bool {
        false
    }

    pub fn encode_call(_returns_to: u64, _target: u64) -> [u8; CALL_LEN] {
        [0; CALL_LEN]
    }

    /// The detour is one instruction long.
    pub fn entered_under_detour(_code: &[u8], _start: usize) -> u8 {
        0
    }

    /// An entry of [`crate::proof`]: its size, where its second part begins, how far its words may be away, and how the
    /// frame of whoever called is found in it (`DW_CFA_def_cfa sp+0`; the return address is in its register).
    pub const ENTRY_LEN: u64 = 32;
    pub const ENTRY_RECORD: u64 = 8;
    pub const ENTRY_REACH: u64 = 1 << 20;
    pub const ENTRY_CFA: &[u8] = &[0x0c, 31, 0];

    /// Encodes an entry at `addr`. Source: Procedure Call Standard for the Arm 64-bit Architecture, section 6.1.1: x16 and
    /// x17 may change between a call and the function.
    pub fn encode_entry(addr: u64, slot: u64, target: u64) -> Vec<u8> {
        let load = |at: u64, word: u64| 0x5800_0010 | (word.wrapping_sub(at) as u32 >> 2 & 0x7_ffff) << 5; // ldr x16, word
        let to_slot = slot.wrapping_sub(addr + 12) as u32;
        let address = 0x1000_0011 | (to_slot & 3) << 29 | (to_slot >> 2 & 0x7_ffff) << 5; // adr x17, slot
        let (store, branch) = (0xf900_0230, 0xd61f_0200); // str x16, [x17]; br x16
        let code = [load(addr, slot), branch, load(addr + 8, target), address, store, branch, 0, 0];
        code.iter().flat_map(|instruction: &u32| instruction.to_le_bytes()).collect()
    }

    /// Lets all processors fetch what has been written to `range`, which must be readable.
    /// Source: Arm Architecture Reference Manual, section B2.4.4, "Concurrent modification and execution of instructions".
    pub fn synchronize_code(range: &Range<u64>) {
        let lines = |log2_words: u64| {
            let size = 4 << log2_words;
            (range.start / size * size..range.end).step_by(size as usize)
        };
        unsafe {
            let cache_type: u64;
            asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nostack, preserves_flags));
            for line in lines(cache_type >> 16 & 0xf) {
                asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags));
            }
            asm!("dsb ish", options(nostack, preserves_flags));
            for line in lines(cache_type & 0xf) {
                asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags));
            }
            asm!("dsb ish", "isb", options(nostack, preserves_flags));
        }
    }

    /// What the calling thread's thread-locals are at fixed offsets from. Source: ELF for the Arm 64-bit Architecture, section 6.
    pub fn thread_pointer() -> u64 {
        let pointer;
        unsafe { asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags)) };
        pointer
    }

    /// The program counter and the registers that a signal handler's third argument holds.
    ///
    /// # Safety
    /// `context` is what the kernel passed to a handler that has not returned.
    pub unsafe fn registers(context: *const libc::ucontext_t) -> (u64, General) {
        let saved = &(*context).uc_mcontext;
        let mut general = [saved.sp; 32];
        general[..31].copy_from_slice(&saved.regs);
        (saved.pc, general)
    }

    /// Calls a function on the stack that ends at `top`, a multiple of 16.
    ///
    /// # Safety
    /// Nothing else uses that stack, and the function returns.
    pub unsafe fn call_on_stack(top: u64, function: extern "C" fn(*mut c_void), argument: *mut c_void) {
        asm!(
            "mov x20, sp", "mov sp, {top}", "blr {function}", "mov sp, x20",
            top = in(reg) top, function = in(reg) function, in("x0") argument, out("x20") _, clobber_abi("C"),
        );
    }

    /// Where a signal handler returns to: the kernel's own code in the vdso.
    pub fn restorer() -> Option<unsafe extern "C" fn()> {
        None
    }
}
