//! Jumps to anywhere: what a short jump leads to where its target is out of reach.

use crate::dylib::Jump;

pub const ISLAND_LEN: u64 = 16;

#[cfg(target_arch = "x86_64")]
fn island(to: u64) -> [u8; ISLAND_LEN as usize] {
    let [a, b, c, d, e, f, g, h] = to.to_le_bytes();
    [0xff, 0x25, 0, 0, 0, 0, a, b, c, d, e, f, g, h, 0xcc, 0xcc] // jmp [rip]
}

#[cfg(target_arch = "aarch64")]
fn island(to: u64) -> [u8; ISLAND_LEN as usize] {
    let [a, b, c, d, e, f, g, h] = to.to_le_bytes();
    [0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6, a, b, c, d, e, f, g, h] // ldr x16, 8; br x16
}

/// An island for each jump, in their order.
pub fn islands(jumps: &[Jump]) -> Vec<u8> {
    jumps.iter().flat_map(|jump| island(jump.to)).collect()
}
