"""Types as the compiler's debug information tells them, from real objects."""

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import ObjectError
from hotpatchd.core.layout import Field, Layout, TraitObject, Variant
from hotpatchd.objfile.elf import RelocatableObject
from hotpatchd.objfile.type_layouts import ObjectTypes
from hotpatchd.objfile.units import open_unit
from tests.objfile.bare import bare_object
from tests.objfile.build import run

SOURCE = """
use std::fmt::Debug;
use std::sync::Mutex;

pub struct Inner { pub a: u8, pub b: u64, pub c: u16 }
pub struct Node<T> { pub value: T, pub next: Option<Box<Node<T>>> }
pub enum Shape { Circle(f64), Square { side: u32 }, Empty }
#[repr(i8)]
pub enum Sign { Minus = -1, Plus = 1 }
#[repr(C)]
pub union Either { pub number: u32, pub ratio: f32 }
#[derive(Debug)]
pub struct Shown(u16);

pub struct Made<T> { pub by: fn() -> T, pub at: std::marker::PhantomData<T> }

pub static HELD: Mutex<Option<Inner>> = Mutex::new(None);
#[no_mangle]
pub static PLAIN: [Sign; 2] = [Sign::Minus, Sign::Plus];

pub fn touch(node: &Node<u32>, shape: Shape) -> u64 {
    let either = Either { number: node.value };
    match shape {
        Shape::Circle(radius) => radius as u64,
        Shape::Square { side } => side as u64,
        Shape::Empty => unsafe { either.number as u64 },
    }
}

pub fn owned(shown: Shown) -> Box<dyn Debug> { Box::new(shown) }

pub async fn waiting(x: u32) -> u32 { let y = vec![x]; std::future::ready(()).await; y[0] }

pub fn adding(base: u64) -> u64 { let add = |value: u64| value + base; add(1) }

pub fn made() -> Made<Shown> { Made { by: || Shown(1), at: std::marker::PhantomData } }

pub fn main() { made(); drop(waiting(touch(&Node { value: 1, next: None }, Shape::Empty) as u32)); adding(2);
    HELD.lock().unwrap().take(); }
"""


def compiled(root: Path, *options: str) -> RelocatableObject:
    """The source as one object."""
    (root / "demo.rs").write_text(SOURCE)
    object_path = root / "demo.o"
    run(
        *("rustc", "--edition=2021", "--cap-lints=allow", "--crate-type=lib", f"--emit=obj={object_path}"),
        *("-Ccodegen-units=1", "-Cdebuginfo=2", *options, "demo.rs"),
        cwd=root,
    )
    return RelocatableObject(object_path.read_bytes(), "demo.o")


