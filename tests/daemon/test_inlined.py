"""Which functions of optimised programs hold which others: what their debug information says is found without it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from hotpatchd.core.demangle import demangle
from hotpatchd.core.selection import CargoSelection
from hotpatchd.core.thinplan import plan_thin_crates
from hotpatchd.daemon.layout_judge import Comparison
from hotpatchd.daemon.replacing import Edit, Origin
from hotpatchd.daemon.thin import ThinBuilder
from hotpatchd.objfile.archive import ArchiveSet
from hotpatchd.objfile.host_index import HostCode, read_host
from hotpatchd.objfile.padding import Padding
from tests.core.fakes import session
from tests.daemon.test_fatbuild import MANIFEST, Project

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["leaf", "app"]\nresolver = "2"\n[profile.release]\ndebug = 2\n',
    "leaf/Cargo.toml": MANIFEST.format(name="leaf"),
    "leaf/src/lib.rs": """
        pub mod shapes;
        pub mod numbers;
    """,
    "leaf/src/shapes.rs": """
        use crate::numbers::{half, Sum};
        pub trait Shape { fn area(&self) -> u64; fn twice(&self) -> u64 { self.area() * 2 } }
        pub struct Square(pub u64);
        pub struct Circle { pub radius: u64 }
        impl Shape for Square { fn area(&self) -> u64 { self.0 * self.0 } }
        impl Shape for Circle {
            fn area(&self) -> u64 { half(self.radius * self.radius * 6) }
            fn twice(&self) -> u64 { self.area() + self.area() + 1 }
        }
        impl Drop for Circle { fn drop(&mut self) { crate::numbers::dropped(self.radius); } }
        pub fn made(kind: u64) -> Box<dyn Shape> {
            if kind % 2 == 0 { Box::new(Square(kind)) } else { Box::new(Circle { radius: kind }) }
        }
        pub fn known(size: u64) -> u64 {
            let shape: Box<dyn Shape> = Box::new(Square(size));
            let circle = Circle { radius: size };
            shape.twice() + circle.twice()
        }
        pub fn all(sizes: &[u64]) -> u64 { sizes.iter().map(|size| made(*size).area()).sum::<u64>() + sizes.total() }
    """,
    "leaf/src/numbers.rs": """
        use std::sync::atomic::{AtomicU64, Ordering};
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        pub fn half(number: u64) -> u64 { halved(number, |rest| rest + odd(number)) }
        fn halved(number: u64, and: impl Fn(u64) -> u64) -> u64 { and(number / 2) }
        fn odd(number: u64) -> u64 { number % 2 }
        pub fn dropped(radius: u64) { DROPPED.fetch_add(radius, Ordering::Relaxed); }
        pub fn count() -> u64 { DROPPED.load(Ordering::Relaxed) }
        pub trait Sum { fn total(&self) -> u64; }
        impl Sum for [u64] { fn total(&self) -> u64 { self.iter().copied().map(half).sum() } }
        pub fn by_pointer(number: u64) -> u64 { let run: fn(u64) -> u64 = half; run(number) + run(number + 1) }
    """,
    "app/Cargo.toml": MANIFEST.format(name="app") + '[dependencies]\nleaf = { path = "../leaf" }\n',
    "app/src/main.rs": """
        mod waits;
        use leaf::{numbers, shapes};
        fn line(tick: u64) -> String {
            format!("{} {} {}", shapes::known(tick), shapes::all(&[tick, 3, 4]), waits::run(waits::outer(tick)))
        }
        fn main() {
            for tick in 0..std::env::args().count() as u64 {
                println!("{} {} {}", line(tick), numbers::by_pointer(tick), numbers::count());
            }
        }
    """,
    "app/src/waits.rs": """
        use std::{future::Future, pin::pin, task::{Context, Poll, Waker}};
        pub async fn outer(number: u64) -> u64 { inner(number).await + leaf::numbers::half(number) }
        async fn inner(number: u64) -> u64 { step(number) + 1 }
        fn step(number: u64) -> u64 { number ^ 21 }
        pub fn run<T>(future: impl Future<Output = T>) -> T {
            let mut future = pin!(future);
            loop {
                if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    return value;
                }
            }
        }
    """,
}


def linkage_name(die: DIE) -> str | None:
    """A function's symbol, of an inlined copy as well."""
    if "DW_AT_linkage_name" in die.attributes:
        return str(die.attributes["DW_AT_linkage_name"].value, "utf-8")
    for origin in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if origin in die.attributes:
            return linkage_name(die.get_DIE_from_attribute(origin))
    return None


def inlined(path: Path) -> set[tuple[str, str]]:
    """All (function, function with a copy of it) of the units whose source has no absolute path."""
    with path.open("rb") as file:
        tops = [unit.get_top_DIE() for unit in ELFFile(file).get_dwarf_info().iter_CUs()]
        own = (top for top in tops if not str(top.attributes["DW_AT_name"].value, "utf-8").startswith(("/", "library")))
        return {pair for top in own for pair in inlined_below(top, None)}


def inlined_below(die: DIE, owner: str | None) -> Iterator[tuple[str, str]]:
    """Those of a part of a function, which is `owner`."""
    for child in die.iter_children():
        if child.tag == "DW_TAG_subprogram":
            is_code = "DW_AT_low_pc" in child.attributes or "DW_AT_ranges" in child.attributes
            yield from inlined_below(child, linkage_name(child) if is_code else None)
            continue
        name = linkage_name(child) if child.tag == "DW_TAG_inlined_subroutine" else None
        if name and owner:
            yield name, owner
        yield from inlined_below(child, owner)


@pytest.mark.parametrize(("level", "codegen_units"), [("1", "16"), ("3", "1"), ("3", "16")])
def test_all_functions_with_a_copy_of_an_edited_one_are_replaced(
    tmp_path: Path, level: str, codegen_units: str
) -> None:
    """The code of those that hold a copy in the thin rebuild, too, changes with it."""
    project = Project(tmp_path / "workspace")
    project.write(FILES)
    project.environ["CARGO_PROFILE_RELEASE_CODEGEN_UNITS"] = codegen_units
    project.environ["CARGO_PROFILE_RELEASE_OPT_LEVEL"] = level
    build = asyncio.run(project.build(CargoSelection(release=True)))
    crates = plan_thin_crates(build.captures, thin_dir=str(tmp_path / "thin"))
    objects = asyncio.run(ThinBuilder(crates).build([crate.name for crate in crates])).program
    assert objects is not None
    (program,) = build.programs
    host = read_host(program.executable)
    code = HostCode(program.executable, host.header)
    origin = Origin.of(
        host,
        archives=ArchiveSet(()),
        crate_names=frozenset({"leaf", "app"}),
        baseline=objects,
        host_code=code,
        padding=Padding(host, code),
    )
    edit = Edit.of(origin, session(1), objects, Comparison(names=(), before=(), now=()))
    in_thin = {pair for file in objects.files.values() for pair in inlined(file.path)}
    pairs = {
        (function, holder)
        for function, holder in inlined(program.executable) - in_thin
        if demangle(function).lstrip("<").startswith(("leaf::", "app::")) and host.functions(holder)
    }
    missed = {
        (demangle(function), demangle(holder))
        for function, holder in pairs
        if holder
        not in edit.forks({function, *(with_copy for copied, with_copy in in_thin if copied == function)}).replaced
    }
    assert pairs
    assert not missed
