"""The captured linker command as one that links a patch library, for every system and manner of linker."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpatchd.core.dylibplan import (
    ADDED,
    DROPPED,
    DROPPED_MSVC,
    DROPPED_SETTINGS,
    DylibPlan,
    LinkerChoice,
    choose_dylib_linker,
    library_file_name,
    library_os,
    plan_dylib_link,
)
from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkedit import Dropped
from hotpatchd.core.linkline import (
    InputKind,
    LinkLine,
    is_msvc,
    link_inputs,
    program_words,
    quote_windows,
)
from tests.core.dylib_plans import FIXTURES, OBJECTS, OUTPUT, TARGETS, captured, planned, shown
from tests.core.linker_words import linker_choice, linker_flags, parse_response_file, split_windows

LINUX = "x86_64-unknown-linux-gnu"
MACOS = "aarch64-apple-darwin"
MSVC = "x86_64-pc-windows-msvc"
MINGW = "x86_64-pc-windows-gnu"
REFUSED = {"musl-static-gcc": "x86_64-unknown-linux-musl", "ios-device-cc": "aarch64-apple-ios"}
LLD = LinkerChoice(driver_words=("-B/tc/gcc-ld", "-fuse-ld=lld"), program="/tc/gcc-ld/ld.lld")


def _line(words: str, driver: str = "cc") -> LinkLine:
    return LinkLine(env=(), argv=(*driver.split(), *words.split()))


def _plan(
    line: LinkLine,
    target: str = LINUX,
    *,
    exports: tuple[str, ...] = (),
    libraries: tuple[str, ...] = (),
    linker: LinkerChoice | None = None,
    on_macos: bool = False,
) -> DylibPlan:
    return plan_dylib_link(
        line,
        target=target,
        objects=OBJECTS,
        output=OUTPUT,
        exports=exports,
        libraries=libraries,
        linker=linker,
        on_macos=on_macos,
    )


def _response(plan: DylibPlan) -> tuple[str, ...]:
    text = plan.response_bytes.decode(plan.response_encoding)
    return split_windows(text) if plan.response_encoding == "utf-16" else parse_response_file(text)


def _whole(plan: DylibPlan) -> LinkLine:
    """The planned command with its response file put in."""
    return LinkLine(env=(), argv=(*plan.argv, *_response(plan)))


def _kept(words: str, driver: str = "cc", target: str = LINUX) -> list[str]:
    """What is left of a command, in the order of the plan."""
    bare = [*_whole(_plan(_line("", driver), target)).argv]
    left = list(_whole(_plan(_line(words, driver), target)).argv)
    for word in bare:
        left.remove(word)
    return left


@pytest.mark.parametrize("name", TARGETS)
def test_the_plan_for_a_captured_command_is_as_reviewed(name: str) -> None:
    """Every word that is run, and every word that went or came, with its reason."""
    assert shown(planned(name)) == (FIXTURES / f"{name}.plan").read_text("utf-8")


def test_every_captured_command_has_a_plan_or_a_refusal() -> None:
    """But for those that differ from others in nothing that a plan looks at."""
    names = {path.stem for path in FIXTURES.glob("*.txt")}
    others = {"dev-proc-macro", "dylib-odd-characters", "release-lto-off-split-debuginfo-bin", "release-thin-lto-bin"}
    assert names == set(TARGETS) | set(REFUSED) | others
    assert {path.stem for path in FIXTURES.glob("*.plan")} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_of_the_program_is_linked(name: str) -> None:
    """Neither its objects, nor its archives, nor temporary files, nor a list of its exports."""
    whole = _whole(planned(name))
    inputs = [item for item in link_inputs(whole) if item.kind is not InputKind.FLAG]
    assert {item.kind for item in inputs} <= {InputKind.LIBRARY, InputKind.FILE}
    files = [word for item in inputs if item.kind is InputKind.FILE for word in item.words]
    assert [path for path in files if path != "dllcrt2.o"] == list(OBJECTS)
    text = " ".join(whole.argv).lower()
    for trace in ("version-script", "exported_symbol", "/def:", "target/", "target\\", "gc-sections", "dead_strip"):
        assert trace not in text


@pytest.mark.parametrize("name", TARGETS)
def test_every_word_is_kept_or_accounted_for(name: str) -> None:
    """With a reason for each that goes and each that comes."""
    line, plan = captured(name), planned(name)
    accounted = [word for group, reason in plan.dropped for word in group.split() if reason]
    accounted += _whole(plan).argv
    for word in (*line.argv, *linker_flags(line)):
        if not word.startswith("-Wl,"):
            assert set(word.split()) <= set(" ".join(accounted).split())
    assert all(reason for _, reason in plan.added)


@pytest.mark.parametrize("name", TARGETS)
def test_planning_a_planned_command_changes_nothing(name: str) -> None:
    """What the plan adds it takes out first."""
    plan = planned(name)
    again = plan_dylib_link(
        _whole(plan), target=TARGETS[name], objects=OBJECTS, output=OUTPUT, exports=("main",), on_macos=bool(plan.after)
    )
    assert (again.argv, again.response, again.added) == (plan.argv, plan.response, plan.added)


WORDS = st.sampled_from(
    [
        *("-pie", "-shared", "-o x", "-L /l", "-lm", "-fuse-ld=bfd", "-B/b", "a.rcgu.o", "libx.rlib", "/x/libz.so"),
        *("-Wl,-z,relro,-z,now", "-Wl,--eh-frame-hdr", "-Wl,-Bstatic,-lfoo,-Bdynamic", "-Wl,--gc-sections"),
        *("-Xlinker -z -Xlinker max-page-size=4096", "-Wl,-soname,x", "-Wl,-Bsymbolic", "-Wl,-undefined,error"),
        *("-undefined x", "-framework A", "-dynamiclib", "-Wl,-no_fixup_chains", "-arch arm64", "crt2.o"),
    ]
)


@given(st.lists(WORDS), st.sampled_from([LINUX, MACOS, MINGW, "aarch64-linux-android"]), st.sampled_from([None, LLD]))
def test_planning_is_idempotent(words: list[str], target: str, linker: LinkerChoice | None) -> None:
    """Whatever was captured, in whatever order."""
    plan = _plan(_line(" ".join(words)), target, exports=("main",), linker=linker)
    again = _plan(_whole(plan), target, exports=("main",), linker=linker)
    assert (again.argv, again.response, again.added) == (plan.argv, plan.response, plan.added)


def _example(row: Dropped) -> str:
    return f"{row.flag} 5" if row.takes_value else row.flag


@pytest.mark.parametrize("row", DROPPED, ids=lambda row: row.flag)
def test_every_row_takes_its_flag_out(row: Dropped) -> None:
    """As it is given to a driver, and to a linker."""
    for driver, words in (
        ("cc", _example(row)),
        ("ld.lld", _example(row)),
        ("cc", "-Wl," + _example(row).replace(" ", ",")),
        ("cc", " ".join(f"-Xlinker {word}" for word in _example(row).split())),
    ):
        assert _kept(words, driver) == []
        assert _plan(_line(words, driver)).dropped == ((_example(row), row.reason),)


@pytest.mark.parametrize("row", DROPPED_MSVC, ids=lambda row: row.flag)
def test_every_row_takes_a_flag_of_the_msvc_linker_out(row: Dropped) -> None:
    """With a slash or a dash, in any case of letters, with a value or without."""
    for word in (row.flag, row.flag.lower(), f"{row.flag.title()}:x", f"-{row.flag[1:].lower()}:x"):
        assert _kept(word, "link.exe", MSVC) == []
        assert _plan(_line(word, "lld-link"), MSVC).dropped == ((word, row.reason),)


@pytest.mark.parametrize("setting", DROPPED_SETTINGS)
@pytest.mark.parametrize("spelling", ["-Wl,-z,{}", "-z {}", "-z{}", "-Wl,-z -Wl,{}"])
def test_every_setting_of_the_table_goes(setting: str, spelling: str) -> None:
    """In each of its spellings; others stay."""
    assert _kept(spelling.format(setting)) == []
    assert "relro" in _kept("-Wl,-z,relro")


def test_no_flag_is_in_a_table_twice() -> None:
    """So the reason that is shown is the one that was meant."""
    for table in (DROPPED, DROPPED_MSVC):
        flags = Counter(row.flag for row in table)
        # One flag to drivers, and the same to linkers.
        assert {flag for flag, count in flags.items() if count > 1} <= {"-shared"}
    assert all(row.reason for row in (*DROPPED, *DROPPED_MSVC))
    assert all(row.reason for row in ADDED)


@pytest.mark.parametrize(
    ("words", "driver", "target"),
    [
        (
            "-target arm64-apple-ios14.0.0-simulator -isysroot /sdk -framework UIKit -L /l",
            "cc",
            "aarch64-apple-ios-sim",
        ),
        ("-arch arm64 -mmacosx-version-min=11.0 -F /frameworks -lobjc", "clang", MACOS),
        ("-platform_version macos 11.0 14.0 -syslibroot /sdk -arch arm64 -lSystem", "ld64.lld", MACOS),
        ("-m elf_x86_64 -L /l --sysroot=/s /x/libstd-1.so -lc", "ld.lld", LINUX),
        ("-m64 --sysroot /s -B/b -fuse-ld=mold -lfoo", "cc", LINUX),
        ("/LIBPATH:C:\\x /MACHINE:X64 /NODEFAULTLIB:libcmt kernel32.lib", "link.exe", MSVC),
    ],
)
def test_what_chooses_target_sdk_and_libraries_stays(words: str, driver: str, target: str) -> None:
    """In order, libraries behind the objects."""
    assert _kept(words, driver, target) == words.split()


def test_libraries_keep_their_order_and_how_they_are_linked() -> None:
    """And come after the objects, so that they are asked for what the stub does not define."""
    plan = _plan(
        _line("-Wl,--as-needed -lone -Wl,-Bstatic -ltwo a.o -Wl,-Bdynamic,-lthree -lfour"), libraries=("-lfive",)
    )
    linker = "-Xlinker"
    assert _response(plan) == (
        *OBJECTS,
        *(linker, "--as-needed", "-lone", linker, "-Bstatic", "-ltwo"),
        *(linker, "-Bdynamic", linker, "-lthree", "-lfour", "-lfive"),
    )


def test_mingw_starts_a_library_by_its_own_code() -> None:
    """Where the command names start-up code by itself; it comes first."""
    assert _response(_plan(_line("-nostartfiles /tc/crt2.o a.o"), MINGW))[0] == "/tc/dllcrt2.o"
    assert _response(_plan(_line("-nostartfiles /tc/Scrt1.o a.o")))[0] == OBJECTS[0]


@pytest.mark.parametrize(
    ("driver", "target", "flags"),
    [
        ("cc", LINUX, ()),
        ("cc", MACOS, ()),
        ("cc", MINGW, ("-Xlinker", "--export-all-symbols")),
        ("zig cc", MINGW, ("-Xlinker", "--export-all-symbols")),
        ("link.exe", MSVC, ("/EXPORT:main",)),
    ],
)
def test_exports_are_named_where_they_must_be(driver: str, target: str, flags: tuple[str, ...]) -> None:
    """Elsewhere libraries export every global symbol."""
    without, with_main = _plan(_line("", driver), target).argv, _plan(_line("", driver), target, exports=("main",)).argv
    assert [word for word in with_main if word not in without] == [word for word in flags if word not in without]


@pytest.mark.parametrize("driver", ["zig cc", "/usr/bin/python3 -m ziglang cc", "/work/zigcc-aarch64-macos.sh"])
def test_zig_is_told_what_it_understands(driver: str) -> None:
    """It refuses flags of linkers that it does not know."""
    darwin, linux = _plan(_line("a.o", driver), MACOS).argv, _plan(_line("a.o", driver)).argv
    count = len(driver.split())
    assert " ".join(darwin[:count]) == driver
    assert "-no_fixup_chains" not in darwin
    assert "--unresolved-symbols=ignore-all" not in linux
    assert linux[linux.index("undefs") - 2] == "-z"
    assert "--exclude-all-symbols" not in _plan(_line("a.o", driver), MINGW).argv


@pytest.mark.parametrize(
    ("line", "target", "on_macos", "signs"),
    [
        (_line(""), MACOS, True, True),
        (_line(""), MACOS, False, False),
        (_line("-fuse-ld=lld"), MACOS, True, False),
        (_line("", "ld64.lld"), MACOS, True, False),
        (_line("", "ld64.lld"), "x86_64-apple-darwin", True, True),
        (_line("", "zig cc"), MACOS, True, False),
        (_line(""), "aarch64-apple-ios-sim", True, True),
        (_line(""), "aarch64-linux-android", True, False),
    ],
)
def test_a_library_is_signed_where_the_linker_does_not(
    line: LinkLine, target: str, on_macos: bool, signs: bool
) -> None:
    """On a Mac, for Apple's systems only."""
    expected = (("codesign", "--force", "--sign", "-", OUTPUT),) if signs else ()
    assert _plan(line, target, on_macos=on_macos).after == expected


