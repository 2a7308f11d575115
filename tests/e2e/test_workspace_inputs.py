"""Everything that a program is made from besides its code: what a save of it leads to, and what it does not."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import assert_continuous

TIP = "main/crates/app/src/main.rs"
MANIFEST = "main/crates/app/Cargo.toml"
RESTART = {
    "build_script": ("main/crates/generated/build.rs", '\\"{}-{}\\"', '\\"{}+{}\\"'),
    "listed_by_a_build_script": ("main/crates/generated/listed.txt", "listed", "edited"),
    "not_listed_by_a_build_script": ("main/crates/generated/unlisted.txt", "unlisted", "edited"),
    "proc_macro": ("main/crates/macros/src/lib.rs", "String::from", "String::new() + &String::from"),
    "library_of_a_proc_macro": ("main/crates/macro-support/src/lib.rs", "a-{}", "the-{}"),
    "features": (MANIFEST, ', features = ["loud"]', ""),
    "dependency_gone": (MANIFEST, 'assets = { path = "../assets" }\n', ""),
    "manifest_outside": ("outside/Cargo.toml", 'edition = "2021"', 'edition = "2018"'),
    "profile": ("main/Cargo.toml", 'exclude = ["vendor"]\n', 'exclude = ["vendor"]\n\n[profile.dev]\nopt-level = 1\n'),
    "lock_file": ("main/Cargo.lock", 'name = "outside"\nversion = "0.1.0"', 'name = "outside"\nversion = "0.1.1"'),
    "configuration": ("main/.cargo/config.toml", '"banner"', '"flag"'),
    "toolchain": ("main/rust-toolchain.toml", '"stable"\n', '"stable"\ncomponents = ["rustfmt"]\n'),
}
"""Kind → file, old text, new text."""
NO_MATTER = {
    "description": ("main/crates/base/Cargo.toml", "The bottom of the graph.", "The end of the graph."),
    "comment_in_a_manifest": (MANIFEST, "[dependencies]\n", "[dependencies]\n# All by path.\n"),
    "order_of_dependencies": (
        MANIFEST,
        'alias = { package = "origin", path = "../origin" }\nassets = { path = "../assets" }\n',
        'assets = { path = "../assets" }\nalias = { package = "origin", path = "../origin" }\n',
    ),
    "manifest_of_an_unused_crate": ("main/crates/unused/Cargo.toml", 'version = "0.1.0"', 'version = "0.1.0" # first'),
    "comment_in_the_lock_file": ("main/Cargo.lock", "# It is not intended", "# It is indeed not intended"),
    "blank_line_in_a_manifest": ("main/crates/generated/Cargo.toml", "publish = false\n", "publish = false\n\n"),
}


def put_back(session: Session) -> None:
    """Writes the fixture's sources back, and waits for what the daemon makes of it."""
    session.project.restore()
    session.wait_quiet()


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "value"),
    [
        pytest.param("main/crates/assets/text.txt", "text", "edited", "text", "edited", id="include_str"),
        pytest.param("main/crates/assets/bytes.bin", "12345", "123", "bytes", "3", id="include_bytes"),
        pytest.param("main/crates/app/words.txt", "words", "edited", "words", "edited", id="read_by_a_macro"),
    ],
)
def test_file_that_is_compiled_in_applies(
    file: str, old: str, new: str, key: str, value: str, workspace: Session
) -> None:
    """A file that rustc or a macro reads while a crate compiles is code: the program shows its new content."""
    before = workspace.daemon.wait_line("before the edit")
    start = len(workspace.daemon.app_lines()) - 1
    workspace.apply(file, old, new)
    workspace.daemon.wait_value(key, value)
    workspace.apply(file, new, old)
    workspace.daemon.wait_value(key, before[key])
    assert_continuous(workspace.daemon.app_lines()[start:])


@pytest.mark.parametrize("kind", RESTART)
def test_file_that_needs_a_full_build(kind: str, workspace: Session) -> None:
    """The verdict is `restart` and names the file; the program goes on, and put back the file makes no difference."""
    start = len(workspace.daemon.app_lines())
    saved = workspace.edit(*RESTART[kind])
    verdict = workspace.wait_verdict(saved)
    assert verdict.verdict == "restart"
    assert str(saved.file) in [refusal["symbol"] for refusal in verdict.refusals]
    workspace.daemon.wait_line("after the verdict")
    mark = len(workspace.events())
    put_back(workspace)
    assert set(workspace.verdicts(after=mark)) == {"unchanged"}
    assert workspace.cli_json("status")["restart_needed_for"] == {}
    workspace.apply(TIP, "    61", "    62")
    workspace.daemon.wait_value("own", "62")
    assert_continuous(workspace.daemon.app_lines()[start:])


@pytest.mark.parametrize("kind", NO_MATTER)
def test_file_that_makes_no_difference(kind: str, workspace: Session) -> None:
    """What cargo would build is the same: nobody is asked to restart."""
    saved = workspace.edit(*NO_MATTER[kind])
    workspace.wait_quiet()
    put_back(workspace)
    assert set(workspace.verdicts(after=saved.mark)) <= {"unchanged"}


def test_code_and_manifest_together(workspace: Session) -> None:
    """An edit of code that is saved with a manifest waits with it; put back, the code applies."""
    saved, _ = workspace.save_together(
        {
            TIP: workspace.project.replaced(TIP, "    61", "    62"),
            MANIFEST: workspace.project.replaced(MANIFEST, ', features = ["loud"]', ""),
        }
    )
    assert workspace.wait_verdict(saved).verdict == "restart"
    assert workspace.daemon.wait_line("after the verdict")["own"] == "61"
    workspace.edit(MANIFEST, 'path = "../featured" }', 'path = "../featured", features = ["loud"] }')
    workspace.wait_quiet()
    workspace.edit(TIP, "    62", "    63")
    workspace.daemon.wait_value("own", "63")
