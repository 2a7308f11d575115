"""What the devtools dialects ask for."""

import pytest

from hotpatchd.core.devtools import devtools_environ, export_main_args, is_asset, notice_of
from hotpatchd.core.events import EditSettled, EditVerdict, RebuildFinished, Timings, Verdict


@pytest.mark.parametrize(
    ("target", "argument"),
    [
        ("x86_64-unknown-linux-gnu", "-Clink-arg=-Wl,--export-dynamic-symbol=main"),
        ("aarch64-linux-android", "-Clink-arg=-Wl,--export-dynamic-symbol=main"),
        ("aarch64-apple-darwin", "-Clink-arg=-Wl,-exported_symbol,_main"),
        ("x86_64-pc-windows-msvc", "-Clink-arg=/EXPORT:main"),
        ("x86_64-pc-windows-gnu", "-Clink-arg=-Wl,--export-all-symbols"),
    ],
)
def test_each_linker_is_told_in_its_words_to_export_main(target: str, argument: str) -> None:
    """One argument for rustc, which hands it to the linker."""
    assert export_main_args(target) == (argument,)


@pytest.mark.parametrize(
    ("url", "ip", "port"),
    [("ws://127.0.0.1:4000/hotpatch/1", "127.0.0.1", "4000"), ("ws://[::1]:80/hotpatch/1", "[::1]", "80")],
)
def test_a_program_is_told_where_to_connect(url: str, ip: str, port: str) -> None:
    """The two variables make a socket address when a colon is put between them."""
    environ = devtools_environ(url)
    assert (environ["DIOXUS_DEVSERVER_IP"], environ["DIOXUS_DEVSERVER_PORT"]) == (ip, port)


def test_assets_are_told_by_their_directory() -> None:
    """A file that is called so is none."""
    assert is_asset("/app/assets/css/main.css")
    assert not is_asset("/app/src/assets")
    assert not is_asset("/app/src/main.rs")


def verdict(kind: str) -> EditVerdict:
    """The end of an edit."""
    return EditVerdict(edit=1, verdict=Verdict(verdict=kind, timings_ms=Timings()))  # type: ignore[arg-type]


def test_programs_are_told_how_a_build_is_going() -> None:
    """Those of their messages that fit; an applied patch has a message of its own."""
    assert notice_of(EditSettled(edit=1, files=(), classes={})) == "HotPatchStart"
    assert notice_of(verdict("failed")) == "FullReloadFailed"
    assert notice_of(verdict("restart")) == "FullReloadStart"
    assert notice_of(verdict("applied")) is None
    assert notice_of(RebuildFinished(edit=1, crates=(), diagnostics=())) is None