def test_many_objects_do_not_make_the_command_long() -> None:
    """Windows takes 32 Ki characters; the rest is in the response file, in UTF-16 with a byte order mark."""
    objects = tuple(f"C:\\a path\\{number}.o" for number in range(5000))
    plan = plan_dylib_link(captured("windows-msvc-link-reconstructed"), target=MSVC, objects=objects, output="x.dll")
    assert len(" ".join(map(quote_windows, plan.argv))) < 32_767
    assert plan.response_bytes.startswith(b"\xff\xfe")
    assert _response(plan)[:5000] == objects


@pytest.mark.parametrize(
    ("target", "system", "name"),
    [
        ("x86_64-unknown-linux-gnu", "linux", "libp.so"),
        ("aarch64-unknown-linux-musl", "linux", "libp.so"),
        ("armv7-unknown-linux-gnueabihf", "linux", "libp.so"),
        ("aarch64-linux-android", "android", "libp.so"),
        ("armv7-linux-androideabi", "android", "libp.so"),
        ("x86_64-apple-darwin", "macos", "libp.dylib"),
        ("aarch64-apple-ios-sim", "ios-simulator", "libp.dylib"),
        ("x86_64-apple-ios", "ios-simulator", "libp.dylib"),
        ("x86_64-pc-windows-gnu", "windows-gnu", "p.dll"),
        ("x86_64-pc-windows-gnullvm", "windows-gnu", "p.dll"),
        ("aarch64-pc-windows-msvc", "windows-msvc", "p.dll"),
    ],
)
def test_libraries_are_called_as_the_system_wants(target: str, system: str, name: str) -> None:
    """By the target triple."""
    assert library_os(target) == system
    assert library_file_name(target, "p") == name


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("aarch64-apple-ios", "signed code only"),
        ("aarch64-apple-tvos", "no patch libraries"),
        ("aarch64-apple-ios-macabi", "no patch libraries"),
        ("wasm32-unknown-unknown", "no patch libraries"),
        ("x86_64-unknown-uefi", "no patch libraries"),
    ],
)
def test_a_target_that_cannot_load_libraries_is_refused_by_name(target: str, reason: str) -> None:
    """With the reason, and what to do instead."""
    with pytest.raises(ArgvError, match=f"`{target}`.*{reason}|{reason}.*`{target}`") as caught:
        _plan(_line(""), target)
    assert caught.value.hint


