"""Objects for targets whose standard library is not at hand: Rust without even `core`."""

import os
import subprocess
from pathlib import Path

_PRELUDE = """
#![feature(no_core, lang_items, auto_traits, thread_local)]
#![no_core]
#![no_std]
#[lang = "pointee_sized"] pub trait PointeeSized {}
#[lang = "meta_sized"] pub trait MetaSized: PointeeSized {}
#[lang = "sized"] pub trait Sized: MetaSized {}
#[lang = "copy"] pub trait Copy {}
#[lang = "sync"] pub trait Sync {}
#[lang = "freeze"] pub unsafe auto trait Freeze {}
#[lang = "drop_in_place"] unsafe fn drop_in_place<T: PointeeSized>(_: *mut T) {}
impl Copy for i32 {}
impl Copy for *const i32 {}
impl Sync for i32 {}
"""


def bare_object(root: Path, target: str, source: str, *flags: str) -> Path:
    """Items in terms of `i32` and `*const i32`, compiled for any target that rustc knows."""
    (root / "patch.rs").write_text(_PRELUDE + source)
    command = f"rustc --target {target} --crate-type lib --emit obj -O -Cpanic=abort -Awarnings patch.rs -o patch.o"
    finished = subprocess.run(
        [*command.split(), *flags],
        cwd=root,
        env=os.environ | {"RUSTC_BOOTSTRAP": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return root / "patch.o"
