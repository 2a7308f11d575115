"""The captured linker command as one that links a patch."""

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkedit import Dropped
from hotpatchd.core.linkline import (
    InputKind,
    LinkLine,
    link_inputs,
    parse_link_line,
)
from hotpatchd.core.linkplan import (
    DROPPED,
    Linker,
    LinkPlan,
    identify_linker,
    is_direct,
    plan_image_link,
    plan_version_query,
)
from tests.core.linker_words import linker_choice, linker_flags, parse_response_file

LINES = Path(__file__).parents[2] / "fixtures" / "linklines"
PRINTED = sorted(path for kind in ("dev", "dylib", "release") for path in LINES.glob(f"{kind}-*.txt"))
VERSIONS: dict[str, Linker] = {
    "LLD 22.1.2 (/checkout/src/llvm-project/llvm 1cb4e383) (compatible with GNU linkers)\n": "lld",
    "Debian LLD 14.0.6 (compatible with GNU linkers)": "lld",
    "GNU ld (GNU Binutils for Debian) 2.40\nCopyright (C) 2023 Free Software Foundation, Inc.": "bfd",
    "collect2 version 12.2.0\n/usr/bin/ld -plugin x --version\nGNU ld version 2.41-37.fc40": "bfd",
    "mold 2.30.0 (compatible with GNU ld)": "mold",
    "mold 1.10.1 (compatible with GNU ld)\n": "mold",
}
BASE = 0x5555_4000_0000


def _line(words: str, driver: str = "cc") -> LinkLine:
    return LinkLine(env=(), argv=(driver, *words.split()))


def _plan(
    line: LinkLine, *, linker: Linker = "lld", objects: tuple[str, ...] = ("1.o", "stub.o"), keep: tuple[str, ...] = ()
) -> LinkPlan:
    return plan_image_link(line, linker=linker, objects=objects, output="/out.elf", base_addr=BASE, keep=keep)


def _kept(words: str, driver: str = "cc") -> list[str]:
    """The words of a command that a patch link has as well."""
    bare = _plan(_line("", driver)).argv
    planned = _plan(_line(words, driver)).argv
    return list(planned[1 : len(planned) - len(bare) + 1])


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_nothing_of_the_program_is_linked(path: Path) -> None:
    """Of real commands, neither objects and libraries nor their output are left, and the linker is the same."""
    line = parse_link_line(path.read_text("utf-8"))
    plan = _plan(line)
    planned = LinkLine(env=(), argv=plan.argv)
    assert {item.kind for item in link_inputs(planned)} == {InputKind.FLAG}
    assert "target/" not in " ".join(plan.argv)
    assert linker_choice(planned) == linker_choice(line)
    assert plan.argv[0] == "cc"
    assert "-m64" in plan.argv
    assert plan.argv[-2:] == ("-o", "/out.elf")


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_every_word_of_a_command_is_kept_or_accounted_for(path: Path) -> None:
    """With a reason for each that goes."""
    line = parse_link_line(path.read_text("utf-8"))
    plan = _plan(line)
    words = [word for group, reason in plan.dropped for word in group.split() if reason]
    words += plan.argv
    for word in (*line.argv, *linker_flags(line)):
        if not word.startswith("-Wl,") and word != "-Xlinker":
            assert set(word.split()) <= set(words)


def _example(row: Dropped) -> str:
    return f"{row.flag} 5" if row.takes_value else row.flag


@pytest.mark.parametrize("row", DROPPED, ids=lambda row: row.flag)
def test_every_row_of_the_table_takes_its_flag_out(row: Dropped) -> None:
    """As it is given to a driver, and to a linker."""
    for driver, words in (
        ("cc", _example(row)),
        ("ld.lld", _example(row)),
        ("cc", "-Wl," + _example(row).replace(" ", ",")),
        ("cc", " ".join(f"-Xlinker {word}" for word in _example(row).split())),
    ):
        assert _kept(words, driver) == []
        assert _plan(_line(words, driver)).dropped == ((_example(row), row.reason),)


