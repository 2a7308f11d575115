"""Reading captures, and what depends on what among them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.capture import (
    Capture,
    Output,
    argv_values,
    decode_capture,
    last_codegen_value,
    link_order,
    with_externs,
)
from hotpatchd.core.errors import CaptureError
from hotpatchd.core.selection import CargoSelection

GOLDENS = {
    path.name: path.read_text() for path in sorted((Path(__file__).parents[2] / "fixtures" / "captures").glob("*.json"))
}
BIN = "say_hello-403b7a21f1aac384-bin-host.json"


@pytest.mark.parametrize("name", GOLDENS)
def test_the_key_of_a_capture_is_its_file_name(name: str) -> None:
    """Real captures of every kind are read, and named as the shim named them."""
    assert decode_capture(GOLDENS[name], name).key.file_name == name


def test_fields_are_those_of_the_file() -> None:
    """A binary's capture, field by field."""
    capture = decode_capture(GOLDENS[BIN], BIN)
    record = json.loads(GOLDENS[BIN])
    assert list(capture.argv) == record["argv"]
    assert dict(capture.env) == record["env"]
    assert (capture.rustc, capture.cwd, capture.toolchain) == (
        record["rustc"],
        record["cwd"],
        record["toolchain"],
    )
    assert capture.outputs == tuple(Output(**output) for output in record["outputs"])
    assert (capture.dep_info, capture.link_line) == (record["dep_info"], record["link_line"])


def test_properties_of_a_binary() -> None:
    """What the arguments say, by name."""
    capture = decode_capture(GOLDENS[BIN], BIN)
    assert (capture.crate_name, capture.crate_types, capture.metadata) == (
        "say_hello",
        ("bin",),
        "403b7a21f1aac384",
    )
    assert capture.outputs[0].path.endswith(f"/say_hello{capture.extra_filename}")
    assert capture.target is None
    assert capture.manifest_dir == "/src/hello/greet"
    assert not any((capture.is_test, capture.is_proc_macro, capture.is_build_script))


def test_kinds_are_told_apart() -> None:
    """Test harness, proc macro and build script."""
    captures = [decode_capture(text, name) for name, text in GOLDENS.items()]
    assert [c.crate_name for c in captures if c.is_test] == ["greet"]
    assert [c.crate_name for c in captures if c.is_proc_macro] == ["greet_macros"]
    assert [c.crate_name for c in captures if c.is_build_script] == ["build_script_build"]
    assert {c.target for c in captures} == {None, "x86_64-unknown-linux-gnu"}


@given(length=st.integers(min_value=0, max_value=len(GOLDENS[BIN]) - 3))
def test_a_capture_cut_short_is_named(length: int) -> None:
    """Whatever is left of it, the error says which file."""
    with pytest.raises(CaptureError, match=r"capture bin\.json is cut short"):
        decode_capture(GOLDENS[BIN][:length], "bin.json")


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
def test_json_that_is_no_object_is_named(text: str) -> None:
    """Valid JSON of another shape."""
    with pytest.raises(CaptureError, match=r"bin\.json is not a JSON object"):
        decode_capture(text, "bin.json")


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_a_foreign_schema_is_named(schema: object) -> None:
    """Both versions are in the message."""
    record = json.loads(GOLDENS[BIN]) | {"schema": schema}
    with pytest.raises(CaptureError, match=rf"bin\.json has schema {schema!r}, and this is schema 1"):
        decode_capture(json.dumps(record), "bin.json")


