//! Tells the unwinder of patches' frames. There are two of them under the same names: libgcc's takes a whole section at
//! once, LLVM's one entry a call, and has another function for sections.
//! Source: gcc, `libgcc/unwind-dw2-fde.c`; llvm, `libunwind/src/UnwindLevel1-gcc-ext.c` and `libunwind.cpp`.

use std::arch::global_asm;
use std::mem::transmute;

type Function = unsafe extern "C" fn(eh_frame: *const u8);

extern "C" {
    fn __register_frame(eh_frame: *const u8);
    fn __deregister_frame(eh_frame: *const u8);
    static hotpatch_client_section_functions: [usize; 2];
}

// Weak references: zero where the unwinder is libgcc's.
global_asm!(
    ".weak __unw_add_dynamic_eh_frame_section",
    ".weak __unw_remove_dynamic_eh_frame_section",
    ".pushsection .data.rel.ro.hotpatch_client_section_functions,\"aw\",@progbits",
    ".balign 8",
    ".globl hotpatch_client_section_functions",
    ".hidden hotpatch_client_section_functions",
    ".type hotpatch_client_section_functions,@object",
    "hotpatch_client_section_functions:",
    ".quad __unw_add_dynamic_eh_frame_section",
    ".quad __unw_remove_dynamic_eh_frame_section",
    ".size hotpatch_client_section_functions, . - hotpatch_client_section_functions",
    ".popsection",
);

/// The function for whole sections: LLVM's where there is one.
fn for_sections(llvm: usize, libgcc: Function) -> Function {
    match llvm {
        0 => libgcc,
        addr => unsafe { transmute::<usize, Function>(addr) },
    }
}

/// Makes the frames in `eh_frame` known.
///
/// # Safety
/// It is a whole, terminated section that stays where it is.
pub unsafe fn register(eh_frame: u64) {
    for_sections(hotpatch_client_section_functions[0], __register_frame)(eh_frame as *const u8);
}

/// Takes [`register`] back.
///
/// # Safety
/// The section is registered.
pub unsafe fn deregister(eh_frame: u64) {
    for_sections(hotpatch_client_section_functions[1], __deregister_frame)(eh_frame as *const u8);
}
