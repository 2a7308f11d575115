"""What became of the last edits: their texts, their verdicts, and the machine code before and after."""

import asyncio
import difflib
import os
import shutil
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hotpatchd.core.client import Detour, DylibPatch, Patch
from hotpatchd.core.demangle import demangle
from hotpatchd.core.errors import HotpatchdError, UsageError
from hotpatchd.core.events import (
    EditSettled,
    EditsUndone,
    EditVerdict,
    Event,
    PatchSent,
    ProgramPanicked,
    RebuildFailed,
    Verdict,
)
from hotpatchd.core.session import Session
from hotpatchd.daemon.processes import run_process
from hotpatchd.objfile.rewrite import NEW_CODE_SUFFIX
from hotpatchd.objfile.symbols import read_symbols

KEPT_EDITS = 100
KEPT_PATCHES = 1000
"""How many patches of programs are remembered, to find the code that a later one replaced."""
KEPT_TEXT = 32 << 20
"""Bytes of compressed source text that all edits may keep together; the oldest goes first."""
LARGEST_TEXT = 1 << 19
MOST_TEXTS = 100
"""How many texts of one edit are kept: reading them takes time that the edit waits for."""
_NOT_KEPT = b""
DISASSEMBLERS = ("objdump", "llvm-objdump", "aarch64-linux-gnu-objdump", "x86_64-linux-gnu-objdump")
"""That of the machine itself may not know others; the next one that is installed is asked then."""
SHOWN_FUNCTIONS = 16
"""How many functions of an edit are disassembled: each takes a process that reads a whole program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A file of an edit, with its compressed text before and after.

    None stands for no file, an empty one for a text that is not kept.
    """

    file: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A function's machine code: link-time address and, where it is known, size in bytes."""

    file: Path
    addr: int
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedPatch:
    """A patch on disk.

    Args:
        file: what the linker wrote.
        identity: the file's inode and time of last change: what was refused is overwritten by the next.
        functions: name, code before, code after.
    """

    file: Path
    identity: tuple[int, int]
    functions: tuple[tuple[str, Code, Code], ...]


