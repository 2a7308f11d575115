"""Recipes: their tables against rustc's option list, their edits against real rustc runs."""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.argv import FLAGS, codegen, parse_argv, source_input, values
from hotpatchd.core.errors import ArgvError
from hotpatchd.core.recipe import CGU, SINGLE_OBJECT, EditedArgv, edit_cgu, edit_single_object, find_refusal

FIXTURES = Path(__file__).parents[2] / "fixtures" / "argv"
CAPTURED = {path.stem: json.loads(path.read_text()) for path in sorted(FIXTURES.glob("*.json"))}
REBUILDABLE = [name for name in CAPTURED if name not in ("dev-proc-macro", "dev-build-script")]

THIN = {"libutil-7240062473c88f82": "/thin/util/libutil-7240062473c88f82.rmeta"}

Recipe = Callable[[Sequence[str]], EditedArgv]


def _cgu(argv: Sequence[str]) -> EditedArgv:
    return edit_cgu(argv, out_dir="/out", incremental_dir="/inc", with_metadata=True, ansi=True, thin_crates=THIN)


def _cgu_match(argv: Sequence[str]) -> EditedArgv:
    return edit_cgu(argv, out_dir="/out", incremental_dir="/inc", opt_level="match")


def _single_object(argv: Sequence[str]) -> EditedArgv:
    return edit_single_object(argv, out_dir="/out", incremental_dir="/inc")


RECIPES = [_cgu, _cgu_match, _single_object]


def test_a_captured_bin_by_codegen_unit() -> None:
    """The whole edit of one real command."""
    assert _cgu(CAPTURED["dev-bin"]).argv == (
        *("-L", "dependency=/thin/util", "--crate-name", "app_bin", "--edition=2021", "app/src/main.rs"),
        *("--crate-type", "bin", "-C", "embed-bitcode=no"),
        *("--cfg", 'feature="default"', "--cfg", 'feature="fast"', "--check-cfg", "cfg(docsrs,test)"),
        *("--check-cfg", 'cfg(feature, values("default", "fast"))'),
        *("-C", "metadata=77fa15eeee3564d6", "-C", "extra-filename=-d8c9347539003610"),
        *("-L", "dependency=/home/dev/shop/target/debug/deps"),
        *("--extern", "app=/home/dev/shop/target/debug/deps/libapp-5e8578f6a920c9f7.rlib"),
        *("--extern", "mac=/home/dev/shop/target/debug/deps/libmac-fc05a278364e695b.so"),
        *("-C", "link-arg=-Wl,-z,now", "--cfg", "odd", "--check-cfg", "cfg(odd)"),
        *("--extern", "util=/thin/util/libutil-7240062473c88f82.rmeta"),
        *("--emit=obj,dep-info,metadata", "--out-dir=/out", "-C", "codegen-units=256", "-C", "incremental=/inc"),
        *(
            "-C",
            "lto=off",
            "-C",
            "debuginfo=2",
            "-C",
            "link-dead-code=yes",
            "--error-format=json",
            "--json=artifacts,diagnostic-rendered-ansi",
        ),
        *("-C", "opt-level=0"),
    )


def test_a_captured_bin_as_a_single_object() -> None:
    """The whole edit of the same command by the other recipe."""
    edited = _single_object(CAPTURED["dev-bin"]).argv
    removed = ("--error-format=json", "--emit=dep-info,link", "-C incremental=", "--out-dir ", "--json=")
    assert edited[-7:] == (
        *("--crate-type=rlib", "--emit=obj=/out/app_bin.o", "--out-dir=/out"),
        *("-C", "incremental=/inc", "-C", "opt-level=0"),
    )
    assert not any(text in " ".join(edited[:-7]) for text in removed)
    assert edited[:4] == ("--crate-name", "app_bin", "--edition=2021", "app/src/main.rs")


def _spellings(option: str) -> list[list[str]]:
    """The ways to give a codegen option."""
    return [["-C", option], [f"-C{option}"], ["--codegen", option], [f"--codegen={option}"]]


PLAIN = ["--crate-name", "app", "--edition=2021", "src/lib.rs", "-C", "metadata=1", "--cfg", "a"]


