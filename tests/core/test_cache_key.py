"""Keys of the cache: what makes a difference, and what makes none."""

from dataclasses import replace

import pytest

from hotpatchd.core.cache_key import command_files, command_key, digest_of, link_key, other_places, result_key
from hotpatchd.core.capture import Capture
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.thinplan import ThinCrate, plan_thin_crates

CAPTURE = Capture(
    rustc="/bin/rustc",
    argv=("--crate-name", "app", "src/main.rs", "--extern", "priv:leaf=deps/libleaf.rlib", "--extern=proc_macro"),
    cwd="/work",
    env=(("A", "1"), ("B", "2")),
    toolchain="rustc 1.95.0",
    outputs=(),
    dep_info=None,
    link_line=None,
)
FILES = {"/work/deps/libleaf.rlib": "11"}
LINE = LinkLine(env=(("LC_ALL", "C"),), argv=("cc",))


def planned(capture: Capture) -> ThinCrate:
    """How it is compiled again."""
    return plan_thin_crates([capture], thin_dir="/thin")[-1]


def test_the_bounds_of_what_is_digested_count() -> None:
    """Two texts are another thing than the same letters divided elsewhere."""
    assert len({digest_of("ab", "c"), digest_of("a", "bc"), digest_of("abc"), digest_of("abc", "")}) == 4


def test_a_text_that_is_not_unicode_has_a_digest() -> None:
    """Paths and variables may be any bytes."""
    assert digest_of("\udcff") != digest_of("\udcfe")


def test_the_same_command_has_the_same_key() -> None:
    """The order in which files are told makes no difference."""
    more = {"/a": "1", "/b": "2"}
    assert command_key(planned(CAPTURE), more) == command_key(planned(CAPTURE), dict(reversed(more.items())))


@pytest.mark.parametrize(
    "other",
    [
        replace(CAPTURE, rustc="/usr/bin/rustc"),
        replace(CAPTURE, argv=(*CAPTURE.argv, "--cfg=feature")),
        replace(CAPTURE, cwd="/elsewhere"),
        replace(CAPTURE, env=(("A", "1"), ("B", "3"))),
        replace(CAPTURE, env=(("A", "1"),)),
        replace(CAPTURE, toolchain="rustc 1.96.0"),
    ],
    ids=["rustc", "argument", "directory", "variable changed", "variable removed", "toolchain"],
)
def test_what_a_command_depends_on_is_in_its_key(other: Capture) -> None:
    """Everything that can be told before rustc runs."""
    assert command_key(planned(other), FILES) != command_key(planned(CAPTURE), FILES)


def test_metadata_of_dependencies_is_in_the_key() -> None:
    """The same source compiled against another library is another compile."""
    changed = dict.fromkeys(FILES, "22")
    assert command_key(planned(CAPTURE), changed) != command_key(planned(CAPTURE), FILES)


def test_files_of_a_command_are_its_libraries_and_its_target() -> None:
    """Absolute paths; a library that rustc finds by its name alone has none."""
    capture = replace(CAPTURE, argv=(*CAPTURE.argv, "--target", "board.json"))
    assert command_files(planned(capture)) == ("/work/deps/libleaf.rlib", "/work/board.json")


def test_content_of_the_files_is_in_the_key_of_a_result() -> None:
    """So is which files they are, and whether they are there."""
    keys = {
        result_key("c0de", {"/a": "1", "/b": "2"}),
        result_key("c0de", {"/a": "2", "/b": "2"}),
        result_key("c0de", {"/a": "1", "/c": "2"}),
        result_key("c0de", {"/a": "1", "/b": "absent"}),
        result_key("c0df", {"/a": "1", "/b": "2"}),
    }
    assert len(keys) == 5


def test_the_other_place_of_a_module() -> None:
    """Each of the two file names that a module can have leads to the other; other files have none."""
    files = ("/src/a.rs", "/src/b/mod.rs", "/src/text.txt")
    assert other_places(files) == ("/src/a/mod.rs", "/src/b.rs")


def linked(
    argv: tuple[str, ...] = ("cc", "-Ttext=0x1000", "-o", "/one/out"),
    response: str = "/one/0.o\n/one/stub.o\n",
    line: LinkLine = LINE,
    host: str = "b1",
    linker: str = "LLD 20",
    inputs: tuple[str, str] = ("1", "2"),
    place: str = "/one",
) -> str:
    """The key of a link, by default of the same one."""
    named = dict(zip((f"{place}/0.o", f"{place}/stub.o"), inputs, strict=True))
    return link_key(argv, response, line, host=host, linker=linker, inputs=named, output=f"{place}/out")


def test_a_link_elsewhere_has_the_same_key() -> None:
    """Clients have directories of their own, with the same in them."""
    elsewhere = linked(("cc", "-Ttext=0x1000", "-o", "/two/out"), "/two/0.o\n/two/stub.o\n", place="/two")
    assert elsewhere == linked()


@pytest.mark.parametrize(
    "other",
    [
        linked(("cc", "-Ttext=0x2000", "-o", "/one/out")),
        linked(response="/one/stub.o\n/one/0.o\n"),
        linked(line=replace(LINE, env=())),
        linked(line=replace(LINE, unset_env=("SDKROOT",))),
        linked(host="b2"),
        linked(linker="LLD 21"),
        linked(inputs=("1", "3")),
    ],
    ids=["address", "order", "variable set", "variable removed", "program", "linker", "content"],
)
def test_what_a_link_depends_on_is_in_its_key(other: str) -> None:
    """Each of these makes another file."""
    assert other != linked()
