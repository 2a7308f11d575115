"""Reading what the tracer wrote down."""

import pytest

from hotpatchd.core.trace import Scope, Trace, parse_trace

SCOPE = Scope(roots=("/w", "/lib"), excluded=("/w/target",))


def records(*found: str) -> bytes:
    """The text of a trace."""
    return b"".join(record.encode(errors="surrogateescape") + b"\0" for record in found)


def test_each_kind_of_record_has_its_place() -> None:
    """Files, directories, what is missing, variables, and programs out of sight."""
    data = records("r/w/a", "w/w/made", "l/w/dir", "m/w/none", "eCARGO_PKG_NAME", "u/usr/bin/static")
    trace = parse_trace(data, SCOPE)
    assert trace == Trace(
        opened=frozenset({"/w/a"}),
        written=frozenset({"/w/made"}),
        listed=frozenset({"/w/dir"}),
        missing=frozenset({"/w/none"}),
        variables=frozenset({"CARGO_PKG_NAME"}),
        untraced=frozenset({"/usr/bin/static"}),
    )
    assert trace.paths == {"/w/a", "/w/dir", "/w/none"}


def test_what_is_out_of_scope_is_dropped() -> None:
    """Results, what version control keeps, and everything elsewhere; a name that only begins alike is elsewhere."""
    data = records("r/etc/hosts", "r/w/target/debug/x", "r/w/.git/HEAD", "r/workshop/a", "m/lib/sub/.git", "r/lib/x.rs")
    assert parse_trace(data, SCOPE).paths == {"/lib/x.rs"}


@pytest.mark.parametrize(
    ("data", "opened"),
    [
        (records("w/w/gen.rs", "r/w/gen.rs"), set()),
        (records("r/w/gen.rs", "w/w/gen.rs"), {"/w/gen.rs"}),
        (records("m/w/gen.rs", "w/w/gen.rs", "r/w/gen.rs"), set()),
    ],
)
def test_who_writes_a_file_before_reading_it_does_not_depend_on_it(data: bytes, opened: set[str]) -> None:
    """Nor on whether it was there."""
    assert parse_trace(data, SCOPE).paths == opened


def test_a_record_that_is_cut_short_counts_as_none() -> None:
    """A process that was killed may have written half of one."""
    assert parse_trace(records("r/w/a") + b"r/w/hal", SCOPE).paths == {"/w/a"}


def test_names_that_are_no_utf8_survive() -> None:
    """As the system's own functions take them."""
    assert parse_trace(b"r/w/\xff\0", SCOPE).opened == {"/w/\udcff"}


def test_a_root_behind_a_link_is_known_by_its_given_name() -> None:
    """Processes see their directory without links; who watches uses the name that was given."""
    scope = Scope(roots=("/home/me/w",), excluded=("/data/w/target",), real={"/home/me/w": "/data/w"})
    assert parse_trace(records("r/data/w/a", "r/home/me/w/b"), scope).paths == {"/home/me/w/a", "/home/me/w/b"}
    assert scope.text.splitlines() == ["/home/me/w", "/data/w", "-/data/w/target"]


def test_traces_add_up() -> None:
    """Every part of them."""
    data = records("r/w/a", "w/w/made", "l/w/dir", "m/w/none", "eCARGO_PKG_NAME", "u/usr/bin/static")
    assert Trace() | parse_trace(data, SCOPE) == parse_trace(data, SCOPE) | Trace() == parse_trace(data, SCOPE)
