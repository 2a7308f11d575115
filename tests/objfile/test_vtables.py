"""Virtual tables in real objects, by type and trait."""

import pytest

from hotpatchd.core.demangle import demangle
from hotpatchd.core.layout import TraitObject
from hotpatchd.objfile.codeunit import CodeUnit
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.vtables import find_table_shapes, read_tables
from tests.objfile.build import run

SOURCE = """
pub trait Base { fn base(&self) -> u8 { 1 } }
pub trait Shape: Base { fn area(&self) -> u64; fn edge(&self) -> u64 { 7 } }
pub struct Circle(pub u64);
impl Base for Circle {}
impl Shape for Circle { fn area(&self) -> u64 { self.0 } }
pub struct Named(pub String);
impl Base for Named {}
pub static TABLE: [fn(u64) -> u64; 2] = [|x| x, |x| x + 1];
pub fn make() -> Box<dyn Shape> { Box::new(Circle(1)) }
pub fn make_named() -> Box<dyn Base> { Box::new(Named(String::new())) }
"""


@pytest.fixture(scope="module", params=[4, 5], ids=lambda version: f"dwarf{version}")
def unit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CodeUnit:
    """The source as one object, in both versions of DWARF that rustc writes."""
    root = tmp_path_factory.mktemp("demo")
    (root / "demo.rs").write_text(SOURCE)
    run(
        *("rustc", "--edition=2021", "--crate-type=lib", "--emit=obj=demo.o", "-Ccodegen-units=1", "-Cdebuginfo=2"),
        *(f"-Cdwarf-version={request.param}", "demo.rs"),
        cwd=root,
    )
    obj = RelocatableObject((root / "demo.o").read_bytes(), "demo.o")
    return CodeUnit(obj, "demo", from_archive=False)


def test_methods_are_in_the_order_of_the_table(unit: CodeUnit) -> None:
    """Those of the trait that it extends come first, and a type without an own form has the trait's."""
    table = read_tables(unit)[TraitObject(type="demo::Circle", trait="demo::Shape")]
    assert list(map(demangle, table.methods)) == [
        "demo::Base::base",
        "<demo::Circle as demo::Shape>::area",
        "demo::Shape::edge",
    ]


def test_what_needs_dropping_is_dropped_through_the_table(unit: CodeUnit) -> None:
    """A type without destructors has no glue there."""
    tables = read_tables(unit)
    assert tables[TraitObject(type="demo::Named", trait="demo::Base")].drops
    assert not tables[TraitObject(type="demo::Circle", trait="demo::Shape")].drops


def test_tables_show_in_the_contents_of_constants(unit: CodeUnit) -> None:
    """Without any debug information."""
    assert set(read_tables(unit).values()) <= find_table_shapes(unit)
