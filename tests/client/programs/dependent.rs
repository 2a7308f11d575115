//! A program that starts the client itself: reads commands and answers each with a line.

use std::hint::black_box;
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

#[no_mangle]
pub static COUNT: AtomicI32 = AtomicI32::new(0);
static WRONG: AtomicBool = AtomicBool::new(false);

#[no_mangle]
#[inline(never)]
pub extern "C" fn answer(n: i32) -> i32 {
    COUNT.fetch_add(1, Ordering::SeqCst);
    n + 1
}

#[no_mangle]
#[inline(never)]
pub extern "C" fn doubled(n: i32) -> i32 {
    2 * n
}

/// What a patch makes of it ends with the same three digits.
#[no_mangle]
#[inline(never)]
pub extern "C" fn busy(n: i32) -> i32 {
    n + 1
}

fn work() {
    loop {
        if busy(black_box(1)) % 1000 != 2 {
            WRONG.store(true, Ordering::SeqCst);
        }
    }
}

#[no_mangle]
#[inline(never)]
pub extern "C" fn serve() {
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "answer" => println!("{}", answer(black_box(1))),
            "doubled" => println!("{}", doubled(black_box(4))),
            "count" => println!("{}", COUNT.load(Ordering::SeqCst)),
            "hot" => println!("{}", hotpatch_client::call(|| doubled(black_box(4)))),
            "wrong" => println!("{}", WRONG.load(Ordering::SeqCst)),
            _ => println!("?"),
        }
    }
}

fn main() {
    hotpatch_client::start();
    for _ in 0..std::env::args().nth(1).map_or(0, |count| count.parse().unwrap()) {
        thread::Builder::new().name("worker".into()).spawn(work).unwrap();
    }
    serve();
}
