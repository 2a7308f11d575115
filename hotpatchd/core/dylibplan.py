"""The link plan `dylib`: the captured linker command, edited so that it links a shared library with a patch in it.

As for images (see `linkplan`), nothing is built from scratch: the program that is run, and whatever chooses target,
SDK, sysroot, search paths and system libraries, stay. Two tables say what goes (`DROPPED`, `DROPPED_MSVC`) and what
comes (`ADDED`), each row with its reason.

Symbols of the running program come in by a stub object, which the caller names last among the objects.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hotpatchd.core.errors import ArgvError
from hotpatchd.core.linkedit import COMMON_DROPPED, Dropped, KeptWords, edit_words, flag_name, quote_gnu, rows, wrap
from hotpatchd.core.linkline import (
    InputKind,
    LinkLine,
    link_inputs,
    linker_flavour,
    program_words,
    quote_windows,
)
from hotpatchd.core.linkplan import Linker

LibraryOs = Literal["linux", "android", "macos", "ios-simulator", "windows-gnu", "windows-msvc"]
"""Systems on which a running program can load a patch library."""

_ELF: tuple[LibraryOs, ...] = ("linux", "android")
_DARWIN: tuple[LibraryOs, ...] = ("macos", "ios-simulator")

_FILE_NAMES: dict[LibraryOs, str] = {
    "linux": "lib{}.so",
    "android": "lib{}.so",
    "macos": "lib{}.dylib",
    "ios-simulator": "lib{}.dylib",
    "windows-gnu": "{}.dll",
    "windows-msvc": "{}.dll",
}

_SET = "the plan sets it"
_NOT_ITS_OUTPUT = "the patch has its own kind of output"
_EXPORTS = "it names exports of the program, which the patch need not have"
_UNDEFINED = "the plan says what becomes of undefined symbols"
_STRIPS = "functions that only the jump table refers to would be stripped"
_ITS_NAME = "the patch has its own name"
_COPIES = "it would bring in a second copy of a whole library"
_LAYOUT = "it lays out the program's file"
_BESIDE = "it would write over a file of the program's build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A row of the table: words that a patch library needs.

    Attributes:
        systems: where it does.
        words: the flag with its separate values.
        reader: who understands it: the linker, also behind a driver; only a driver; only a linker that is run itself.
        reason: why it comes.
    """

    systems: tuple[LibraryOs, ...]
    words: tuple[str, ...]
    reader: Literal["linker", "driver", "direct"]
    reason: str


def _added(
    systems: Sequence[LibraryOs], words: str, reason: str, reader: Literal["linker", "driver", "direct"] = "linker"
) -> Added:
    return Added(systems=tuple(systems), words=tuple(words.split()), reader=reader, reason=reason)


_LIBRARY = "the client's loader takes shared libraries"

ADDED = (
    _added((*_ELF, "windows-gnu"), "-shared", _LIBRARY, "driver"),
    _added((*_ELF, "windows-gnu"), "-shared", _LIBRARY, "direct"),
    _added(_DARWIN, "-dynamiclib", _LIBRARY, "driver"),
    _added(_DARWIN, "-dylib", _LIBRARY, "direct"),
    _added(_ELF, "--unresolved-symbols=ignore-all", "what the stub does not define, the client's loader finds"),
    _added(_ELF, "-Bsymbolic", "else calls inside the patch go to the functions of the same name in the program"),
    _added(_ELF, "--eh-frame-hdr", "panics unwind through the patch; some drivers leave it out"),
    _added(_ELF, "-z noexecstack", "some systems refuse to load a library that wants an executable stack"),
    _added(_ELF, "-z now", "what cannot be found shows when the patch is loaded, not when it runs"),
    _added(("android",), "-z max-page-size=16384", "Android 15 and later load nothing less aligned"),
    _added(_DARWIN, "-undefined dynamic_lookup", "what the stub does not define, the client's loader finds"),
    _added(_DARWIN, "-no_fixup_chains", "they do not go with symbols that are looked up at run time"),
    _added(("windows-msvc",), "/DLL", _LIBRARY),
    _added(("windows-msvc",), "/NOENTRY", "the run-time library is the program's, and is started"),
    _added(("windows-msvc",), "/OPT:NOREF,NOICF", f"{_STRIPS}, or folded together"),
    _added(("windows-msvc",), "/INCREMENTAL:NO", "else calls go through thunks, and padding makes the patch larger"),
    _added(("windows-msvc",), "/DEBUG", "the symbols of the patch are read from its PDB"),
    _added(("windows-msvc",), "/NOIMPLIB", "nothing links against a patch"),
    _added(("windows-msvc",), "/MANIFEST:NO", "it would be written beside the patch"),
)
"""Flags that a patch library is linked with. Undefined symbols are an error on Windows: nothing there finds them."""


