"""Linker commands, as rustc and the standard library print them."""

import contextlib
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkline import (
    InputKind,
    LinkLine,
    archives,
    link_inputs,
    linker_flavour,
    parse_link_line,
    program_words,
    quote_windows,
)
from tests.core.linker_words import parse_response_file, split_windows

FIXTURES = Path(__file__).parents[2] / "fixtures" / "linklines"
PRINTED = sorted(FIXTURES.glob("*.txt"))

PRINTER = """
use std::{ffi::OsString, io::{stdin, Read}, os::unix::ffi::OsStringExt, process::Command};
fn main() {
    let mut bytes = Vec::new();
    stdin().read_to_end(&mut bytes).unwrap();
    let words = bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let mut command = Command::new("cc");
    command.args(words).env("SET", "a \\"b\\" \\u{e9}\\n\\u{7f}").env_remove("GONE").env_remove("AWAY");
    println!("{command:?}");
}
"""


def _line(name: str) -> LinkLine:
    return parse_link_line((FIXTURES / f"{name}.txt").read_text("utf-8"))


def _of_kind(line: LinkLine, kind: InputKind) -> list[str]:
    return [" ".join(item.words) for item in link_inputs(line) if item.kind is kind]


def test_the_command_that_linked_a_bin() -> None:
    """Environment, driver and inputs of an ordinary program."""
    line = _line("dev-bin")
    assert [name for name, _ in line.env] == ["LC_ALL", "PATH", "VSLANG"]
    assert line.env[0] == ("LC_ALL", "C")
    assert line.unset_env == ()
    assert line.driver == "cc"
    counts = Counter(item.kind for item in link_inputs(line))
    assert counts[InputKind.CRATE_OBJECT] == 9
    assert counts[InputKind.ARCHIVE] == 21
    deps = "/home/dev/shop/target/debug/deps"
    assert archives(line)[:2] == (
        f"{deps}/libapp-5e8578f6a920c9f7.rlib",
        f"{deps}/libutil-7240062473c88f82.rlib",
    )
    assert _of_kind(line, InputKind.LIBRARY) == "-lm -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc".split()
    assert _of_kind(line, InputKind.TEMPORARY) == [
        f"{deps}/rustcBtM0ie/symbols.o",
        f"-L {deps}/rustcBtM0ie/raw-dylibs",
    ]
    assert f"-o {deps}/app_bin-d8c9347539003610" in _of_kind(line, InputKind.FLAG)


def test_the_version_script_of_a_shared_library_is_temporary() -> None:
    """A flag that names a file of rustc's temporary directory cannot be used again."""
    temporary = _of_kind(_line("dev-cdylib-rlib-staticlib"), InputKind.TEMPORARY)
    assert "-Wl,--version-script=/home/dev/shop/target/debug/deps/rustcRuiA76/list" in temporary


def test_a_program_linked_with_lto_has_no_crate_archives() -> None:
    """With link-time optimisation, dependencies are objects of the linked crate."""
    line = _line("release-thin-lto-bin")
    assert [path.rpartition("/")[2] for path in archives(line)] == ["libcompiler_builtins-27cfc16bdf3bb694.rlib"]
    assert any(".std-" in path for path in _of_kind(line, InputKind.CRATE_OBJECT))


def test_a_library_that_is_linked_by_path() -> None:
    """A shared library is no archive."""
    line = _line("dylib-odd-characters")
    libraries = _of_kind(line, InputKind.LIBRARY)
    assert libraries[0].endswith("/libstd-d1237ef7159db0a2.so")


def test_odd_characters_come_through() -> None:
    """Spaces, quotes, accents, backslashes and tabs are what they were."""
    line = _line("dylib-odd-characters")
    assert 'sp é "q/libl.so' in line.argv
    assert "-Wl,-rpath,/x\\y\tz" in line.argv


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_no_word_is_lost(path: Path) -> None:
    """The inputs' words, joined, are the command; only start-up code is a file without a kind of its own."""
    line = parse_link_line(path.read_text("utf-8"))
    assert [*program_words(line), *(word for item in link_inputs(line) for word in item.words)] == list(line.argv)
    assert {word for word in _of_kind(line, InputKind.FILE) if not word.startswith("@")} <= {"crt2.o"}