def test_values_of_dropped_flags_go_with_them() -> None:
    """However they are attached; what follows a flag without a value stays."""
    assert _kept("-Wl,-rpath=/x,--hash-style=gnu,-soname,lib.so -Wl,--icf=all -Wl,-Ttext-segment=0x1 -flto=thin") == [
        "-Xlinker",
        "--hash-style=gnu",
    ]
    assert _kept("-pie -m32 -o app -g") == ["-m32", "-g"]


@pytest.mark.parametrize("words", ["-Wl,-rpath -Wl,/opt/x", "-Xlinker -rpath -Xlinker /opt/x"])
def test_a_value_may_be_given_to_the_linker_by_itself(words: str) -> None:
    """With `-Xlinker` there is no other way."""
    assert _kept(words) == []


@pytest.mark.parametrize(
    "words",
    [
        "-Wl,--whole-archive,/x/libfoo.a,--no-whole-archive",
        "-Wl,-Bstatic,-lfoo,-Bdynamic",
        "-Xlinker /x/crt1.o",
        "-l foo",
    ],
)
def test_inputs_that_are_given_to_the_linker_itself_go(words: str) -> None:
    """They are the program's, too."""
    assert _kept(words) == []


def test_settings_of_the_segments_go_and_others_stay() -> None:
    """Of `-z`, both in one word and in two."""
    assert _kept("-Wl,-z,relro,-z,noexecstack,-z,max-page-size=65536 -z now") == [
        "-Xlinker",
        "-z",
        "-Xlinker",
        "noexecstack",
    ]


def test_what_chooses_the_target_stays() -> None:
    """Also flags with values of their own."""
    words = "-target aarch64-linux-gnu --sysroot /sdk -B/gcc-ld -fuse-ld=lld -L /lib -m elf_x86_64"
    assert _kept(words) == words.split()


def test_a_linker_that_is_run_itself_gets_its_words_bare() -> None:
    """A driver gets each behind `-Xlinker`."""
    direct = _plan(_line("-flavor gnu -m elf_x86_64 a.o --eh-frame-hdr -o app", "/tc/rust-lld")).argv
    assert direct[:6] == ("/tc/rust-lld", "-flavor", "gnu", "-m", "elf_x86_64", "-static")
    assert "-Xlinker" not in direct
    assert "-nostdlib" not in direct
    assert "--gc-sections" in direct
    wrapped = _plan(_line("a.o")).argv
    assert wrapped[wrapped.index("--gc-sections") - 1] == "-Xlinker"
    assert {"-static", "-nostdlib", "-no-pie"} <= set(wrapped)


@pytest.mark.parametrize(
    ("driver", "direct"),
    [
        ("cc", False),
        ("/usr/bin/x86_64-linux-gnu-gcc", False),
        ("clang", False),
        ("/a/ld.lld", True),
        ("rust-lld", True),
    ],
)
def test_drivers_and_linkers_are_told_apart(driver: str, direct: bool) -> None:
    """By the file's name."""
    assert is_direct(_line("", driver)) == direct


@pytest.mark.parametrize(
    ("linker", "flag"),
    [
        ("lld", "--image-base=0x555540000000"),
        ("mold", "--image-base=0x555540000000"),
        ("bfd", "-Ttext-segment=0x555540000000"),
    ],
)
def test_each_linker_is_told_the_address_in_its_own_words(linker: Linker, flag: str) -> None:
    """Nothing else differs between them, but for what GNU ld must not do."""
    argv = _plan(_line("a.o"), linker=linker).argv
    assert flag in argv
    others = [word for word in argv if word not in (flag, "--no-relax", "-Xlinker")]
    assert others == [
        word for word in _plan(_line("a.o")).argv if word not in ("--image-base=0x555540000000", "-Xlinker")
    ]


def test_gnu_ld_is_kept_from_relaxing_what_it_cannot() -> None:
    """It fails on loads from the GOT where the patch lies above 2 GiB; the others do not."""
    assert "--no-relax" in _plan(_line("a.o"), linker="bfd").argv
    assert "--no-relax" not in _plan(_line("a.o"), linker="lld").argv


