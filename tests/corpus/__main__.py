"""Writes the table of the corpus into its README, and prints it."""

from collections.abc import Iterable
from pathlib import Path

from tests.corpus.cases import Case, read_cases, table

README = Path(__file__).parent / "README.md"
_TEXT = """\
# The edit corpus

Edits of real shapes. Each is a small module, an edit of it, and the one outcome that is allowed: the verdict, what it
must name, and what the module shows before the edit, after it, and after its reverse. They run against `hotpatchd run`:
the modules of a build are one program, in one process from the first edit to the last. A build is an optimisation level
of cargo's debug builds (0, 1, 3), `v0` (level 0, with rustc's newer symbol names), or `release`.

The cases are in `cases/`, one file for each kind; `cases.py` tells their format. `python -m tests.corpus` writes this
table; an edit counts among the verdicts once for each build with which it can run. `make test` runs the build 0, and
others for some kinds; `HOTPATCHD_CORPUS_BUILDS=0,v0,1,3,release` runs them all.

"""


def readme(cases: Iterable[Case]) -> str:
    """The text of the README."""
    return _TEXT + table(cases)


if __name__ == "__main__":
    README.write_text(readme(read_cases()))
    print(table(read_cases()), end="")