def _set_by(added: Sequence[Added], *, msvc: bool) -> tuple[Dropped, ...]:
    """Rows that take out what other rows put in, so that it is there once."""
    return tuple(
        Dropped(flag=flag_name(row.words[0], msvc=msvc), takes_value=len(row.words) > 1, reason=_SET)
        for row in added
        if row.words[0] != "-z" and row.words[0].startswith("/") == msvc
    )


DROPPED = (
    *rows(_NOT_ITS_OUTPUT, "-pie -no-pie -no_pie -rdynamic -bundle -execute", "-o --output"),
    *rows(_NOT_ITS_OUTPUT, "--shared -Bshareable --pie --no-pie --dll -mwindows -mconsole -mdll"),
    *rows(
        _EXPORTS,
        "--export-dynamic -E -export-dynamic -export_dynamic --no-undefined-version --undefined-version"
        " --export-all-symbols --exclude-all-symbols",
        "--version-script --dynamic-list --export-dynamic-symbol --export-dynamic-symbol-list --retain-symbols-file"
        " --exclude-libs --exclude-symbols -exported_symbol -exported_symbols_list -unexported_symbol"
        " -unexported_symbols_list -reexported_symbols_list -alias_list",
    ),
    *rows(
        _UNDEFINED,
        "--no-undefined --allow-shlib-undefined --no-allow-shlib-undefined --warn-unresolved-symbols"
        " --error-unresolved-symbols --fatal-warnings -fatal_warnings",
        "-U",
    ),
    *rows(
        _STRIPS,
        "--gc-sections --no-gc-sections --print-gc-sections -dead_strip -dead_strip_dylibs"
        " -no_dead_strip_inits_and_terms --discard-all",
    ),
    *rows(
        _ITS_NAME,
        "",
        "-soname --soname -h -install_name -current_version -compatibility_version --out-implib --output-def -umbrella",
    ),
    *rows("a library has no entry point", "-no_entry", "-e --entry -dynamic-linker --dynamic-linker -bundle_loader"),
    *rows(_COPIES, "--whole-archive --no-whole-archive -all_load -noall_load -ObjC", "-force_load -load_hidden"),
    *rows("calls inside the patch go to its own functions", "-Bsymbolic-functions -Bsymbolic-non-weak-functions"),
    *rows(_LAYOUT, "--image-base -Ttext -image_base -pagezero_size", "-T --script -order_file --stack --heap"),
    *rows("it lists objects of the program", "", "-filelist"),
    *rows("it names the program's own functions", "", "-alias"),
    *rows("it belongs to the program's file", "", "-sectcreate"),
    *rows("functions with the same code must stay apart", "-deduplicate"),
    *rows("chained fixups and symbols looked up at run time exclude each other", "-fixup_chains"),
    *rows(_SET, "--no-eh-frame-hdr"),
    *rows(_BESIDE, "", "-map -dependency_info -object_path_lto"),
    *rows("the objects are machine code already", "", "-lto_library"),
    *COMMON_DROPPED,
    *_set_by(ADDED, msvc=False),
)
"""Flags of compiler drivers and of linkers in the manner of GNU and Darwin that a patch library does without."""

DROPPED_SETTINGS = {
    "defs": _UNDEFINED,
    "undefs": _UNDEFINED,
    "lazy": _SET,
    "execstack": _SET,
    "start-stop-gc": _STRIPS,
    "nostart-stop-gc": _STRIPS,
}
"""Values of `-z` that a patch library does without."""

