//! What depends on the processor: the detour, the thread pointer, the registers of an interrupted thread, and the way
//! back from a signal handler. Another processor is another module with the same names.

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::{asm, global_asm};

    pub const TARGET: &str = "x86_64-unknown-linux-gnu";

    /// Bytes that a detour overwrites: `jmp rel32`.
    pub const DETOUR_LEN: usize = 5;

    /// How far a 32-bit displacement reaches, in bytes.
    pub const REACH: u64 = 1 << 31;

    /// DWARF register numbers. Source: System V ABI, AMD64 supplement, figure 3.36.
    pub const STACK_POINTER: usize = 7;
    pub const RETURN_ADDRESS: usize = 16;

    /// General registers by DWARF number; the return address column holds the program counter.
    pub type Registers = [u64; 17];

    /// Encodes the jump that leads from `from` to `to`, or `None` where it does not reach.
    pub fn detour(from: u64, to: u64) -> Option<[u8; DETOUR_LEN]> {
        let next = from.checked_add(DETOUR_LEN as u64)?;
        let displacement = i32::try_from(to.wrapping_sub(next) as i64).ok()?;
        let [a, b, c, d] = displacement.to_le_bytes();
        Some([0xe9, a, b, c, d])
    }

    /// What the calling thread's thread-locals are at fixed offsets from. Source: System V ABI, AMD64 supplement, 3.4.2.
    pub fn thread_pointer() -> u64 {
        let pointer;
        unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags)) };
        pointer
    }

    /// The registers that a signal handler's third argument holds.
    ///
    /// # Safety
    /// `context` is what the kernel passed to a handler that has not returned.
    pub unsafe fn registers(context: *const libc::ucontext_t) -> Registers {
        use libc::*;
        const DWARF_ORDER: [c_int; 17] = [
            REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
        ];
        let saved = &(*context).uc_mcontext.gregs;
        DWARF_ORDER.map(|register| saved[register as usize] as u64)
    }

    extern "C" {
        /// Where a signal handler returns to, for `SA_RESTORER`.
        #[link_name = "hotpatch_client_sigreturn"]
        pub fn sigreturn();
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