@dataclass(slots=True, kw_only=True)
class Edit:
    """What is known of an edit so far.

    Args:
        number: of the edit.
        ts: when it settled, in Unix seconds.
        files: that changed.
        changes: their texts; empty once they are too old to be kept.
        verdict: None while there is none.
        diagnostics: what rustc said, if it did not compile.
        size: of its largest patch, in bytes.
        is_undone: it was taken back.
        panics: how many went through its code.
        patches: by the build id of the program that each is for.
    """

    number: int
    ts: float
    files: tuple[str, ...]
    changes: tuple[Change, ...]
    verdict: Verdict | None = None
    diagnostics: tuple[str, ...] = ()
    size: int = 0
    is_undone: bool = False
    panics: int = 0
    patches: dict[str, LinkedPatch] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The edit as `hotpatchd log` shows it; without a verdict, its fields are null."""
        verdict = asdict(self.verdict) if self.verdict else dict.fromkeys(Verdict.__dataclass_fields__)
        return {
            "edit": self.number,
            "ts": self.ts,
            "files": self.files,
            **verdict,
            "bytes": self.size,
            "undone": self.is_undone,
            "panics": self.panics,
        }


class History:
    """The last edits; nothing of it outlives the daemon.

    Args:
        root: paths are shown relative to it.
        patches_dir: where linked patches lie, in a directory for each program.
    """

    def __init__(self, root: Path, patches_dir: Path) -> None:
        self._root = root
        self._patches_dir = patches_dir
        self._edits: OrderedDict[int, Edit] = OrderedDict()
        self._texts: dict[str, bytes | None] = {}
        self._redirects: OrderedDict[tuple[str, str], dict[int, Code]] = OrderedDict()

    def know(self, texts: Mapping[str, bytes]) -> None:
        """Remember the sources that a new build of the program was made from; code of earlier ones is forgotten."""
        self._texts = {file: _compressed(text) for file, text in texts.items()}
        self._redirects.clear()
        for edit in self._edits.values():
            edit.patches.clear()

    def take(self, event: Event) -> None:
        """Take in what happened."""
        match event:
            case EditSettled():
                self._begin(event)
            case PatchSent(edit=edit) if edit in self._edits and self._edits[edit].verdict is None:
                self._edits[edit].size = max(self._edits[edit].size, event.bytes)
            case RebuildFailed(edit=edit) if edit in self._edits:
                self._edits[edit].diagnostics = event.diagnostics
            case EditVerdict(edit=edit) if edit in self._edits:
                self._edits[edit].verdict = event.verdict
            case ProgramPanicked(edit=edit) if edit in self._edits:
                self._edits[edit].panics += event.count
            case EditsUndone():
                for number in event.edits:
                    if number in self._edits:
                        self._edits[number].is_undone = True

    def include(self, number: int, files: Iterable[str]) -> None:
        """Take in files that the build of an edit is the first one to read: to the program they are new."""
        edit = self._edits.get(number)
        if edit is None:
            return
        for file in files:
            text = _read(file) if file not in edit.files and len(edit.changes) < MOST_TEXTS else None
            # Places at which a file was looked for in vain count as inputs, too.
            if text is not None:
                self._texts[file] = text
                edit.files += (file,)
                edit.changes += (Change(file=file, before=None, after=text),)

    def sent(
        self, session: Session, patch: Patch | DylibPatch, linked: Path, names: Mapping[int, str], program: Path
    ) -> None:
        """Remember what a patch that is about to be sent replaces.

        Args:
            session: the client, as it is before the patch.
            patch: what is sent.
            linked: what the linker wrote.
            names: of the functions that it replaces, by run-time address.
            program: the file of the host binary.
        """
        detours = patch.detours if isinstance(patch, Patch) else patch.jumps
        after = {detour.from_addr: Code(file=linked, addr=detour.to_addr) for detour in detours}
        self._redirects[session.hello.instance, patch.patch] = after
        if len(self._redirects) > KEPT_PATCHES:
            self._redirects.popitem(last=False)
        edit = self._edits.get(patch.edit)
        if edit is None or session.hello.build_id in edit.patches:
            return
        edit.patches[session.hello.build_id] = LinkedPatch(
            file=linked,
            identity=_identity(linked),
            functions=tuple(
                (names[detour.from_addr], self._code_before(session, detour, program), after[detour.from_addr])
                for detour in detours
                if detour.from_addr in names
            ),
        )

    def rows(self) -> list[dict[str, Any]]:
        """The edits, oldest first."""
        return [edit.row() for edit in self._edits.values()]

    async def show(self, number: int) -> dict[str, Any]:
        """Everything that is known of an edit.

        Returns:
            its row, and `diff` (unified), `diagnostics` (where it did not compile), `patches` (the symbols of each),
            `code` (for each replaced function, the instructions before and after) and `missing` (what cannot be shown,
            and why).

        Raises:
            UsageError: there is no such edit.
        """
        edit = self._edits.get(number)
        if edit is None:
            raise UsageError(f"edit {number} is not among the last {KEPT_EDITS}", hint="`hotpatchd log` lists them")
        missing: list[str] = []
        if not edit.changes:
            missing.append("the text of its files, of which newer edits have too much")
        if edit.size and not edit.patches:
            missing.append("its patch, which is for an earlier build, or led to by the program's own jump table")
        patches: list[dict[str, object]] = []
        functions: list[tuple[str, Code, Code]] = []
        for build_id, patch in edit.patches.items():
            try:
                if _identity(patch.file) != patch.identity:
                    raise HotpatchdError(f"{patch.file} is not there any more")
                symbols = await asyncio.to_thread(_symbols, patch.file)
            except (HotpatchdError, OSError) as error:
                missing.append(str(error))
                continue
            patches.append({"build_id": build_id, "file": str(patch.file), "symbols": symbols})
            functions += patch.functions
        if len(functions) > SHOWN_FUNCTIONS:
            missing.append(f"the code of {len(functions) - SHOWN_FUNCTIONS} more functions")
        code = []
        for name, before, after in functions[:SHOWN_FUNCTIONS]:
            try:
                code.append({"name": name, "before": await _disassemble(before), "after": await _disassemble(after)})
            except (HotpatchdError, OSError) as error:
                missing.append(f"machine code: {error}")
        return {
            **edit.row(),
            "diff": await asyncio.to_thread(self._diff, edit),
            "diagnostics": edit.diagnostics,
            "patches": patches,
            "code": code,
            "missing": list(dict.fromkeys(missing)),
        }

    def _begin(self, event: EditSettled) -> None:
        changes: list[Change] = []
        for file in event.files:
            after = _read(file) if len(changes) < MOST_TEXTS else _NOT_KEPT
            # Of Rust sources all are known: one that is not was added.
            unknown = None if file.endswith(".rs") else _NOT_KEPT
            changes.append(Change(file=file, before=self._texts.get(file, unknown), after=after))
            self._texts[file] = after
        self._edits[event.edit] = Edit(number=event.edit, ts=time.time(), files=event.files, changes=tuple(changes))
        if len(self._edits) > KEPT_EDITS:
            self._edits.popitem(last=False)
        kept = 0
        for edit in reversed(self._edits.values()):
            kept += sum(len(text) for change in edit.changes for text in (change.before, change.after) if text)
            if kept > KEPT_TEXT:
                edit.changes = ()

    def _code_before(self, session: Session, detour: Detour, program: Path) -> Code:
        hello = session.hello
        for applied in reversed(session.history):
            known = self._redirects.get((hello.instance, applied.patch), {}).get(detour.from_addr)
            if known is not None:
                return known
        in_region = detour.from_addr - hello.region.addr
        if 0 <= in_region < hello.region.size:
            slot = in_region // hello.region.slot_size
            return Code(
                file=self._patches_dir / hello.instance / f"slot-{slot}.elf", addr=detour.from_addr, size=detour.size
            )
        return Code(file=program, addr=detour.from_addr - hello.slide, size=detour.size)

    def _diff(self, edit: Edit) -> str:
        lines: list[str] = []
        for change in edit.changes:
            name = os.path.relpath(change.file, self._root)
            if _NOT_KEPT in (change.before, change.after):
                lines.append(f"{name}: its text is not kept\n")
                continue
            try:
                before, after = _lines(change.before), _lines(change.after)
            except UnicodeDecodeError:
                lines.append(f"{name}: it is not text\n")
                continue
            lines += difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _compressed(text: bytes) -> bytes:
    return zlib.compress(text, 1) if len(text) <= LARGEST_TEXT else _NOT_KEPT


def _read(file: str) -> bytes | None:
    try:
        return _compressed(Path(file).read_bytes())
    except OSError:
        return None


def _lines(text: bytes | None) -> list[str]:
    return zlib.decompress(text).decode().splitlines(keepends=True) if text else []


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def _symbols(file: Path) -> list[dict[str, object]]:
    """The functions and statics that a patch defines."""
    own = [
        symbol
        for symbol in read_symbols(file).symbols
        if symbol.is_defined and not symbol.is_absolute and symbol.kind in ("function", "data", "tls")
    ]
    replaced = {symbol.name.removesuffix(NEW_CODE_SUFFIX) for symbol in own if symbol.name.endswith(NEW_CODE_SUFFIX)}
    return [
        {
            "name": demangle(symbol.name.removesuffix(NEW_CODE_SUFFIX)),
            "kind": symbol.kind,
            "addr": symbol.addr,
            "size": symbol.size,
            "replaces": symbol.name.endswith(NEW_CODE_SUFFIX),
        }
        for symbol in sorted(own, key=lambda symbol: symbol.addr)
        if symbol.name not in replaced
    ]


async def _disassemble(code: Code) -> list[str]:
    """A function's instructions, one a line, each after its address.

    Raises:
        HotpatchdError: there is no disassembler that knows the machine.
        OSError: the file cannot be read.
    """
    size = code.size
    if size is None:
        table = await asyncio.to_thread(read_symbols, code.file)
        size = max((symbol.size for symbol in table.symbols if symbol.addr == code.addr), default=0)
    span = (f"--start-address={code.addr:#x}", f"--stop-address={code.addr + size:#x}")
    said = ""
    for objdump in filter(None, map(shutil.which, DISASSEMBLERS)):
        done = await run_process([objdump, "-d", "-C", "--no-show-raw-insn", *span, str(code.file)], takes_turn=False)
        lines = done.stdout.decode(errors="replace").splitlines()
        instructions = [
            line.strip().expandtabs(4) for line in lines if line[:1] == " " and ":" in line and "\t" in line
        ]
        if instructions:
            return instructions
        said = done.stderr.decode(errors="replace").strip() or f"objdump finds no code at {code.addr:#x} of {code.file}"
    raise HotpatchdError(said or "objdump is not installed: install binutils")
