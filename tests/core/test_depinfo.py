"""Dep-info files, as the installed rustc writes them."""

import os
import subprocess
from pathlib import Path

import pytest

from hotpatchd.core.depinfo import DepInfo, parse_dep_info
from hotpatchd.core.errors import CaptureError

SOURCE = """
mod plain;
#[path = "two  spaces/back.rs"] mod back;
pub const TEXT: &str = include_str!("two  spaces/a: b.txt");
pub const SET: &str = env!("DEP_INFO_SET");
pub const UNSET: Option<&str> = option_env!("DEP_INFO_UNSET");
"""

EXPECTED = DepInfo(
    files=("root.rs", "plain.rs", "two  spaces/back.rs", "two  spaces/a: b.txt"),
    env=(("DEP_INFO_SET", "line\nback\\slash\rend = x"), ("DEP_INFO_UNSET", None)),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dep-info of a crate with awkward paths and variables."""
    root = tmp_path_factory.mktemp("dep info")
    (root / "two  spaces").mkdir()
    (root / "out: dir").mkdir()
    (root / "root.rs").write_text(SOURCE)
    for path in ("plain.rs", "two  spaces/back.rs", "two  spaces/a: b.txt"):
        (root / path).write_text("")
    argv = ["rustc", "--crate-type=lib", "--emit=dep-info,metadata", "--out-dir", "out: dir", "root.rs"]
    env = {**os.environ, "DEP_INFO_SET": "line\nback\\slash\rend = x"}
    subprocess.run(argv, cwd=root, env=env, check=True)
    return Path(root, "out: dir", "root.d").read_bytes().decode()


def test_files_and_variables_are_read_as_rustc_wrote_them(written: str) -> None:
    """Paths with spaces and colons, variables with line ends, unset variables."""
    parsed = parse_dep_info(written)
    assert parsed.files == EXPECTED.files
    assert sorted(parsed.env, key=lambda pair: pair[0]) == list(EXPECTED.env)


def test_a_file_cut_short_anywhere_never_lacks_a_source(written: str) -> None:
    """Each beginning of the file is refused, or lists all sources."""
    complete = 0
    for length in range(len(written)):
        try:
            files = parse_dep_info(written[:length]).files
        except CaptureError:
            continue
        complete += 1
        assert files == EXPECTED.files
    assert 0 < complete < len(written) / 2


def test_a_file_that_is_not_dep_info_is_refused() -> None:
    """Arbitrary text has no rule."""
    with pytest.raises(CaptureError, match="dep-info"):
        parse_dep_info("hello\n")
