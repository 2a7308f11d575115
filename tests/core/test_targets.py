"""What is said of each target triple."""

import pytest

from hotpatchd.core.targets import describe_target


@pytest.mark.parametrize(
    ("triple", "patch", "client"),
    [
        ("x86_64-unknown-linux-gnu", "image", "preload"),
        ("aarch64-unknown-linux-gnu", "image", "preload"),
        ("x86_64-unknown-linux-musl", "image", "linked"),
        ("aarch64-unknown-linux-musl", "image", "linked"),
        ("x86_64-pc-windows-gnu", "dylib", "dependency"),
        ("x86_64-pc-windows-msvc", "dylib", "dependency"),
        ("x86_64-apple-darwin", "dylib", "dependency"),
        ("aarch64-apple-darwin", "dylib", "dependency"),
        ("aarch64-apple-ios-sim", "dylib", "dependency"),
        ("x86_64-apple-ios", "dylib", "dependency"),
        ("aarch64-linux-android", "dylib", "dependency"),
        ("x86_64-linux-android", "dylib", "dependency"),
    ],
)
def test_supported_targets(triple: str, patch: str, client: str) -> None:
    """Each has a kind of patch, a way for the client to get in, and a reason."""
    support = describe_target(triple)
    assert (support.triple, support.patch, support.client) == (triple, patch, client)
    assert support.reason


def test_musl_without_a_static_libc_is_as_any_other_linux() -> None:
    """Its loader takes what is preloaded."""
    support = describe_target("x86_64-unknown-linux-musl", crt_static=False)
    assert (support.patch, support.client, support.env) == ("image", "preload", "musl dynamic")


def test_glibc_is_not_taken_for_static() -> None:
    """Whatever is said of musl's default does not concern it."""
    assert describe_target("x86_64-unknown-linux-gnu", crt_static=True).client == "preload"


def test_ios_devices_are_refused_with_the_reason() -> None:
    """The simulator of the same system is not."""
    support = describe_target("aarch64-apple-ios")
    assert (support.patch, support.client) == ("none", "none")
    assert "signed code" in support.reason


@pytest.mark.parametrize(
    "triple",
    [
        "aarch64-apple-ios-macabi",
        "aarch64-pc-windows-msvc",
        "aarch64_be-unknown-linux-gnu",
        "armv7-linux-androideabi",
        "i686-unknown-linux-gnu",
        "nonsense",
        "wasm32-unknown-unknown",
        "x86_64-pc-windows-gnullvm",
        "x86_64-unknown-freebsd",
        "x86_64-unknown-linux-gnux32",
        "x86_64-unknown-linux-ohos",
        "",
    ],
)
def test_other_targets_are_refused_by_name(triple: str) -> None:
    """Also those that look like supported ones."""
    support = describe_target(triple)
    assert (support.patch, support.client, support.os, support.runs) == ("none", "none", "", "")
    assert f"`{triple}`" in support.reason


def test_only_what_the_tests_run_counts_as_run() -> None:
    """Nobody is made to believe that macOS was tried."""
    assert describe_target("aarch64-unknown-linux-gnu").runs == "under qemu-user"
    assert describe_target("aarch64-apple-darwin").runs == ""