def test_values_of_flags_are_not_inputs() -> None:
    """What follows a flag belongs to it, however many words that are."""
    words = "-arch arm64 -platform_version macos 11.0 14.0 -o x.o -framework A.a -l z -L lib.a crt1.o script.ld"
    kinds = [(item.kind.name, len(item.words)) for item in link_inputs(LinkLine(env=(), argv=("ld", *words.split())))]
    assert kinds == [
        ("FLAG", 2),
        ("FLAG", 4),
        ("FLAG", 2),
        ("FLAG", 2),
        ("LIBRARY", 2),
        ("FLAG", 2),
        ("FILE", 1),
        ("FILE", 1),
    ]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("/NOLOGO", InputKind.FLAG),
        ("-out:C:\\my app\\app.exe", InputKind.FLAG),
        ("/LIBPATH:/opt/sdk/lib", InputKind.FLAG),
        ("/l:x", InputKind.FLAG),
        ("/home/app.rcgu.o", InputKind.CRATE_OBJECT),
        ("C:\\app\\libutil.rlib", InputKind.ARCHIVE),
        ("Kernel32.Lib", InputKind.LIBRARY),
        ("/main.obj", InputKind.FILE),
        ("app.res", InputKind.FILE),
    ],
)
def test_arguments_of_the_msvc_linker(word: str, kind: InputKind) -> None:
    """Options begin with a slash or a dash, in any case of letters, and never take the next word."""
    line = LinkLine(env=(), argv=("link.exe", word, "-o", "x.lib"))
    assert [item.kind for item in link_inputs(line)] == [kind, InputKind.FLAG, InputKind.LIBRARY]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("/sdk/usr/lib/libSystem.tbd", InputKind.LIBRARY),
        ("/opt/lib/libfoo.dylib", InputKind.LIBRARY),
        ("/Library/Frameworks/A.framework/A", InputKind.LIBRARY),
        ("-weak-lfoo", InputKind.LIBRARY),
        ("-exported_symbol _main", InputKind.FLAG),
        ("-force_load libfoo.a", InputKind.FLAG),
        ("-undefined dynamic_lookup", InputKind.FLAG),
        ("-U _symbol", InputKind.FLAG),
    ],
)
def test_arguments_of_darwin_linkers(words: str, kind: InputKind) -> None:
    """Text stubs, frameworks by path, and flags whose values look like inputs."""
    items = link_inputs(LinkLine(env=(), argv=("cc", *words.split())))
    assert [(item.kind, item.words) for item in items] == [(kind, tuple(words.split()))]


@pytest.mark.parametrize(
    ("command", "flavour", "count"),
    [
        ("cc -m64", "driver", 1),
        ("/usr/bin/aarch64-linux-gnu-gcc-12 -m64", "driver", 1),
        ("x86_64-linux-android24-clang a.o", "driver", 1),
        ("zig cc -target x", "driver", 2),
        ("/opt/zig c++ a.o", "driver", 2),
        ("python3 -m ziglang cc a.o", "driver", 4),
        ("ld -o x", "gnu-ld", 1),
        ("/usr/bin/ld.lld-19 -o x", "gnu-ld", 1),
        ("x86_64-w64-mingw32-ld.bfd a.o", "gnu-ld", 1),
        ("mold a.o", "gnu-ld", 1),
        ("rust-lld -flavor gnu a.o", "gnu-ld", 3),
        ("/tc/bin/rust-lld.exe -flavor darwin a.o", "darwin-ld", 3),
        ("rust-lld -flavor link a.o", "msvc-link", 3),
        ("ld64.lld a.o", "darwin-ld", 1),
        ("ld -platform_version macos 11 14 a.o", "darwin-ld", 1),
        ("C:\\VS\\HostX64\\LINK.EXE /OUT:x", "msvc-link", 1),
        ("lld-link-19 a.o", "msvc-link", 1),
    ],
)
def test_whose_arguments_a_command_has(command: str, flavour: str, count: int) -> None:
    """By the program, whatever directory, version or prefix is in its name, and by the words that belong to it."""
    line = LinkLine(env=(), argv=tuple(command.split(" ")))
    assert linker_flavour(line) == flavour
    assert program_words(line) == line.argv[:count]


