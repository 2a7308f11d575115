"""A function with another calling convention is another function, or none that the running program could call."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Session
from tests.e2e.program import Project

MAIN = "src/main.rs"
PLAIN = 'String::from("plain")\n}\n'
SUM = "struct Three(u64, u64, u64);\n\n{mark}fn sum(three: Three) -> u64 {{\n    three.0 + three.1 + three.2\n}}\n"


@pytest.mark.parametrize(
    ("mark", "flags"), [("#[unsafe(no_mangle)]\n", ""), ("", "-Csymbol-mangling-version=v0")], ids=["C", "v0"]
)
def test_another_convention_that_no_symbol_tells_is_refused(single: Project, mark: str, flags: str) -> None:
    """Also when something else is edited afterwards, until it is the former one again."""
    text = single.replaced(MAIN, PLAIN, "sum(Three(1, 2, 3)).to_string()\n}\n\n" + SUM.format(mark=mark))
    (single.root / MAIN).write_text(text)
    with Session(single, env={"RUSTFLAGS": flags}) as session:
        session.wait_started()
        session.daemon.wait_value("extra", "6")
        refused = session.wait_verdict(session.edit(MAIN, "fn sum(three", 'extern "C" fn sum(three'))
        assert (refused.verdict, refused.refusals[0]["reason"]) == ("refused", "signature")
        assert refused.refusals[0]["symbol"].endswith("sum")
        assert "calling convention" in refused.refusals[0]["detail"]
        also = session.wait_verdict(session.edit(MAIN, "Three(1, 2, 3)", "Three(1, 2, 4)"))
        assert also.verdict == "refused"
        session.apply(MAIN, 'extern "C" fn sum(three', "fn sum(three")
        session.daemon.wait_value("extra", "7")


def test_another_convention_that_the_symbol_tells_is_another_function(single: Project) -> None:
    """Its callers are replaced with it."""
    text = single.replaced(MAIN, PLAIN, "sum(Three(1, 2, 3)).to_string()\n}\n\n" + SUM.format(mark=""))
    (single.root / MAIN).write_text(text)
    with Session(single) as session:
        session.wait_started()
        session.edit(MAIN, "fn sum(three", 'extern "C" fn sum(three')
        assert session.wait_verdict_of(1).verdict == "applied"
        session.apply(MAIN, "Three(1, 2, 3)", "Three(1, 2, 4)")
        session.daemon.wait_value("extra", "7")
