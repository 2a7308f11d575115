"""The Rust program that the tests edit."""

PROGRAM = r"""
use std::cell::Cell;
use std::collections::HashMap;

trait Shape { fn area(&self) -> f64; fn sides(&self) -> u32 { 4 } }
struct Square(f64);
impl Shape for Square { fn area(&self) -> f64 { self.0 * self.0 } }

const LIMIT: u32 = 40;
static mut COUNT: u32 = 7;
thread_local!(static CALLS: Cell<u32> = const { Cell::new(3) });
struct Loud(u32);
impl Drop for Loud { fn drop(&mut self) { println!("dropped {}", self.0) } }

#[inline(never)] fn even(n: &[u32]) -> bool { if n.is_empty() { true } else { odd(&n[1..]) } }
#[inline(never)] fn odd(n: &[u32]) -> bool { if n.is_empty() { false } else { even(&n[1..]) } }
#[inline(never)] fn greet(who: &str) -> String { format!("hello {who}") }
#[inline(never)] fn pick(v: &[u32], i: usize) -> u32 { v[i] }
#[inline(never)] fn limited(n: u32) -> bool { n < LIMIT }
#[inline(never)] fn plain(n: u32) -> u32 { n ^ 0x55 }
#[inline(never)] fn farewell() -> &'static str { "goodbye" }
#[inline(never)] fn twice(n: u32) -> u32 { plain(plain(n)) }
#[inline(never)] fn guarded(n: u32) -> u32 { let _loud = Loud(n); plain(n) }
#[inline(never)] fn mapped(v: &[u32]) -> Vec<u32> { v.iter().map(|n| n.wrapping_mul(3)).collect() }
#[inline(never)] fn bump() -> u32 { CALLS.with(|c| c.set(c.get() + 1)); unsafe { COUNT += 1; COUNT } }
#[inline(never)] fn shapes() -> Vec<Box<dyn Shape>> { vec![Box::new(Square(2.0))] }

fn main() {
    let mut seen = HashMap::new();
    seen.insert(1, greet("you"));
    println!("{} {} {}", even(&[1, 2]), pick(&[1, 2], 1), bump());
    println!("{:?} {} {}", seen, shapes()[0].area(), shapes()[0].sides());
    println!("{} {} {} {}", limited(3), twice(4), guarded(5), farewell());
    println!("{:?}", mapped(&[1, 2]));
}
"""