@pytest.mark.parametrize(("name", "target"), REFUSED.items())
def test_a_captured_program_that_cannot_load_libraries_is_refused(name: str, target: str) -> None:
    """A static one, and one on a device."""
    with pytest.raises(ArgvError, match="cannot"):
        _plan(captured(name), target)


def test_libraries_between_static_flags_do_not_make_a_program_static() -> None:
    """`-static` for the linker concerns the libraries that follow; for the driver, the program."""
    assert _plan(_line("-Wl,-static,-lfoo,-Bdynamic")).argv
    with pytest.raises(ArgvError, match="statically"):
        _plan(_line("-static-pie a.o"))


@pytest.mark.parametrize(("driver", "target"), [("cc", MSVC), ("link.exe", LINUX), ("lld-link", MINGW)])
def test_a_linker_for_another_system_is_an_error(driver: str, target: str) -> None:
    """Rather than a command that makes no sense."""
    with pytest.raises(ArgvError, match=f"`{driver}`.*`{target}`"):
        _plan(_line("", driver), target)


def test_a_response_file_must_have_been_read() -> None:
    """What is in it would be lost without a word."""
    with pytest.raises(ArgvError, match="`args`"):
        _plan(_line("-m64 @args"))
    assert _plan(_line("-Wl,-rpath,@loader_path -rpath @executable_path"), MACOS).argv