def test_the_response_file_names_what_to_keep_and_the_objects() -> None:
    """The objects in their order."""
    words = ("-Xlinker", "--undefined=f", "-Xlinker", "--undefined=g", "b.o", "a.o", "stub.o")
    assert parse_response_file(_plan(_line(""), objects=("b.o", "a.o", "stub.o"), keep=("f", "g")).response) == words
    direct = _plan(_line("", "ld.lld"), objects=("a.o",), keep=("f",))
    assert parse_response_file(direct.response) == ("--undefined=f", "a.o")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1)))
def test_paths_of_any_characters_come_through_the_response_file(objects: list[str]) -> None:
    """As GNU rules read it."""
    assert parse_response_file(_plan(_line(""), objects=tuple(objects)).response) == tuple(objects)


@pytest.mark.parametrize(("version", "linker"), VERSIONS.items())
def test_linkers_are_identified_by_their_version(version: str, linker: Linker) -> None:
    """Also behind what a driver prints of itself."""
    assert identify_linker(version) == linker


@pytest.mark.parametrize(
    "version", ["", "GNU gold (GNU Binutils for Debian 2.40) 1.16", "@(#)PROGRAM:ld PROJECT:dyld-1015.7"]
)
def test_an_unknown_linker_is_an_error(version: str) -> None:
    """It shows what the linker said, and what to use instead."""
    with pytest.raises(ArgvError) as caught:
        identify_linker(version)
    assert (version or "nothing") in caught.value.message
    assert "lld" in caught.value.hint


def _rust_lld_dir() -> str:
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    (found,) = Path(sysroot).glob("lib/rustlib/*/bin/gcc-ld")
    return str(found)


@pytest.fixture(scope="module")
def edited_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object with a function that is to be kept and one that is not."""
    place = tmp_path_factory.mktemp("an object")
    (place / "a.c").write_text(
        "static int kept = 7; int root(void) { return kept++; }\nint unused(void) { return 2; }\n"
    )
    flags = ["-ffunction-sections", "-fno-pic", "-mcmodel=large", "-c"]
    subprocess.run(["cc", *flags, "a.c", "-o", "a.o"], cwd=place, check=True)
    return place / "a.o"


@pytest.mark.parametrize(("linker", "direct"), [("lld", False), ("bfd", False), ("bfd", True)])
def test_a_real_linker_does_what_the_plan_says(
    linker: Linker, direct: bool, edited_object: Path, tmp_path: Path
) -> None:
    """An executable at the address, with the function that was to be kept and without the other."""
    program = "-pie -Wl,-z,relro,-z,now -Wl,--eh-frame-hdr -Wl,--gc-sections -nodefaultlibs -lc gone.o -o app"
    choice = f"-B{_rust_lld_dir()} -fuse-ld=lld" if linker == "lld" else "-fuse-ld=bfd"
    line = _line("-pie --eh-frame-hdr gone.o -lc -o app", "ld.bfd") if direct else _line(f"-m64 {choice} {program}")
    told = subprocess.run(plan_version_query(line), capture_output=True, text=True, check=False)
    assert identify_linker(told.stdout + told.stderr) == linker

    output, response = tmp_path / "patch.elf", tmp_path / "link.args"
    plan = plan_image_link(
        line, linker=linker, objects=(str(edited_object),), output=str(output), base_addr=BASE, keep=("root",)
    )
    response.write_text(plan.response)
    subprocess.run([*plan.argv, f"@{response}"], check=True, cwd=tmp_path)
    with output.open("rb") as file:
        elf = ELFFile(file)
        loaded = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        assert elf["e_type"] == "ET_EXEC"
        assert elf["e_entry"] == 0
        assert loaded[0]["p_vaddr"] == BASE
        assert symbols.get_symbol_by_name("root")
        assert not symbols.get_symbol_by_name("unused")
        assert not elf.get_section_by_name(".interp")
    assert {path.name for path in tmp_path.iterdir()} == {"patch.elf", "link.args"}