@pytest.fixture(scope="module")
def printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints the command `cc` with the NUL-separated words on its standard input."""
    root = tmp_path_factory.mktemp("printer")
    (root / "printer.rs").write_text(PRINTER)
    subprocess.run(["rustc", "--edition=2021", "printer.rs"], cwd=root, check=True)
    return root / "printer"


def test_commands_are_read_as_the_standard_library_prints_them(printer: Path) -> None:
    """Every byte, variables that are set, and variables that are taken away."""
    words = [bytes([byte]) * 2 for byte in range(1, 256)]
    words += ["é日🐊 \u0301\u200b\u00ad".encode(), b"", b"\xc3", b"@x", b"\\u{41}\\x41", b'NAME="v" -u X env ']
    printed = subprocess.run([printer], input=b"\0".join(words), check=True, capture_output=True).stdout
    line = parse_link_line(printed.decode())
    assert [word.encode("utf-8", "surrogateescape") for word in line.argv] == [b"cc", *words]
    assert line.env == (("SET", 'a "b" é\n\x7f'),)
    assert sorted(line.unset_env) == ["AWAY", "GONE"]


@pytest.mark.parametrize(
    "text",
    ["", 'LC_ALL="C" ', "cc -o x", '"cc" -o', '"cc" X="y"', '"cc" "a', '"cc""a"', '"cc" "\\q"', '"cc" "a"\n"cc" "b"'],
)
def test_what_rustc_does_not_print_is_refused(text: str) -> None:
    """Text that is cut short, unquoted, or more than one command is an error."""
    with pytest.raises(ArgvError, match="linker command"):
        parse_link_line(text)


@given(st.text('ab"\\ =\n-u{}x0', max_size=40))
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    """Nothing but ArgvError is raised."""
    with contextlib.suppress(ArgvError):
        parse_link_line(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("-a  -b\n\t-c\r\n", ("-a", "-b", "-c")),
        ('"two words" \'and "more"\'', ("two words", 'and "more"')),
        ('a\\ b c\\\\d \\"e', ("a b", "c\\d", '"e')),
        ('\'it\\\'s\' -L"x y"/z ""', ("it's", "-Lx y/z", "")),
    ],
)
def test_response_files_follow_gnu_rules(text: str, words: tuple[str, ...]) -> None:
    """White space separates, quotes group, backslashes escape."""
    assert parse_response_file(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        (" a\tb\r\nc ", ("a", "b", "c")),
        ('"two words" ""', ("two words", "")),
        ("C:\\a\\b\\ c", ("C:\\a\\b\\", "c")),
        ('/OUT:"C:\\my app\\x.exe"', ("/OUT:C:\\my app\\x.exe",)),
        ('a\\"b', ('a"b',)),
        ('"a\\\\" b', ("a\\", "b")),
        ('"a ""quoted"" b"', ('a "quoted" b',)),
        ("it's", ("it's",)),
    ],
)
def test_windows_response_files_follow_windows_rules(text: str, words: tuple[str, ...]) -> None:
    """Backslashes are themselves but before quotes; apostrophes mean nothing."""
    assert split_windows(text) == words


@given(st.lists(st.text('ab \t\n"\\', max_size=8)))
def test_windows_words_come_through_quoting(words: list[str]) -> None:
    """Whatever quotes, blanks and backslashes are in them."""
    assert split_windows(" ".join(map(quote_windows, words))) == tuple(words)