@pytest.fixture(scope="module", params=[4, 5], ids=lambda version: f"dwarf{version}")
def types(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectTypes:
    """The types of the source, in both versions of DWARF that rustc writes."""
    return ObjectTypes(compiled(tmp_path_factory.mktemp("demo"), f"-Cdwarf-version={request.param}"))


def layout(types: ObjectTypes, path: str) -> Layout:
    """The one layout of a type."""
    [found] = types.layouts[path]
    return found


def test_fields_are_where_the_compiler_put_them(types: ObjectTypes) -> None:
    """rustc sorts them by size; the source's order does not show."""
    assert layout(types, "demo::Inner") == Layout(
        size=16,
        align=8,
        fields=(
            Field(name="a", offset=10, type="u8"),
            Field(name="b", offset=0, type="u64"),
            Field(name="c", offset=8, type="u16"),
        ),
    )


def test_enums_have_variants_with_tags(types: ObjectTypes) -> None:
    """Of an enum with data, each variant is a type, and the tag is a field."""
    shape = layout(types, "demo::Shape")
    assert [(variant.name, variant.tag) for variant in shape.variants] == [("Circle", 0), ("Empty", 2), ("Square", 1)]
    assert shape.fields == (Field(name="(tag)", offset=0, type="u32"),)
    assert layout(types, "demo::Shape::Square").fields == (Field(name="side", offset=4, type="u32"),)


def test_enums_without_data_have_numbers(types: ObjectTypes) -> None:
    """Negative ones, too."""
    assert layout(types, "demo::Sign").variants == (Variant(name="Minus", tag=-1), Variant(name="Plus", tag=1))


def test_instances_of_generic_types_are_types(types: ObjectTypes) -> None:
    """Their paths have the arguments, and what a pointer leads to is part of them."""
    assert {one.name for one in layout(types, "demo::Node<u32>").fields} == {"value", "next"}
    parts = types.uses.parts
    assert any(
        "demo::Node<u32>" in parts.get(part, ()) for part in parts if part.startswith("alloc::boxed::Box<demo::")
    )


def test_fields_of_a_union_overlap(types: ObjectTypes) -> None:
    """All are at its beginning."""
    assert {one.offset for one in layout(types, "demo::Either").fields} == {0}


def test_closures_and_tasks_have_layouts(types: ObjectTypes) -> None:
    """What a closure captures and what a task keeps across an await are fields."""
    assert layout(types, "demo::adding::{closure_env#0}").fields == (Field(name="_ref__base", offset=0, type="&u64"),)
    kept = layout(types, "demo::waiting::{async_fn_env#0}::Suspend0").fields
    assert {"x", "y"} <= {one.name for one in kept}


def test_statics_have_types(types: ObjectTypes) -> None:
    """By symbol, mangled or not."""
    statics = {demangle(name): type_ for name, type_ in types.uses.statics.items()}
    assert statics["demo::HELD"] == "std::sync::poison::mutex::Mutex<core::option::Option<demo::Inner>>"
    assert statics["PLAIN"] == "[demo::Sign; 2]"


def test_functions_have_signatures_and_variables(types: ObjectTypes) -> None:
    """Parameters, the result, and what the body names."""
    functions = {demangle(name): found for name, found in types.uses.functions.items()}
    touch = functions["demo::touch"]
    assert touch.signature == {"&demo::Node<u32>", "demo::Shape", "u64"}
    assert {"demo::Either", "f64"} <= touch.all - touch.signature


def test_glue_is_known_by_what_it_was_instantiated_for(types: ObjectTypes) -> None:
    """The compiler gives some of its glue no parameters in debug information."""
    functions = {demangle(name): found for name, found in types.uses.functions.items()}
    glue = functions["core::ptr::drop_in_place<demo::waiting::{{closure}}>"]
    assert not glue.signature
    assert glue.generic == {"demo::waiting::{async_fn_env#0}"}


def test_trait_objects_are_known_by_their_tables(types: ObjectTypes) -> None:
    """The type of the value, and the trait."""
    assert TraitObject(type="demo::Shown", trait="core::fmt::Debug") in types.uses.trait_objects


@pytest.mark.parametrize("version", [4, 5])
def test_types_of_a_coff_object_are_those_of_an_elf_object(tmp_path: Path, version: int) -> None:
    """The same source is told in the same way, whichever format the debug information lies in."""
    source = """
        pub struct Inner { pub a: i32, pub b: *const i32 }
        pub enum Shape { Circle(i32), Square { side: *const i32 } }
        #[no_mangle] pub extern "C" fn touch(inner: &Inner, shape: Shape) -> i32 { inner.a }
    """
    found = []
    for target in ("x86_64-pc-windows-gnu", "x86_64-unknown-linux-gnu"):
        flags = ("-Copt-level=0", "-Cdebuginfo=2", "-Ccodegen-units=1", f"-Cdwarf-version={version}")
        path = bare_object(tmp_path, target, source, *flags)
        unit = open_unit(path.read_bytes(), "bare", origin=target, from_archive=False)
        found.append((unit.types.layouts, unit.types.uses.functions))
    coff, elf = found
    assert coff == elf
    assert {"patch::Inner", "patch::Shape"} <= coff[0].keys()
    assert coff[1].keys() == {"touch"}


@pytest.mark.parametrize("version", [4, 5])
def test_sizes_agree_with_pyelftools(tmp_path: Path, version: int) -> None:
    """Every struct has the size that another reader of DWARF finds."""
    obj = compiled(tmp_path, f"-Cdwarf-version={version}")
    with (tmp_path / "demo.o").open("rb") as file:
        dwarf = ELFFile(file).get_dwarf_info()
        expected = sorted(
            (die.attributes["DW_AT_name"].value.decode(), die.attributes["DW_AT_byte_size"].value)
            for unit in dwarf.iter_CUs()
            for die in unit.iter_DIEs()
            if die.tag == "DW_TAG_structure_type"
            and {"DW_AT_name", "DW_AT_byte_size"} <= die.attributes.keys()
            and "DW_AT_containing_type" not in die.attributes
        )
    found = {(path, one.size) for path, layouts in ObjectTypes(obj).layouts.items() for one in layouts}
    assert expected
    for name, size in expected:
        assert any(path.endswith(name) and size == one for path, one in found), (name, size)


def test_an_object_without_debug_information_has_no_types(tmp_path: Path) -> None:
    """Assembly has none, for instance."""
    types = ObjectTypes(compiled(tmp_path, "-Cdebuginfo=0"))
    assert (dict(types.layouts), types.uses.functions) == ({}, {})


def test_damaged_debug_information_is_an_error(tmp_path: Path) -> None:
    """It is named with the object, never taken for no types."""
    obj = compiled(tmp_path)
    index = obj.section_named(".debug_abbrev")
    assert index is not None
    section = obj.sections[index]
    data = bytearray(obj.data)
    data[section.offset : section.offset + section.size] = b"\xff" * section.size
    with pytest.raises(ObjectError, match=r"demo\.o: its debug information"):
        _ = ObjectTypes(RelocatableObject(bytes(data), "demo.o")).layouts


def test_functions_have_a_path_and_their_parameters_in_order(types: ObjectTypes) -> None:
    """Closures and the code of async functions have their number there."""
    functions = {demangle(name): found for name, found in types.uses.functions.items()}
    touch, closure = functions["demo::touch"], functions["demo::adding::{{closure}}"]
    assert (touch.path, touch.parameters) == ("demo::touch", ("&demo::Node<u32>", "demo::Shape", "u64"))
    assert (closure.path, closure.parameters[-1]) == ("demo::adding::{closure#0}", "u64")
    assert functions["demo::waiting::{{closure}}"].path == "demo::waiting::{async_fn#0}"


def test_objects_that_took_code_from_each_other_are_read(tmp_path: Path) -> None:
    """Their debug information has several units, which refer to each other."""
    (tmp_path / "one.rs").write_text(
        "mod a { #[inline(never)] pub fn f(x: (u8, u64)) -> u64 { x.1 + x.0 as u64 } }"
        "mod b { pub fn g(y: Option<u64>) -> u64 { super::a::f((1, y.unwrap())) } }"
        "mod c { pub fn h(z: Result<u64, u8>) -> u64 { super::b::g(z.ok()) } }"
        "fn main() { std::process::exit(c::h(Ok(std::process::id().into())) as i32) }"
    )
    flags = ("-Copt-level=3", "-Ccodegen-units=4", "-Cdebuginfo=2", "-Csave-temps")
    run("rustc", *flags, "one.rs", cwd=tmp_path)
    objects = [RelocatableObject(path.read_bytes(), path.name) for path in tmp_path.glob("*.rcgu.o")]
    functions = {name for obj in objects for name in ObjectTypes(obj).uses.functions}
    assert "main" in {demangle(name).rpartition("::")[2] for name in functions}


def test_what_no_field_leads_to_is_told_apart(types: ObjectTypes) -> None:
    """A parameter alone makes no holder; an owner by a hidden pointer says so, and a boxed value is led to."""
    made_for = types.uses.made_for
    assert "u32" in made_for["alloc::vec::Vec<u32, alloc::alloc::Global>"]
    assert "core::marker::PhantomData<demo::Shown>" not in made_for
    assert types.uses.parts["core::marker::PhantomData<demo::Shown>"] == {"demo::Shown"}
    assert types.uses.parts["demo::Made<demo::Shown>"] > {"core::marker::PhantomData<demo::Shown>"}


@pytest.mark.parametrize(
    ("functions", "is_told"),
    [({"adding"}, True), ({"nobody", "waiting"}, True), ({"addin"}, False), ({"dding"}, False), (set(), False)],
)
def test_functions_around_closures_are_mentioned(types: ObjectTypes, functions: set[str], is_told: bool) -> None:
    """By their whole names, also those around the body of an async function."""
    assert types.mention(functions) is is_told


def test_a_closure_in_parameters_of_a_type_is_mentioned(tmp_path: Path) -> None:
    """There its path is part of another name."""
    name = "Map<u8, demo::adding::{closure_env#0}>"
    (tmp_path / "map.s").write_text(f'.section .debug_str,"MS",@progbits,1\n.asciz "{name}"\n')
    run("as", tmp_path / "map.s", "-o", tmp_path / "map.o")
    types = ObjectTypes(RelocatableObject((tmp_path / "map.o").read_bytes(), "map.o"))
    assert [types.mention({name}) for name in ("adding", "demo", "Map")] == [True, False, False]
