"""Demangling, against rustc-demangle's own answers, against binutils, and against garbage."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.demangle import demangle

FIXTURES = Path(__file__).parents[2] / "fixtures" / "demangle"
SYMBOLS = [tuple(line.split("\t", 1)) for line in (FIXTURES / "symbols.tsv").read_text("utf-8").splitlines()]

PLAIN_SOURCE = """
use std::fmt::Debug;
pub struct Pair<A, B>(pub A, pub B);
impl<A: Debug, B> Pair<A, B> {
    pub fn show(&self) -> String { (0..2).map(|n| format!("{n}{:?}", self.0)).collect() }
}
pub fn all() -> String { Pair(vec![(1u8, "x")], Some(2.0f32)).show() + &Pair((), &mut 'c').show() }
"""


@pytest.mark.parametrize("mangling", ["_ZN", "_R"])
def test_names_read_as_rustc_demangle_writes_them(mangling: str) -> None:
    """Every name of the fixture crate has the text that the reference implementation gave it."""
    chosen = [(name, text) for name, text in SYMBOLS if name.startswith(mangling)]
    assert len(chosen) > 50
    assert [(name, demangle(name)) for name, _ in chosen] == chosen


@pytest.mark.parametrize("mangling", ["legacy", "v0"])
def test_names_of_the_installed_rustc_read_as_binutils_writes_them(mangling: str, tmp_path: Path) -> None:
    """A crate compiled now has names that c++filt reads alike, hashes aside."""
    assert shutil.which("c++filt")
    source = tmp_path / "plain.rs"
    source.write_text(PLAIN_SOURCE)
    argv = ["rustc", "--crate-type=rlib", f"--emit=obj={tmp_path}/plain.o", "-Clink-dead-code=yes", str(source)]
    unstable = ["-Zunstable-options", f"-Csymbol-mangling-version={mangling}"]
    subprocess.run([*argv, *unstable], check=True, env={**os.environ, "RUSTC_BOOTSTRAP": "1"})
    listing = subprocess.run(
        ["nm", "--just-symbols", f"{tmp_path}/plain.o"], check=True, capture_output=True, text=True
    ).stdout
    names = [name for name in listing.split() if name.startswith(("_ZN", "_R")) and "plain" in name]
    assert len(names) > 5
    text = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    expected = re.sub(r"\[[0-9a-f]{9,}\]|::h[0-9a-f]{16}$|(?<=\d): usize", "", text, flags=re.MULTILINE)
    assert [demangle(name) for name in names] == expected.splitlines()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_RNvC3app4main", "app::main"),
        ("__RNvC3app4main", "app::main"),
        ("_RNvC3app4main.llvm.1234ABCD", "app::main"),
        ("_RNvC3app4main.cold.7", "app::main"),
        ("_RNvC3app4main$got", "app::main"),
        ("_ZN3app4main17h0123456789abcdefE", "app::main"),
        ("__ZN3app4main17h0123456789abcdefE", "app::main"),
        ("_ZN3app4main17h0123456789abcdefE.llvm.99", "app::main"),
        ("_ZN11a$u7b$..b.c17h0123456789abcdefE", "a{::b.c"),
        ("_ZN10_$LT$T$GT$17h0123456789abcdefE", "<T>"),
        ("_ZN9a$ud800$b17h0123456789abcdefE", "a$ud800$b"),
        ("_RNvC6_123abc1x", "123abc::x"),
        ("_RINvC3app3runNvB2_4taskEB2_", "app::run::<app::task>"),
        ("_RNSC3apps_6vtable", "app::{shim:vtable#1}"),
        ("_RMC0DNtC3app5Shapep4SIZEKj2a_EL_", "<dyn app::Shape<SIZE = 42>>"),
        ("_RMC0DG_INtC3app5ShapeRL0_hEp4ItemeEL_", "<dyn for<'a> app::Shape<&'a u8, Item = str>>"),
        (
            "_RMC0TDG_INtC3app1SRL0_hEEL_FG_RL0_hEuE",
            "<(dyn for<'a> app::S<&'a u8>, for<'a> fn(&'a u8))>",
        ),
        ("_RMC0FwTlEEu", "<fn(#[splat] (i32,))>"),
        ("_RMC0WmORm1_m2_NE", "<u32 is 1..=2 | !null>"),
        ("_RIC0KRRe61_E", '::<{&"a"}>'),
        ("_RIC0KQAh0_EE", "::<{&mut [0]}>"),
        ("_RIC0Kb1_Kb0_KpE", "::<true, false, _>"),
        ("_RIC0Kc27_Ke22_E", "::<'\\'', {*\"\\\"\"}>"),
        ("_RNvC3appu3foo", "app::\u456d"),
        ("_RNvC3appu6zzzzzz", "app::punycode{zzzzzz}"),
        ("_RIC0KVNtC3app1AS1xh1_1yRe62_EE", '::<{app::A { x: 1, y: "b" }}>'),
    ],
)
def test_single_constructs(name: str, text: str) -> None:
    """One construct of the grammar each."""
    assert demangle(name) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "main",
        "_R",
        "_ZN",
        "_ZN3foo3barEv",
        "_ZN3foo3barE",
        "_ZNSt6vectorIiE4sizeEv",
        "_ZN5app4main17h0123456789abcdefE",
        "_ZN3app4main17h0123456789abcdeE",
        "_ZN3app4main17h0123456789abcdefEv",
        "_ZN99999999999999999999app17h0123456789abcdefE",
        "_R1NvC3app4main",
        "_RNvC3app4mai",
        "_RNvC3app4main_",
        "_RNvC3app4mainé",
        "_RNvC99999999999999999999app4main",
        "_RNvNvB_1a",
        "_RNvC3appu4foo_",
        "_RMC0DG_INtC3app5ShapeRL0_hEp4ItemeREL0_",
        "_RMC0RL0_h",
        "_RIC0Kb2_E",
        "_RIC0Kcd800_E",
        "_RIC0Kc110000_E",
        "_RIC0Keff_E",
        "_RIC0Kea_E",
        "_RIC0" + "R" * 100_000 + "hE",
        "_R" + "Nv" * 100_000 + "C0",
        "_RIC0FG" + "Z" * 10 + "_EuE",
        "_RIC0FG" + "Z" * 100_000 + "_EuE",
        "_RIC0" + "T" * 30 + "p" + "".join(f"B{digit}_E" for digit in "xwvutsrqponmlkjihgfedcba987654") + "E",
    ],
    ids=lambda name: name[:40] or "empty",
)
@pytest.mark.timeout(5)
def test_other_and_malformed_names_are_left_alone(name: str) -> None:
    """Names of C and C++, cut, forged, bottomless and exploding ones come back unchanged."""
    assert demangle(name) == name


@given(st.sampled_from(["_R", "_ZN", "_RNvC1a", "_RIC0", "_RMC0"]), st.text("CNIMXYBRQPOASTFDWKELGUuvspnbce_0129ahz"))
def test_grammatical_garbage_ends(prefix: str, text: str) -> None:
    """Whatever follows a mangling's prefix, demangling ends, with a bounded text."""
    assert len(demangle(prefix + text)) <= 110_000


@given(st.sampled_from(["_R", "_ZN", ""]), st.text())
def test_arbitrary_text_ends(prefix: str, text: str) -> None:
    """No text makes it raise."""
    demangle(prefix + text)


@given(st.sampled_from([name for name, _ in SYMBOLS]), st.data())
def test_a_name_with_one_character_changed_ends(name: str, data: st.DataObject) -> None:
    """Near misses of real names are read or left alone."""
    at = data.draw(st.integers(2, len(name) - 1))
    demangle(name[:at] + data.draw(st.characters(max_codepoint=127)) + name[at + 1 :])
