//! Where the detour of a function is: at its start, or in padding nearby that a short jump leads to.

use crate::arch::{
    detour, encode_call, entered_under_detour, is_idle, may_be_padding, second_call, short_jump, CALL_LEN, DETOUR_LEN,
    SECOND_CALL_END, SHORT_LEN,
};
use crate::check::Jump;
use crate::memory::Memory;
use crate::wire::{Reason, Refusal};
use std::ops::Range;

#[derive(Clone, Copy)]
pub struct Site {
    pub from: u64,
    /// Padding that has the detour, and is reached from the function by a short jump.
    pad: Option<u64>,
    pub second_call: Option<SecondCall>,
}

/// The call that is a function's second instruction, where threads in its old body come back to it. Its first byte is the
/// displacement of the short jump then, and does nothing; the next leads to `pad`, and that to the call at `addr`.
#[derive(Clone, Copy)]
pub struct SecondCall {
    pad: u64,
    pub addr: u64,
    returns_to: u64,
    target: u64,
}

impl SecondCall {
    pub fn code(&self) -> [u8; CALL_LEN] {
        encode_call(self.returns_to, self.target)
    }

    /// Where a thread is on its way to the call: in the function's old body, for all that counts.
    pub fn passage(&self) -> [Range<u64>; 2] {
        [self.pad..self.pad + DETOUR_LEN as u64, self.addr..self.addr + CALL_LEN as u64]
    }
}

impl Site {
    /// Chooses a site for a function whose code is `code`: its start, unless a thread in it could come back into the middle
    /// of what is overwritten there, or it has no room.
    ///
    /// Padding must not be in use by `others`; a call may be put at `call_addr`.
    pub fn choose(
        jump: &Jump,
        code: &[u8],
        others: &[Site],
        call_addr: Option<u64>,
        memory: &Memory,
    ) -> Result<Site, Refusal> {
        let from = jump.from.start;
        let at_start = Site { from, pad: None, second_call: None };
        let entered = entered_under_detour(code, 0);
        if entered == 0 && jump.room >= DETOUR_LEN {
            return Ok(at_start);
        }
        let free = if jump.room >= SHORT_LEN { free_pads(jump, others, memory) } else { Vec::new() };
        let second = |pad: u64| short_jump(from, pad).map(|jump| jump[1]);
        let comes_back_to_second = entered & 1 << 1 != 0;
        let unchanged = free.iter().find(|&&pad| !comes_back_to_second || second(pad) == code.get(1).copied());
        let moved = || {
            let (target, addr) = (second_call(from, code)?, call_addr?);
            free.iter().filter(|&&pad| second(pad).is_some_and(is_idle)).find_map(|&pad| {
                let is_reached = |other| short_jump(from + SHORT_LEN as u64, other).is_some();
                let other = free.iter().copied().find(|&other| is_reached(other) && !overlap(pad, other))?;
                let second_call = SecondCall { pad: other, addr, returns_to: from + SECOND_CALL_END, target };
                Some(Site { from, pad: Some(pad), second_call: Some(second_call) })
            })
        };
        let in_padding = |&pad: &u64| Site { from, pad: Some(pad), second_call: None };
        let found = unchanged.map(in_padding).or_else(moved).or_else(|| free.first().map(in_padding));
        if found.is_none() && jump.room < DETOUR_LEN {
            let detail = format!("it has {} bytes, and there is no padding near for a jump", jump.room);
            return Err(Refusal { from: Some(from), ..Reason::TooShort.because(detail) });
        }
        Ok(found.unwrap_or(at_start))
    }

    /// The bytes that lead calls to `to`, by address; `None` where that is out of reach.
    pub fn lead_to(&self, to: u64) -> Option<Vec<(u64, Vec<u8>)>> {
        let long = detour(self.pad.unwrap_or(self.from), to)?.to_vec();
        let Some(pad) = self.pad else { return Some(vec![(self.from, long)]) };
        let mut code = vec![(pad, long)];
        let mut short = short_jump(self.from, pad)?.to_vec();
        if let Some(call) = self.second_call {
            code.push((call.pad, detour(call.pad, call.addr)?.to_vec()));
            short.extend(short_jump(self.from + SHORT_LEN as u64, call.pad)?);
        }
        code.push((self.from, short));
        Some(code)
    }

    fn pads(&self) -> impl Iterator<Item = u64> {
        self.pad.into_iter().chain(self.second_call.map(|call| call.pad))
    }
}

fn overlap(one: u64, other: u64) -> bool {
    one.abs_diff(other) < DETOUR_LEN as u64
}

/// Where in the padding near a function there is room for a detour.
fn free_pads(jump: &Jump, others: &[Site], memory: &Memory) -> Vec<u64> {
    let places = jump.padding.iter().flat_map(|gap| gap.start..(gap.end + 1).saturating_sub(DETOUR_LEN as u64));
    let is_free = |&place: &u64| {
        let mut bytes = [0; DETOUR_LEN];
        short_jump(jump.from.start, place).is_some()
            && !others.iter().flat_map(Site::pads).any(|pad| overlap(pad, place))
            && memory.read(place, &mut bytes) == DETOUR_LEN
            && may_be_padding(&bytes)
    };
    places.filter(is_free).collect()
}
