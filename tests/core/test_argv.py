"""rustc's command line, against real commands, against rustc's own help, and against arbitrary ones."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.argv import (
    FLAGS,
    Arg,
    artifact_stem,
    codegen,
    crate_name,
    crate_types,
    emit_argv,
    parse_argv,
    source_input,
    values,
)
from hotpatchd.core.errors import ArgvError

CAPTURED = sorted((Path(__file__).parents[2] / "fixtures" / "argv").glob("*.json"))

VALUES = st.text(min_size=1).filter(lambda text: not text.startswith("@"))
BARE_SHORT = st.sampled_from("gOvhV")


def _spellings(flag_index: int, value: str) -> st.SearchStrategy[list[str]]:
    flag = FLAGS[flag_index]
    if not flag.takes_value:
        return st.sampled_from([[name] for name in flag.names])
    joined = [[name + ("=" if name.startswith("--") else "") + value] for name in flag.names]
    return st.sampled_from(joined + [[name, value] for name in flag.names])


WORDS = st.one_of(
    st.tuples(st.integers(0, len(FLAGS) - 1), VALUES).flatmap(lambda pair: _spellings(*pair)),
    st.text().filter(lambda text: not text.startswith(("-", "@"))).map(lambda path: [path]),
    st.just(["-"]),
    st.text(BARE_SHORT, min_size=2).map(lambda letters: [f"-{letters}"]),
    st.tuples(st.text(BARE_SHORT, min_size=1), VALUES).map(lambda pair: [f"-{pair[0]}C", pair[1]]),
    st.tuples(st.text(BARE_SHORT, min_size=1), VALUES).map(lambda pair: [f"-{pair[0]}L{pair[1]}"]),
)
COMMANDS = st.builds(
    lambda flags, rest: [word for words in flags for word in words] + rest,
    st.lists(WORDS),
    st.one_of(st.just([]), st.lists(VALUES).map(lambda inputs: ["--", *inputs])),
)


def _flags_in_help() -> dict[str, bool]:
    """Every spelling in `rustc --help -v`, and whether it takes a value."""
    text = subprocess.run(["rustc", "--help", "-v"], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in text.partition("Additional help")[0].splitlines():
        if match := re.match(r" {4,8}(-\w)?(?:, )?(--[\w-]+)?( [\[<])?", line):
            names = [name for name in match.groups()[:2] if name]
            found.update(dict.fromkeys(names, match[3] is not None))
    return found


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_a_captured_command_comes_back_byte_for_byte(path: Path) -> None:
    """Emitting what was parsed gives the words that cargo gave."""
    argv = json.loads(path.read_text())
    assert emit_argv(parse_argv(argv)) == argv


@given(COMMANDS)
def test_any_command_comes_back_byte_for_byte(argv: list[str]) -> None:
    """Emitting is the inverse of parsing, for every flag in every spelling."""
    assert emit_argv(parse_argv(argv)) == argv


@given(COMMANDS, st.data())
def test_removing_arguments_leaves_the_others_what_they_were(argv: list[str], data: st.DataObject) -> None:
    """Flags that shared one word are still themselves when some of them are gone."""
    args = parse_argv(argv)
    kept = [arg for arg in args if arg.flag == "--" or data.draw(st.booleans())]
    again = parse_argv(emit_argv(kept))
    assert [(arg.flag, arg.value) for arg in again] == [(arg.flag, arg.value) for arg in kept]


def test_the_table_agrees_with_rustc() -> None:
    """Each flag that rustc lists is in the table, and takes a value exactly if rustc says so."""
    table = {name: flag.takes_value for flag in FLAGS for name in flag.names}
    listed = _flags_in_help()
    assert len(listed) > 35
    assert listed == {name: table.get(name) for name in listed}


def test_the_captured_bin_is_understood() -> None:
    """The helpers read a real command: name, source, crate type, codegen options, dependencies."""
    args = parse_argv(json.loads(next(path for path in CAPTURED if path.stem == "dev-bin").read_text()))
    assert crate_name(args) == "app_bin"
    assert source_input(args) == "app/src/main.rs"
    assert crate_types(args) == ("bin",)
    assert codegen(args, "metadata") == "77fa15eeee3564d6"
    assert codegen(args, "opt-level") is None
    assert artifact_stem(args) == "libapp_bin-d8c9347539003610"
    assert [value.partition("=")[0] for value in values(args, "--extern")] == ["app", "mac", "util"]


@pytest.mark.parametrize(
    "words",
    [
        ["-C", "opt-level=3"],
        ["-Copt-level=3"],
        ["--codegen", "opt-level=3"],
        ["--codegen=opt-level=3"],
        ["-C", "opt_level=3"],
        ["-O"],
        ["-gO"],
        ["-gCopt-level=3"],
        ["-C", "opt-level=0", "-O"],
    ],
    ids=" ".join,
)
def test_every_spelling_of_a_codegen_option_is_seen(words: list[str]) -> None:
    """The optimisation level is 3 however the command says so."""
    assert codegen(parse_argv(words), "opt-level") == "3"


def test_crate_types_are_gathered_from_repeats_and_commas() -> None:
    """All crate types are listed once, in order."""
    args = parse_argv(["--crate-type", "cdylib", "--crate-type=rlib,staticlib", "--crate-type", "rlib"])
    assert crate_types(args) == ("cdylib", "rlib", "staticlib")


def test_a_crate_without_a_name_is_named_after_its_source() -> None:
    """rustc takes the file's name and replaces hyphens."""
    assert crate_name(parse_argv(["src/my-tool.rs"])) == "my_tool"


def test_a_value_that_looks_like_a_flag_is_a_value() -> None:
    """What follows a flag with a value belongs to it."""
    assert parse_argv(["-C", "--test"]) == (Arg(flag="-C", value="--test", spelled="-C", join=None),)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--frobnicate", "src/main.rs"], "--frobnicate"),
        (["--frobnicate=x"], "--frobnicate"),
        (["-gX", "src/main.rs"], "-X"),
        (["--crate-typ", "lib"], "--crate-typ"),
        (["--test=yes"], "--test"),
        (["src/main.rs", "--emit"], "--emit"),
        (["-gC"], "-C"),
        (["@args.txt"], "@args.txt"),
        (["--cfg", "@args.txt"], "@args.txt"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(argv: list[str], named: str) -> None:
    """An unknown flag is never skipped, since its value would be taken for an input."""
    with pytest.raises(ArgvError, match=re.escape(f"`{named}`")):
        parse_argv(argv)


@pytest.mark.parametrize("argv", [["--test"], ["a.rs", "b.rs"]])
def test_a_command_has_one_source_file(argv: list[str]) -> None:
    """No input, or several, is an error."""
    with pytest.raises(ArgvError, match="one source file"):
        source_input(parse_argv(argv))