@pytest.mark.parametrize(
    "words",
    [
        *(["--crate-type", kind] for kind in ("bin", "lib", "dylib", "cdylib", "staticlib")),
        ["--crate-type=cdylib,staticlib,rlib"],
        ["--crate-type", "lib", "--crate-type=cdylib"],
        *(["--emit", "dep-info,metadata,link"], ["--emit=obj=/x/y.o"], ["--emit=link", "--emit", "asm"]),
        *(["--out-dir", "/x"], ["--out-dir=/x"], ["-o", "x"], ["-ox"]),
        *(
            words
            for option in ("incremental=/x", "codegen-units=16", "codegen_units=1")
            for words in _spellings(option)
        ),
        *(words for option in ("opt-level=3", "opt_level=s", "opt-level=0") for words in _spellings(option)),
        ["-O"],
        *(["--error-format", "json"], ["--error-format=json"], ["--error-format=short"]),
        *(["--json", "artifacts"], ["--json=diagnostic-rendered-ansi,artifacts,future-incompat"]),
        ["--color=always"],
        *(words for option in ("save-temps", "lto=fat", "linker-plugin-lto") for words in _spellings(option)),
    ],
    ids=" ".join,
)
def test_the_recipe_for_a_single_object_takes_out_every_spelling(words: list[str]) -> None:
    """What it sets, or what would spoil the object, leaves no trace wherever it stood."""
    expected = _single_object([*PLAIN, "-C", "debug-assertions=on"]).argv
    assert _single_object([*PLAIN, "-C", "debug-assertions=on", *words]).argv == expected
    assert _single_object([*words, *PLAIN, "-C", "debug-assertions=on"]).argv == expected
    assert _single_object(expected).argv == expected