def test_flags_go_with_all_their_values() -> None:
    """Some have two or three."""
    assert _kept("-Wl,-sectcreate,__TEXT,__info_plist,Info.plist -lm -Wl,-alias,_a,_b", target=MACOS) == ["-lm"]


def test_a_value_for_the_linker_is_not_looked_for_among_the_drivers_words() -> None:
    """Whatever stands between a flag and its value."""
    assert _kept("-Wl,-soname -lm -Wl,libapp.so") == ["-lm"]


def test_gnu_ld_is_replaced() -> None:
    """By the linker of the Rust toolchain, or an installed one; others stay."""
    both = {"ld.lld": "/usr/bin/ld.lld", "mold": "/usr/bin/mold"}
    assert choose_dylib_linker("lld") is None
    assert choose_dylib_linker("mold", found=both) is None
    assert choose_dylib_linker("bfd", rust_lld="/tc/gcc-ld", found=both) == LLD
    assert choose_dylib_linker("bfd", found=both) == LinkerChoice(
        driver_words=("-fuse-ld=lld",), program="/usr/bin/ld.lld"
    )
    assert choose_dylib_linker("bfd", found={"mold": "/m"}) == LinkerChoice(
        driver_words=("-fuse-ld=mold",), program="/m"
    )


def test_without_another_linker_it_says_what_to_install() -> None:
    """GNU ld would fail, or link something wrong."""
    with pytest.raises(ArgvError, match="GNU ld") as caught:
        choose_dylib_linker("bfd")
    assert "install lld" in caught.value.hint


