"""Every kind of edit, in every fixture program, applies to the running program, and so does its reverse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.conftest import FindSession
from tests.e2e.edits import VARIANTS, Edit, Variant
from tests.e2e.harness import Session, Verdict
from tests.e2e.program import AppLine, assert_continuous

MAX_PATCH_BYTES = 50 * 1024


def assert_named(verdict: Verdict, edit: Edit, *, inlines: bool) -> None:
    """The verdict names the edited function, or the functions that it is part of."""
    assert verdict.patched
    if not inlines:
        assert any(re.fullmatch(edit.patched, name) for name in verdict.patched), verdict
    if edit.added and not inlines:
        assert any(re.fullmatch(edit.added, name) for name in verdict.added), verdict


def assert_sent(session: Session, verdict: Verdict, *, small: bool) -> None:
    """An image was sent; a small one holds what was edited and what is new.

    Not small are those that bring parts of std, and those for optimised programs: there everything comes along that
    the edited function was inlined into.
    """
    sent = session.wait_event("patch.sent", lambda event: event["edit"] == verdict.edit)
    assert sent["kind"] == "image"
    if small:
        assert sent["bytes"] <= MAX_PATCH_BYTES


def shows(edit: Edit) -> Callable[[AppLine], bool]:
    """Whether a line shows the edit."""
    return lambda line: re.fullmatch(edit.value, line.get(edit.key, "")) is not None


def steady(line: AppLine, edit: Edit) -> str:
    """What a line shows of the edit, without the counters in it."""
    return re.sub(r":\d+", "", line.get(edit.key, ""))


@pytest.mark.parametrize(
    ("variant", "edit"),
    [pytest.param(variant, edit, id=f"{variant.id}-{edit.kind}") for variant in VARIANTS for edit in variant.edits],
)
def test_edit_applies_and_reverts(variant: Variant, edit: Edit, shared: FindSession) -> None:
    """The program shows the new behaviour, then the old one again, and its state goes on."""
    with shared(variant.name, variant.selection).borrow() as session:
        before = session.daemon.wait_line("before the edit")
        start = len(session.daemon.app_lines()) - 1

        verdict = session.apply(edit.file, edit.old, edit.new)
        session.daemon.wait_line(f"{edit.key} matches {edit.value}", shows(edit))
        assert_named(verdict, edit, inlines=variant.inlines)
        assert_sent(session, verdict, small=not edit.kind.startswith("std_") and not variant.inlines)

        reverted = session.apply(edit.file, edit.new, edit.old)
        session.daemon.wait_line("the old behaviour", lambda line: steady(line, edit) == steady(before, edit))
        assert_named(reverted, replace(edit, added=""), inlines=variant.inlines)
        assert_continuous(session.daemon.app_lines()[start:])
