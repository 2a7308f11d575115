"""The corpus: files of cases, each a small module of a program, an edit of it, and the one allowed outcome.

A case begins with a line `== name | builds | outcome | values`, then a sentence, then the module as a diff with all of
its lines: a space, `-` or `+` first. `@ file` starts another file of the case, beside the module's own submodules.

- builds: what the program is built as where the case runs: an optimisation level of debug builds, `v0` (level 0, with
  rustc's newer symbol names), or `release`.
- outcome: the verdict, then words that its refusals and notes must contain.
- values: what the module's `show()` returns when it is called before the edit, after it, and after its reverse, with
  ` -> ` between; each exactly once. Without the third, the first is meant.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent / "cases"
BUILDS = ("0", "v0", "1", "3", "release")
VERDICTS = ("applied", "refused", "restart", "unchanged", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file before and after an edit.

    Args:
        path: relative to the directory of the program's sources.
        before: its text.
        after: its text when the edit is made; None where the file is not edited.
    """

    path: str
    before: str
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One edit.

    Args:
        kind: what is edited; the file that the case is in.
        name: the module of the program.
        builds: some of `BUILDS`.
        verdict: the allowed verdict.
        told: words that the verdict's refusals and notes contain.
        values: what the module shows before the edit, after it, and after its reverse.
        about: what the case is, in a sentence.
        sources: its files.
    """

    kind: str
    name: str
    builds: tuple[str, ...]
    verdict: str
    told: tuple[str, ...]
    values: tuple[str, str, str]
    about: str
    sources: tuple[Source, ...]


def read_cases(directory: Path = DIRECTORY) -> tuple[Case, ...]:
    """All cases, by kind and in the order of their files.

    Raises:
        ValueError: a file breaks the format, or two cases have one name.
    """
    cases = tuple(case for file in sorted(directory.glob("*.txt")) for case in _parse(file.stem, file.read_text()))
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        raise ValueError(f"two cases have the name {twice[0]}: rename one")
    return cases


def _parse(kind: str, text: str) -> Iterator[Case]:
    blocks = text.split("\n== ")
    for block in [blocks[0].removeprefix("== "), *blocks[1:]]:
        header, about, *lines = block.splitlines()
        name, builds, outcome, shown = (part.strip() for part in header.split(" | "))
        verdict, *told = outcome.split()
        before, after, *reverted = shown.split(" -> ")
        if verdict not in VERDICTS:
            raise ValueError(f"{kind}/{name}: no verdict is named {verdict!r}")
        if unknown := set(builds.split()).difference(BUILDS):
            raise ValueError(f"{kind}/{name}: no build is named {', '.join(sorted(unknown))}")
        yield Case(
            kind=kind,
            name=name,
            builds=tuple(builds.split()),
            verdict=verdict,
            told=tuple(told),
            values=(before, after, reverted[0] if reverted else before),
            about=about,
            sources=tuple(_sources(f"{kind}/{name}", name, lines)),
        )


def _sources(where: str, name: str, lines: Iterable[str]) -> Iterator[Source]:
    files: dict[str, list[str]] = {f"{name}.rs": []}
    path = f"{name}.rs"
    for line in lines:
        if line.startswith("@ "):
            path = f"{name}/{line[2:]}"
            files[path] = []
        elif line[:1] in (" ", "-", "+", ""):
            files[path].append(line or " ")
        else:
            raise ValueError(f"{where}: a line begins with neither a space, -, + nor @: {line!r}")
    for path, marked in files.items():
        before, after = (
            "".join(f"{line[1:]}\n" for line in marked if line[0] in (" ", sign)).rstrip("\n") + "\n" for sign in "-+"
        )
        yield Source(path=path, before=before, after=after if after != before else None)


def table(cases: Iterable[Case]) -> str:
    """How many cases of each kind end in each verdict, in Markdown; a case counts once for each build."""
    counts: Counter[tuple[str, str]] = Counter()
    kinds: dict[str, set[str]] = {}
    for case in cases:
        kinds.setdefault(case.kind, set()).add(case.name)
        counts[case.kind, case.verdict] += len(case.builds)
    rows = [["kind", "edits", *VERDICTS]]
    rows += [
        [kind, str(len(names)), *(str(counts[kind, verdict] or "") for verdict in VERDICTS)]
        for kind, names in kinds.items()
    ]
    totals = [str(sum(counts[kind, verdict] for kind in kinds)) for verdict in VERDICTS]
    rows.append(["all", str(sum(len(names) for names in kinds.values())), *totals])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(rows[0]) - 1), *lines[1:]]) + "\n"