DROPPED_MSVC = (
    *rows(_NOT_ITS_OUTPUT, "/OUT /DRIVER /APPCONTAINER /TSAWARE /LARGEADDRESSAWARE"),
    *rows(_EXPORTS, "/EXPORT /DEF /NOEXP"),
    *rows(_UNDEFINED, "/FORCE"),
    *rows(_ITS_NAME, "/IMPLIB /VERSION"),
    *rows("a library that shares the program's run-time library has no entry point", "/ENTRY"),
    *rows(_COPIES, "/WHOLEARCHIVE"),
    *rows(_LAYOUT, "/BASE /FIXED /ORDER /STACK /HEAP /STUB /MERGE /SECTION /DELAYLOAD"),
    *rows("it names the program's own functions", "/INCLUDE"),
    *rows("it belongs to the program's file", "/MANIFESTINPUT /MANIFESTUAC /MANIFESTDEPENDENCY /MANIFESTFILE /NATVIS"),
    *rows(
        _BESIDE, "/PDB /PDBSTRIPPED /MAP /MAPINFO /LLDMAP /ILK /PGD /IDLOUT /TLBOUT /WINMD /WINMDFILE /DEPENDENCYINFO"
    ),
    *rows("the objects are machine code already", "/LTCG /LTCGOUT /USEPROFILE /GENPROFILE /FASTGENPROFILE /PROFILE"),
    *_set_by(ADDED, msvc=True),
)
"""The same for linkers in the manner of Microsoft's, named without values, in capitals."""


# zig reads the linker's arguments itself, knows few, and makes no chained fixups.
_ZIG_INSTEAD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("--unresolved-symbols=ignore-all",): ("-z", "undefs"),
    ("-no_fixup_chains",): (),
    ("--exclude-all-symbols",): (),
}

_STATIC = ("-static", "-static-pie")