def test_the_recipe_for_a_single_object_leaves_the_rest_verbatim() -> None:
    """As it is spelled, and where it is; what is set comes once, at the end."""
    rest = [
        *("--crate-name", "app", "-g", "--codegen=debuginfo=1", "-Cpanic=abort", "--codegen", "metadata=1"),
        *(
            "--cfg",
            'feature="x"',
            "--extern=priv:a=/deps/liba.rlib",
            "-Ldependency=/deps",
            "-L",
            "/n",
            "--cap-lints=warn",
        ),
        *("--target", "aarch64-linux-android", "--sysroot=/s", "-Wunused", "-Zthreads=4", "src/lib.rs"),
    ]
    assert _single_object(rest).argv == (
        *rest,
        *(
            "--crate-type=rlib",
            "--emit=obj=/out/app.o",
            "--out-dir=/out",
            "-C",
            "incremental=/inc",
            "-C",
            "opt-level=0",
        ),
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", REBUILDABLE)
def test_editing_an_edited_command_changes_nothing(name: str, recipe: Recipe) -> None:
    """The recipes are idempotent on real commands."""
    once = recipe(CAPTURED[name]).argv
    assert recipe(once).argv == once


OPTIONS = st.sampled_from(
    "opt-level=3 opt_level=1 debuginfo=1 codegen-units=1 incremental=/x lto lto=off lto=thin save-temps"
    " debug-assertions=on link-dead-code split-debuginfo=packed linker-plugin-lto metadata=1 strip=none".split()
)
ARGUMENTS = st.one_of(
    OPTIONS.flatmap(
        lambda o: st.sampled_from([["-C", o], [f"-C{o}"], ["--codegen", o], [f"--codegen={o}"], [f"-gC{o}"]])
    ),
    st.sampled_from(
        [
            ["-O"],
            ["-g"],
            ["-gO"],
            ["--test"],
            ["-o", "x"],
            ["-ox"],
            ["--crate-type", "cdylib"],
            ["--crate-type=bin"],
            ["--crate-type=lib,staticlib"],
            ["--emit", "link"],
            ["--emit=metadata"],
            ["--out-dir", "/a"],
            ["--out-dir=/b"],
            ["--print=link-args"],
            ["--extern", "util=/deps/libutil-7240062473c88f82.rlib"],
            ["--extern", "priv:util=/deps/libutil-7240062473c88f82.rmeta"],
            ["--extern=std"],
            ["-L", "dependency=/thin/util"],
            ["-Ldependency=/deps"],
            ["--color", "always"],
            ["--json=artifacts"],
        ]
    ),
)


@given(st.lists(ARGUMENTS), st.sampled_from([[], ["--"]]), st.sampled_from(RECIPES))
def test_editing_is_idempotent_and_leaves_one_of_each(
    arguments: list[list[str]], end: list[str], recipe: Recipe
) -> None:
    """Whatever was captured, in whatever spelling, what the recipe sets is there once."""
    argv = [word for words in arguments for word in words]
    once = recipe(["--crate-name", "app", *argv, *end, "app.rs"]).argv
    assert recipe(once).argv == once
    args = parse_argv(once)
    settings = [arg.setting for arg in args]
    for setting in ("--crate-name", "--out-dir", "--emit", "-C incremental"):
        assert settings.count(setting) == 1
    assert values(args, "--out-dir") == ("/out",)
    assert settings.count("-C codegen-units") <= 1
    assert settings.count("--json") <= 1
    for setting in ("-o", "--print", "--color", "-C save-temps", "-C linker-plugin-lto", "-C split-debuginfo"):
        assert setting not in settings
    assert source_input(args) == "app.rs"
    if recipe is not _cgu_match:
        assert [arg.setting_value for arg in args if arg.setting == "-C opt-level"] == ["0"]


@pytest.mark.parametrize("table", [CGU, SINGLE_OBJECT], ids=["cgu", "single-object"])
def test_every_option_of_rustc_has_a_row(table: dict[str, object]) -> None:
    """No flag and no codegen option of the installed rustc was forgotten."""
    listing = subprocess.run(["rustc", "-C", "help"], check=True, capture_output=True, text=True).stdout
    options = {f"-C {name}" for name in re.findall(r"-C +([\w-]+)=val", listing)}
    assert len(options) > 45
    flags = {flag.names[0] for flag in FLAGS} - {"-C", "-Z", "-g", "-O"}
    assert (options | flags) - set(table) == set()


def test_the_edits_say_what_was_done_and_why() -> None:
    """Each changed argument is listed with its fate and a reason; what a recipe does not touch is listed as kept."""
    edits = {edit.flag: edit for edit in _cgu(CAPTURED["release-lto-off-split-debuginfo-bin"]).edits}
    assert {flag: edits[flag].action for flag in ("-C opt-level=3", "-C opt-level=0", "-C lto=off")} == {
        "-C opt-level=3": "drop",
        "-C opt-level=0": "set",
        "-C lto=off": "set",
    }
    assert edits["-C split-debuginfo=packed"].action == "drop"
    assert edits["-C metadata=9fb4b261b1dd90c4"].action == "keep"
    assert all(edit.reason for edit in edits.values())


def test_a_library_can_be_rebuilt_without_its_dead_code() -> None:
    """Then the option is not there at all, also where it was captured."""
    argv = (*CAPTURED["dev-lib"], "-C", "link-dead-code")
    edited = edit_cgu(argv, out_dir="/out", incremental_dir="/inc", link_dead_code=False)
    assert codegen(parse_argv(edited.argv), "link-dead-code") is None


def test_an_optimised_host_can_be_matched() -> None:
    """With `match` the captured level and its debug assertions stay as they are."""
    args = parse_argv(_cgu_match(CAPTURED["release-lto-off-split-debuginfo-bin"]).argv)
    assert codegen(args, "opt-level") == "3"
    assert codegen(args, "debug-assertions") is None


def test_functions_of_an_optimised_host_keep_their_addresses_apart() -> None:
    """LLVM makes no function another name of an equal one, which might be edited later."""
    args = parse_argv(_cgu_match(("--crate-name=a", "a.rs", "-O")).argv)
    apart = [arg.setting_value for arg in args if arg.setting == "-C llvm-args"]
    assert apart == ["-mergefunc-use-aliases=0", "-mergefunc-preserve-debug-info"]


def test_a_choice_about_equal_functions_is_kept() -> None:
    """LLVM takes that argument once."""
    chosen = ("--crate-name=a", "a.rs", "-O", "-Cllvm-args=-mergefunc-use-aliases=1 -mergefunc-preserve-debug-info")
    args = parse_argv(_cgu_match(chosen).argv)
    assert [arg.setting_value for arg in args if arg.setting == "-C llvm-args"] == [
        "-mergefunc-use-aliases=1 -mergefunc-preserve-debug-info"
    ]


@pytest.mark.parametrize(("name", "reason"), [("dev-proc-macro", "proc macro"), ("dev-build-script", "build script")])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_runs_during_the_build_is_refused(name: str, reason: str, recipe: Recipe) -> None:
    """Procedural macros and build scripts are never part of the running program."""
    assert reason in (find_refusal(CAPTURED[name]) or "")
    with pytest.raises(ArgvError, match=reason):
        recipe(CAPTURED[name])


def test_other_crates_are_not_refused() -> None:
    """Libraries, programs, examples and tests can be rebuilt."""
    assert [find_refusal(CAPTURED[name]) for name in REBUILDABLE] == [None] * len(REBUILDABLE)
    assert find_refusal(["--crate-name", "build_script_helpers", "--crate-type=lib", "lib.rs"]) is None


UTIL = """
pub struct Item(pub u8);
pub fn one() -> u32 { 1 }
fn hidden() -> u32 { if cfg!(debug_assertions) { asserting() } else { 7 } }
fn asserting() -> u32 { 3 }
pub mod inner { pub static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0); }
pub fn two() -> u32 { hidden() }
"""
MID = "pub fn two() -> u32 { util::one() + 1 } pub fn item() -> util::Item { util::Item(1) }"
APP = 'mod private { pub fn text() -> u32 { mid::two() } } fn main() { println!("{}", private::text()); }'


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Three crates in a row, `app` on `mid` on `util`, compiled as cargo compiles them."""

    root: Path

    def argv(self, crate: str, *extra: str) -> list[str]:
        """The captured command of a crate."""
        deps = self.root / "deps"
        dependency = {"util": [], "mid": [f"util={deps}/libutil-1.rmeta"], "app": [f"mid={deps}/libmid-1.rlib"]}
        kind = "bin" if crate == "app" else "lib"
        return [
            *("--crate-name", crate, "--edition=2021", f"{crate}.rs", "--error-format=json", "--crate-type", kind),
            *("--emit=dep-info,metadata,link", "-C", f"metadata={crate}", "-C", "extra-filename=-1"),
            *("--out-dir", str(deps), "-L", f"dependency={deps}"),
            *(word for value in dependency[crate] for word in ("--extern", value)),
            *extra,
        ]

    def rustc(self, argv: Sequence[str]) -> None:
        """Run rustc here."""
        run = subprocess.run(["rustc", *argv], cwd=self.root, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr

    def thin(self, crate: str, *extra: str, thin_crates: dict[str, str] | None = None) -> Path:
        """Rebuild a crate by the recipe `cgu`, with metadata, and return the output directory."""
        out = self.root / "thin" / f"{crate}{len(list(self.root.glob('thin/*')))}"
        out.mkdir(parents=True)
        edited = edit_cgu(
            self.argv(crate, *extra),
            out_dir=str(out),
            incremental_dir=str(out / "inc"),
            with_metadata=True,
            thin_crates=thin_crates,
        )
        self.rustc(edited.argv)
        return out


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The three crates' sources, with nothing compiled yet."""
    for crate, source in (("util", UTIL), ("mid", MID), ("app", APP)):
        (tmp_path / f"{crate}.rs").write_text(source)
    (tmp_path / "deps").mkdir()
    return Workspace(root=tmp_path)


def _symbols(*objects: Path) -> set[str]:
    run = subprocess.run(
        ["nm", "--defined-only", "--just-symbols", *objects], check=True, capture_output=True, text=True
    )
    return set(run.stdout.split())


def test_a_library_comes_as_many_objects_with_metadata(workspace: Workspace) -> None:
    """Objects carry the unit and the session in their names; dep-info and metadata lie beside them."""
    out = workspace.thin("util", "-O")
    objects = sorted(out.glob("*.rcgu.o"))
    assert len(objects) > 1
    assert all(re.fullmatch(r"util-1\.\w+\.\w+\.rcgu\.o", path.name) for path in objects)
    assert (out / "libutil-1.rmeta").exists()
    assert (out / "util-1.d").read_text().count("util.rs") > 1


def test_unused_private_functions_are_there_by_name(workspace: Workspace) -> None:
    """Nothing is made local or left out."""
    names = _symbols(*workspace.thin("util").glob("*.rcgu.o"))
    assert any("hidden" in name for name in names)


def test_lowering_the_level_does_not_switch_debug_assertions_on(workspace: Workspace) -> None:
    """What `cfg(debug_assertions)` selects in an optimised host is selected in the rebuild."""

    def calls_asserting(*extra: str) -> bool:
        objects = list(workspace.thin("util", *extra).glob("*.rcgu.o"))
        listing = subprocess.run(["objdump", "-dr", *objects], check=True, capture_output=True, text=True).stdout
        body = re.split(r"^\w+ <\w*hidden\w*>:$", listing, flags=re.MULTILINE)[1].partition("\n\n")[0]
        return "asserting" in body

    assert calls_asserting()
    assert not calls_asserting("-C", "opt-level=3")
    assert calls_asserting("-C", "opt-level=3", "-C", "debug-assertions=on")


def test_a_program_keeps_the_names_that_the_host_has(workspace: Workspace) -> None:
    """Every function of the crate that the rebuild defines, the linked program has, too."""
    for crate in ("util", "mid", "app"):
        workspace.rustc(workspace.argv(crate))
    own = {name for name in _symbols(*workspace.thin("app").glob("*.rcgu.o")) if "private" in name}
    assert own
    assert own <= _symbols(workspace.root / "deps" / "app-1")


@pytest.mark.parametrize("edited", [True, False])
def test_a_program_is_rebuilt_on_rebuilt_dependencies(workspace: Workspace, edited: bool) -> None:
    """New functions of a dependency's dependency are found in thin metadata, and unchanged crates are no clash."""
    for crate in ("util", "mid", "app"):
        workspace.rustc(workspace.argv(crate))
    if edited:
        (workspace.root / "util.rs").write_text(UTIL + "pub fn fresh<T: Default>() -> T { T::default() }")
        (workspace.root / "mid.rs").write_text(MID.replace("util::one()", "util::fresh::<u32>()"))
    thin_crates = {"libutil-1": f"{workspace.thin('util')}/libutil-1.rmeta"}
    thin_crates["libmid-1"] = f"{workspace.thin('mid', thin_crates=thin_crates)}/libmid-1.rmeta"
    objects = list(workspace.thin("app", thin_crates=thin_crates).glob("*.rcgu.o"))
    assert len(objects) > 1


@pytest.mark.parametrize("kind", ["cdylib", "dylib", "staticlib", "cdylib,rlib"])
def test_a_linked_library_is_rebuilt_with_mangled_names(workspace: Workspace, kind: str) -> None:
    """Nothing is linked, and private functions have their names."""
    out = workspace.thin("util", "--crate-type", kind)
    assert not list(out.glob("*.so")) + list(out.glob("*.a"))
    assert any("hidden" in name for name in _symbols(*out.glob("*.rcgu.o")))


@pytest.mark.parametrize(
    "extra",
    [
        ("-C", "linker-plugin-lto"),
        ("-C", "lto=thin"),
        ("-C", "lto=off", "-O"),
        ("-gC", "split-debuginfo=unpacked"),
        ("-C", "save-temps"),
        ("-o", "elsewhere"),
        ("-C", "codegen-units=1"),
        ("--test",),
    ],
    ids=" ".join,
)
def test_captured_options_do_not_spoil_the_output(workspace: Workspace, extra: tuple[str, ...]) -> None:
    """Whatever the profile says, there are ELF objects, and nothing that does not belong."""
    out = workspace.thin("util", *extra)
    objects = list(out.glob("*.rcgu.o"))
    assert len(objects) > 1
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in objects)
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {".o", ".d", ".rmeta"}
    assert not (workspace.root / "elsewhere").exists()