def test_the_chosen_linker_takes_the_place_of_the_captured_one() -> None:
    """Of a driver's choice, or of the program itself; both are accounted for."""
    plan = _plan(_line("-m64 -fuse-ld=bfd -B/other a.o"), linker=LLD)
    assert linker_choice(LinkLine(env=(), argv=plan.argv)) == (*LLD.driver_words, "-B/other")
    assert ("-fuse-ld=bfd", "another linker is chosen") in plan.dropped
    assert ("-B/tc/gcc-ld -fuse-ld=lld", "the captured linker cannot link a patch library") in plan.added
    direct = _plan(_line("-m elf_x86_64 a.o", "/usr/bin/ld"), linker=LLD)
    assert direct.argv[:3] == ("/tc/gcc-ld/ld.lld", "-m", "elf_x86_64")
    assert (LLD.program, "the captured linker cannot link a patch library") in direct.added


def test_the_captured_command_is_read_as_its_linker_does() -> None:
    """The fixtures hold commands of every manner."""
    lines = [captured(name) for name in TARGETS]
    assert {is_msvc(line) for line in lines} == {True, False}
    assert {len(program_words(line)) for line in lines} == {1, 3, 4}
    assert all(Path(FIXTURES / f"{name}.txt").exists() for name in TARGETS)