FIELDS = ["rustc", "argv", "cwd", "env", "toolchain", "outputs", "dep_info", "link_line"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    """Each field is required."""
    record = json.loads(GOLDENS[BIN])
    del record[field]
    with pytest.raises(CaptureError, match=rf"bin\.json: field `{field}` is missing"):
        decode_capture(json.dumps(record), "bin.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, True) for field in FIELDS),
        ("argv", ["--crate-name", 3]),
        ("env", {"A": None}),
        ("outputs", ["app"]),
        ("outputs", [{"path": "app", "size": 1}]),
        ("outputs", [{"path": "app", "size": 1, "mtime_ns": 0.5}]),
        ("outputs", [{"path": "app", "size": True, "mtime_ns": 1}]),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(field: str, value: Any) -> None:
    """So is each element of the lists."""
    record = json.loads(GOLDENS[BIN]) | {field: value}
    with pytest.raises(CaptureError, match=r"bin\.json: "):
        decode_capture(json.dumps(record), "bin.json")


def test_values_are_found_in_every_spelling() -> None:
    """With a space, with `=`, attached; the last one counts."""
    argv = ("-C", "metadata=1", "-Cmetadata=2", "--codegen", "metadata=3", "--codegen=metadata=4", "-Copt-level=3")
    assert last_codegen_value(argv, "metadata") == "4"
    assert last_codegen_value(argv[:-2], "metadata") == "3"
    assert last_codegen_value(argv[:-4], "metadata") == "2"
    assert last_codegen_value(argv, "linker") is None
    assert argv_values(("--cfg", "--test", "--cfg=x", "-L", "--cfg"), "--cfg") == ("--test", "x", "")


def crate(name: str, *externs: str, kind: str = "lib", local: bool = True, line: str | None = None) -> Capture:
    """A capture of `name`, whose output is `/t/<name>.rlib`."""
    args = ("--crate-name", name, "--crate-type", kind, "-C", "metadata=1")
    return Capture(
        rustc="rustc",
        argv=args + tuple(a for e in externs for a in ("--extern", f"priv:{e}=/t/{e}.rlib")),
        cwd="/src",
        env=(("CARGO_MANIFEST_DIR", "/src/local" if local else "/registry"),),
        toolchain="",
        outputs=(Output(path=f"/t/{name}.rlib", size=1, mtime_ns=1),),
        dep_info=None,
        link_line=line,
    )


def order(tip: Capture, *others: Capture) -> list[str]:
    """The names of `link_order`."""
    return [c.crate_name for c in link_order(tip, [tip, *others], {"/src/local"})]


def test_dependencies_come_first_and_the_tip_last() -> None:
    """A diamond, given in an order that does not help."""
    tip = crate("app", "left", "right", kind="bin")
    names = order(tip, crate("left", "base"), crate("base"), crate("right", "left", "base"), crate("other"))
    assert names == ["base", "left", "right", "app"]


def test_crates_of_the_compiler_are_not_linked() -> None:
    """A proc macro, and what only it uses, is no part of the program."""
    tip = crate("app", "macros", "base", kind="bin")
    macros, parser, base = crate("macros", "parser", kind="proc-macro"), crate("parser"), crate("base")
    assert order(tip, macros, parser, base) == ["base", "app"]
    assert {c.crate_name for c in with_externs([macros], [tip, macros, parser, base])} == {"macros", "parser"}


def test_a_foreign_crate_between_local_ones_is_kept() -> None:
    """It must be compiled again when what it uses changes; one that uses nothing local must not."""
    tip = crate("app", "between", kind="bin")
    between, base, leaf = (
        crate("between", "base", "leaf", local=False),
        crate("base"),
        crate("leaf", local=False),
    )
    assert order(tip, between, base, leaf) == ["base", "between", "app"]


def test_an_archive_on_the_link_line_is_a_dependency() -> None:
    """A local crate can be reached through a crate alone that was not captured."""
    tip = crate("app", "unseen", kind="bin", line='"cc" "/t/base.rlib" "-o" "app"')
    assert order(tip, crate("base"), crate("ase")) == ["base", "app"]


def test_selection_speaks_cargos_words() -> None:
    """Each field becomes the flag of its name; `cargo metadata` gets those that it knows."""
    selection = CargoSelection(
        manifest_path="a/Cargo.toml",
        package="p",
        bin=("b",),
        example=("e",),
        release=True,
        profile="fast",
        features=("x", "y/z"),
        no_default_features=True,
        all_features=True,
        target="t",
        target_dir="d",
    )
    resolve = "--manifest-path a/Cargo.toml --features x,y/z --no-default-features --all-features"
    build = "--release --package p --bin b --example e --profile fast --target t --target-dir d"
    assert " ".join(selection.cargo_args()) == f"{resolve} {build}"
    assert " ".join(selection.metadata_args()) == f"{resolve} --filter-platform t"
    assert CargoSelection().cargo_args() == ()