@pytest.mark.parametrize("ansi", [True, False])
def test_diagnostics_come_as_json_with_the_text_that_rustc_renders(workspace: Workspace, ansi: bool) -> None:
    """Each line is a message; its text is coloured on request."""
    (workspace.root / "util.rs").write_text("pub fn one() -> u32 { missing() }")
    argv = edit_cgu(
        workspace.argv("util", "--color=never"),
        out_dir=str(workspace.root),
        incremental_dir=str(workspace.root / "inc"),
        ansi=ansi,
    ).argv
    run = subprocess.run(["rustc", *argv], cwd=workspace.root, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    first = json.loads(run.stderr.splitlines()[0])
    assert "cannot find function `missing`" in first["rendered"]
    assert ("\x1b[" in first["rendered"]) == ansi


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("-C", "codegen-units=16"),
        ("-Ccodegen_units=16",),
        ("--codegen", "codegen-units=16"),
        ("--codegen=codegen-units=16",),
        ("-O",),
        ("-C", "lto=fat"),
        ("--crate-type", "cdylib"),
    ],
    ids=" ".join,
)
def test_a_library_comes_as_a_single_object(workspace: Workspace, extra: tuple[str, ...]) -> None:
    """One object, with every function in it, whatever was captured."""
    out = workspace.root / "single"
    out.mkdir()
    argv = workspace.argv("util", *extra)
    workspace.rustc(edit_single_object(argv, out_dir=str(out), incremental_dir=str(out / "inc")).argv)
    assert [path.name for path in out.iterdir() if path.is_file()] == ["util.o"]
    assert {"one", "two"} <= {part for name in _symbols(out / "util.o") for part in re.findall(r"one|two", name)}


def test_a_program_as_a_single_object_is_a_library(workspace: Workspace) -> None:
    """The recipe compiles programs, too, without `main`."""
    for crate in ("util", "mid"):
        workspace.rustc(workspace.argv(crate))
    out = workspace.root / "single"
    out.mkdir()
    workspace.rustc(edit_single_object(workspace.argv("app"), out_dir=str(out), incremental_dir=str(out / "inc")).argv)
    assert "main" not in _symbols(out / "app.o")