# Which libraries these concern depends on where they stand.
_POSITIONAL = frozenset(
    "-Bstatic -Bdynamic -static -dn -dy --as-needed --no-as-needed --start-group --end-group -( -)"
    " --push-state --pop-state".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkerChoice:
    """Another linker than the captured one.

    Attributes:
        driver_words: what makes a compiler driver run it.
        program: its path, for commands that run a linker themselves.
    """

    driver_words: tuple[str, ...]
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DylibPlan:
    """A linker command.

    Attributes:
        argv: the program and its arguments; the last to come is `@file`, a file with `response` in it.
        response: the objects, then the libraries, quoted by the linker's own rules.
        response_encoding: how the file is written; UTF-16 is little-endian, with a byte order mark.
        dropped: what was taken out of the captured command, with the reason.
        added: what was put in, with the reason.
        after: commands that are run when the linker is done.
    """

    argv: tuple[str, ...]
    response: str
    response_encoding: Literal["utf-8", "utf-16"]
    dropped: tuple[tuple[str, str], ...]
    added: tuple[tuple[str, str], ...]
    after: tuple[tuple[str, ...], ...]

    @property
    def response_bytes(self) -> bytes:
        """The content of the response file."""
        if self.response_encoding == "utf-16":
            return ("\ufeff" + self.response).encode("utf-16-le", "surrogatepass")
        return self.response.encode("utf-8", "surrogateescape")


def library_os(target: str) -> LibraryOs:
    """Which kind of library programs of a target can load.

    Args:
        target: a target triple.

    Raises:
        ArgvError: none, or none that is known here.
    """
    if "-apple-" in target and "macabi" not in target:
        if target.endswith("-darwin"):
            return "macos"
        if target.endswith("-ios-sim") or target == "x86_64-apple-ios":
            return "ios-simulator"
        if target.endswith("-ios"):
            raise ArgvError(
                f"a program for `{target}` cannot be patched: devices load signed code only",
                hint="run the program in the simulator",
            )
    if re.search(r"-linux-android(eabi)?$", target):
        return "android"
    if re.search(r"-linux-(gnu|musl)", target):
        return "linux"
    if "-windows-gnu" in target:
        return "windows-gnu"
    if target.endswith("-windows-msvc"):
        return "windows-msvc"
    raise ArgvError(
        f"no patch libraries can be made for `{target}`",
        hint="Linux, Android, macOS, the iOS simulator and Windows are supported",
    )


def library_file_name(target: str, stem: str) -> str:
    """What the loader of a target expects a library to be called.

    Raises:
        ArgvError: see `library_os`.
    """
    return _FILE_NAMES[library_os(target)].format(stem)


def choose_dylib_linker(
    identified: Linker, *, rust_lld: str | None = None, found: Mapping[str, str] | None = None
) -> LinkerChoice | None:
    """Choose the linker for patch libraries of ELF systems.

    A stub makes absolute symbols of the program's data, and a library reaches them by its GOT. On x86-64 GNU ld (2.40)
    turns such a load into a distance, which it then refuses; on aarch64 it has the loader add the library's slide to
    the address. lld and mold write the address as it is.

    Args:
        identified: what the captured command runs.
        rust_lld: the directory `gcc-ld` of a Rust toolchain, with `ld.lld` in it.
        found: paths of installed linkers by their names, `ld.lld` and `mold`.

    Returns:
        Another linker; None where the captured one will do.

    Raises:
        ArgvError: it will not, and no other is there.
    """
    if identified != "bfd":
        return None
    found = found or {}
    if rust_lld is not None:
        return LinkerChoice(driver_words=(f"-B{rust_lld}", "-fuse-ld=lld"), program=os.path.join(rust_lld, "ld.lld"))
    for name, driver_name in (("ld.lld", "lld"), ("mold", "mold")):
        if name in found:
            return LinkerChoice(driver_words=(f"-fuse-ld={driver_name}",), program=found[name])
    raise ArgvError(
        "the program is linked by GNU ld, which cannot link a patch library against a running program",
        hint="install lld (`apt install lld`, `dnf install lld`), or link with the one that rustup installs",
    )


def plan_dylib_link(
    line: LinkLine,
    *,
    target: str,
    objects: Sequence[str],
    output: str,
    exports: Sequence[str] = (),
    libraries: Sequence[str] = (),
    linker: LinkerChoice | None = None,
    on_macos: bool = False,
) -> DylibPlan:
    """Plan the link of a patch library.

    Args:
        line: the captured command, without response files.
        target: the target triple that it links for.
        objects: paths, the stub last.
        output: path of the library.
        exports: names that it must export, as the source spells them; where every global symbol is exported anyway,
            nothing is added for them.
        libraries: further words that name libraries (`-lunwind`, `userenv.lib`), after the captured ones.
        linker: what to run instead of the captured linker.
        on_macos: whether the command is run there, where libraries can be signed.

    Raises:
        ArgvError: programs of this target, or this one, cannot load libraries; the command is not one for the target.
    """
    system = library_os(target)
    flavour = linker_flavour(line)
    msvc = flavour == "msvc-link"
    if msvc != (system == "windows-msvc"):
        raise ArgvError(f"`{line.driver}` does not look like a linker for `{target}`")
    for item in link_inputs(line):
        if item.kind is InputKind.FILE and item.words[0].startswith("@"):
            raise ArgvError(f"the response file `{item.words[0][1:]}` of the linker command is not read")
    direct = flavour != "driver"
    added = _rows_for(line, system, direct=direct, exports=exports)
    kept, dropped = edit_words(
        line,
        table=(*(DROPPED_MSVC if msvc else DROPPED), *_replaced_choice(linker)),
        settings=DROPPED_SETTINGS | {row.words[1].partition("=")[0]: _SET for row in added if row.words[0] == "-z"},
        kept_kinds=(InputKind.FLAG, InputKind.LIBRARY),
    )
    if system in _ELF and any(entry.item.words[0] in _STATIC and not entry.is_wrapped for entry in kept):
        raise ArgvError(
            "a program that is linked statically cannot load libraries",
            hint="it can be patched in place; or link it dynamically (`-C target-feature=-crt-static`)",
        )
    program = program_words(line)
    chosen: tuple[str, ...] = ()
    if linker is not None:
        chosen = (linker.program,) if direct else linker.driver_words
        program = (*chosen, *program[1:]) if direct else (*program, *chosen)
    argv = [
        *program,
        *_words([entry for entry in kept if not _is_positional(entry)], direct=direct),
        *(word for row in added for word in wrap(row.words, direct=direct or row.reader == "driver")),
        *((f"/OUT:{output}",) if msvc else ("-o", output)),
    ]
    start = _start_objects(line) if system == "windows-gnu" else ()
    late = _words([entry for entry in kept if _is_positional(entry)], direct=direct)
    quote = quote_windows if msvc else quote_gnu
    return DylibPlan(
        argv=tuple(argv),
        response="".join(f"{quote(word)}\n" for word in (*start, *objects, *late, *libraries)),
        response_encoding="utf-16" if msvc else "utf-8",
        dropped=dropped,
        added=(
            *(((" ".join(chosen), "the captured linker cannot link a patch library"),) if chosen else ()),
            *((" ".join(row.words), row.reason) for row in added),
            *((word, "the caller asks for it") for word in libraries),
            *((word, "a library is started by other code than a program") for word in start),
        ),
        after=(("codesign", "--force", "--sign", "-", output),)
        if on_macos and system in _DARWIN and not _signs(line, target)
        else (),
    )


def _rows_for(line: LinkLine, system: LibraryOs, *, direct: bool, exports: Sequence[str]) -> tuple[Added, ...]:
    """The rows that hold for a command; those for exports depend on their names."""
    other_reader = "driver" if direct else "direct"
    rows_for = [row for row in ADDED if system in row.systems and row.reader != other_reader]
    if system == "windows-msvc":
        rows_for += (_added([system], f"/EXPORT:{name}", "the client looks it up") for name in exports)
    elif system == "windows-gnu":
        flag = "--export-all-symbols" if exports else "--exclude-all-symbols"
        rows_for.append(_added([system], flag, "without it, what is exported depends on directives in the objects"))
    if _is_zig(line):
        rows_for = [replace(row, words=_ZIG_INSTEAD.get(row.words, row.words)) for row in rows_for]
    return tuple(row for row in rows_for if row.words)


def _start_objects(line: LinkLine) -> tuple[str, ...]:
    """MinGW's start-up code for libraries, beside that for programs, if the command names the latter by itself."""
    return tuple(
        os.path.join(os.path.dirname(word), "dllcrt2.o")
        for word in line.argv
        if os.path.basename(word) in ("crt2.o", "dllcrt2.o")
    )


def _is_zig(line: LinkLine) -> bool:
    """Whether `zig cc` links, also by a script; those have zig in their names."""
    return any("zig" in os.path.basename(word) for word in program_words(line))


def _replaced_choice(linker: LinkerChoice | None) -> tuple[Dropped, ...]:
    """Rows that take out how the captured command chooses its linker, if another is chosen."""
    if linker is None:
        return ()
    return tuple(
        Dropped(flag=flag_name(word, msvc=False), takes_value=False, reason="another linker is chosen")
        for word in ("-fuse-ld", "--ld-path", *linker.driver_words)
    )


def _is_positional(entry: KeptWords) -> bool:
    """Whether the place among the libraries matters."""
    return entry.item.kind is InputKind.LIBRARY or entry.item.words[0] in _POSITIONAL


def _words(entries: Sequence[KeptWords], *, direct: bool) -> list[str]:
    return [word for entry in entries for word in wrap(entry.item.words, direct=direct or not entry.is_wrapped)]


def _signs(line: LinkLine, target: str) -> bool:
    """Whether the linker signs what it makes: lld and zig do for arm64. For others it does no harm to sign again.

    Source: `lld/MachO/Driver.cpp` (`shouldAdhocSignByDefault`)
    """
    is_known = linker_flavour(line) == "darwin-ld" or "-fuse-ld=lld" in line.argv or _is_zig(line)
    return target.startswith(("aarch64-", "arm64")) and is_known
