//! A program to be patched whose patches panic: reads commands and answers each with lines that end with `.`.

use std::backtrace::Backtrace;
use std::hint::black_box;
use std::io::BufRead;

#[no_mangle]
#[inline(never)]
pub extern "C-unwind" fn answer(n: i32) -> i32 {
    n + 1
}

#[no_mangle]
#[inline(never)]
pub extern "C-unwind" fn panic_now() {
    panic!("as asked");
}

#[no_mangle]
#[inline(never)]
pub extern "C" fn catch_panic() {
    let caught = std::panic::catch_unwind(|| panic_now());
    println!("{}", if caught.is_err() { "caught inside" } else { "nothing" });
}

#[no_mangle]
#[inline(never)]
pub extern "C-unwind" fn print_backtrace() {
    println!("{}", Backtrace::force_capture());
}

struct Noisy;

impl Drop for Noisy {
    fn drop(&mut self) {
        println!("dropped");
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "backtrace" => print_backtrace(),
            "answer" => {
                let caught = std::panic::catch_unwind(|| {
                    let _noisy = Noisy;
                    answer(black_box(1))
                });
                match caught {
                    Ok(value) => println!("{value}"),
                    Err(_) => println!("caught"),
                }
            }
            _ => panic_now(),
        }
        println!(".");
    }
    black_box((panic_now as extern "C-unwind" fn(), print_backtrace as extern "C-unwind" fn()));
    black_box(catch_panic as extern "C" fn());
}
