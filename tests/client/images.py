"""Patches made by hand: a C source, compiled and linked at the place that a client named."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.client.platform import X86_64_GNU, Platform

_PAGE = 4096
_TERMINATOR = '.section .eh_frame,"a",@progbits\n.long 0\n.section .note.GNU-stack,"",@progbits\n'
_PROTECTIONS = {4: "r", 5: "rx", 6: "rw"}


class Symbol(NamedTuple):
    """Link-time address and size."""

    addr: int
    size: int


def read_symbols(path: Path) -> dict[str, Symbol]:
    """All named symbols of an ELF file that have an address."""
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {s.name: Symbol(s["st_value"], s["st_size"]) for s in table.iter_symbols() if s.name and s["st_value"]}


class Sent:
    """A patch as a client gets it: the message that announces it, and its bytes."""

    def __init__(self, message: dict[str, Any], content: bytes) -> None:
        self.message = message
        self.content = content

    @property
    def id(self) -> str:
        """The patch's id."""
        patch: str = self.message["patch"]
        return patch

    def with_changes(self, **changes: Any) -> Self:
        """The same patch under a message in which some fields differ."""
        return type(self)({**self.message, **changes}, self.content)


class Image(Sent):
    """A linked image."""

    def with_content(self, old: bytes, new: bytes) -> "Image":
        """The same patch with other bytes in one place, whose hash it names."""
        assert self.content.count(old) == 1
        assert len(old) == len(new)
        content = self.content.replace(old, new)
        return Image({**self.message, "patch": hashlib.sha256(content).hexdigest()}, content)

    def moved(self, by: int) -> "Image":
        """The same patch, which must be independent of its position, `by` bytes further up."""

        def shifted(entries: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
            return [{**entry, field: entry[field] + by} for entry in entries]

        return self.with_changes(
            segments=shifted(self.message["segments"], "addr"),
            eh_frame=shifted([self.message["eh_frame"]], "addr")[0],
            detours=shifted(self.message["detours"], "to"),
        )


def build_image(
    source: str,
    *,
    hello: Mapping[str, Any],
    host: Path,
    detours: Mapping[str, str],
    work: Path,
    next_addr: int = 0,
    platform: Platform = X86_64_GNU,
) -> Image:
    """Compile and link `source` for the client that said `hello`.

    Host symbols that the source leaves undefined are linked to the running program. A variable `import_NAME` becomes
    the slot of the import `NAME`.

    Args:
        source: C.
        hello: the client's hello; the patch goes to `next_addr`, or else where it says.
        host: the program's file.
        detours: names of functions of the host, and of those in the source that replace them.
        work: directory for the files; `patched.c` and `patched.elf` are kept for debuggers.
        next_addr: where the patch goes.
        platform: what it is for.
    """
    slide: int = hello["slide"]
    symbols = read_symbols(host)
    (work / "patched.c").write_text(source)
    (work / "end.s").write_text(_TERMINATOR)
    for name in ("patched.c", "end.s"):
        flags = ("-g", "-O1", "-fPIE", "-fno-stack-protector", "-fexceptions")
        subprocess.run([*platform.cc, "-c", *flags, name, "-o", f"{name}.o"], cwd=work, check=True)
    wanted = _undefined(work / "patched.c.o")
    subprocess.run(
        [platform.ld, "-static", "-nostdlib", "--build-id=none", "-z", "max-page-size=4096", "-z", "separate-code"]
        + ["-e", "0", "--no-warn-rwx-segments", f"-Ttext-segment={next_addr or hello['region']['next']:#x}"]
        + [f"--defsym={name}={symbols[name].addr + slide:#x}" for name in wanted]
        + ["-o", "patched.elf", "patched.c.o", "end.s.o"],
        cwd=work,
        check=True,
    )
    linked = read_symbols(work / "patched.elf")
    content = b""
    segments = []
    with (work / "patched.elf").open("rb") as file:
        elf = ELFFile(file)
        for segment in elf.iter_segments("PT_LOAD"):
            before = segment["p_vaddr"] % _PAGE
            segments.append(
                {
                    "addr": segment["p_vaddr"] - before,
                    "mem_size": segment["p_memsz"] + before,
                    "offset": len(content),
                    "file_size": segment["p_filesz"] + before,
                    "prot": _PROTECTIONS[segment["p_flags"]],
                }
            )
            content += bytes(before) + segment.data()
        eh_frame = elf.get_section_by_name(".eh_frame")
        assert eh_frame is not None
        frames = {"addr": eh_frame["sh_addr"], "size": eh_frame["sh_size"]}
    message = {
        "type": "patch",
        "patch": hashlib.sha256(content).hexdigest(),
        "edit": 1,
        "build_id": hello["build_id"],
        "size": len(content),
        "segments": segments,
        "imports": [
            {"name": name.removeprefix("import_"), "slot": symbol.addr}
            for name, symbol in linked.items()
            if name.startswith("import_")
        ],
        "eh_frame": frames,
        "detours": [
            {"from": symbols[old].addr + slide, "to": linked[new].addr, "size": symbols[old].size}
            for old, new in detours.items()
        ],
        "thread_locals": [],
        "elf": str(work / "patched.elf"),
    }
    return Image(message, content)


def _undefined(path: Path) -> list[str]:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return [s.name for s in table.iter_symbols() if s.name and s["st_shndx"] == "SHN_UNDEF" and s.name[0] != "_"]
