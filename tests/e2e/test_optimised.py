"""A program that was optimised as one unit: its functions are right, whatever the optimiser made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import FindSession
from tests.e2e.harness import Session
from tests.e2e.program import Project

PARTS = "src/parts.rs"


@pytest.fixture
def optimised(shared: FindSession) -> Iterator[Session]:
    """The program `optimised` under `hotpatchd run`, its sources as in the fixture."""
    with shared("optimised", ("--release",)).borrow() as session:
        yield session


@pytest.mark.parametrize(
    ("old", "new", "key", "value"),
    [
        pytest.param("value + 1", "value + 40", "short", "43", id="inlined"),
        pytest.param("    true\n", "    false\n", "always", "no", id="result_that_callers_rely_on"),
        pytest.param('panic!("never {value}")', "value - value", "never", "5", id="returns_now"),
        pytest.param(
            "values[0]\n}\n\n#[inline(never)]\npub fn calm",
            "values[0] + _factor\n}\n\npub fn calm",
            "ignores",
            "15",
            id="argument_used",
        ),
        pytest.param(
            "    values.rotate_left(1);",
            '    assert!(values[2] == 0, "three");',
            "calm",
            "panickeddropped",
            id="panics_now",
        ),
        pytest.param("self.0 * 3", "self.0 * 5", "weight", "38", id="virtual"),
        pytest.param("        CALLS\n", "        CALLS + 1000\n", "counted", "1001", id="mutable_static"),
    ],
)
def test_callers_that_the_optimiser_changed_are_right(
    optimised: Session, old: str, new: str, key: str, value: str
) -> None:
    """What the optimiser knew of the function's old code counts no longer, and the edit can be taken back."""
    before = optimised.daemon.wait_line("before the edit")
    optimised.apply(PARTS, old, new)
    after = optimised.daemon.wait_value(key, value)
    optimised.apply(PARTS, new, old)
    reverted = optimised.daemon.wait_value(key, before[key])
    assert {**after, "tick": "", key: ""} == {**before, "tick": "", key: ""}
    assert {**reverted, "tick": ""} == {**before, "tick": ""}


def test_a_function_that_never_returns_is_noted_each_time(single: Project) -> None:
    """Where `main` holds a copy of what is edited, each verdict says that it runs on."""
    (single.root / "src/main.rs").write_text(
        """
        mod part;
        fn main() {
            for tick in 0_u64.. {
                println!("tick={tick} value={}", part::value());
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        """
    )
    part = "pub fn value() -> u64 {{ {} }}\n"
    (single.root / "src/part.rs").write_text(part.format(1))
    with Session(single, selection=("--release",)).wait_started() as session:
        for number in (2, 3):
            verdict = session.wait_verdict(session.save("src/part.rs", part.format(number)))
            assert (verdict.verdict, verdict.noted("on_stack")) == ("applied", ["single::main"])


def test_copies_of_a_function_that_a_patch_brought_for_others_are_right(tmp_path: Path) -> None:
    """One caller got it as a function of its own; the other, unedited, goes on with what was inlined into it."""
    project = Project("optimised", tmp_path / "optimised")
    (project.root / "src/main.rs").write_text(
        """
        mod by_way;
        mod far;
        mod users;
        fn main() {
            for tick in 0_u64.. {
                println!("tick={tick} one={} other={}", users::one(tick), users::other(tick));
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        """
    )
    (project.root / "src/users.rs").write_text(
        """
        #[inline(never)]
        pub fn one(tick: u64) -> u64 {
            crate::by_way::by_way(tick) + 1
        }
        #[inline(never)]
        pub fn other(tick: u64) -> u64 {
            std::hint::black_box(tick * 0)
        }
        """
    )
    # In the program nothing is left of the instance of this, nor of the call in it.
    (project.root / "src/by_way.rs").write_text(
        """
        pub fn by_way<T: Into<u64>>(value: T) -> u64 {
            crate::far::far(value.into()) + 1
        }
        """
    )
    (project.root / "src/far.rs").write_text(
        """
        pub fn far(value: u64) -> u64 {
            (value ^ std::hint::black_box(value)) + 10
        }
        """
    )
    with Session(project, selection=("--release",)).wait_started() as session:
        assert session.daemon.wait_value("other", "0")["one"] == "12"
        session.apply("src/users.rs", "std::hint::black_box(tick * 0)", "crate::by_way::by_way(tick)")
        assert session.daemon.wait_value("other", "11")["one"] == "12"
        session.apply("src/far.rs", "+ 10", "+ 20")
        assert session.daemon.wait_value("other", "21")["one"] == "22"


def test_link_time_optimisation_is_named(tmp_path: Path) -> None:
    """The whole program is one piece then, without the functions that new code would have to call."""
    project = Project("optimised", tmp_path / "optimised")
    env = {"CARGO_PROFILE_RELEASE_LTO": "fat"}
    with Session(project, selection=("--release",), env=env).wait_started() as session:
        verdict = session.wait_verdict(session.edit(PARTS, "self.0 * 3", "self.0 * 5"))
        (detail,) = {refusal["detail"] for refusal in verdict.refusals if refusal["reason"] == "unresolved"}
        assert verdict.verdict == "refused"
        assert '`lto = "fat"`' in detail
        assert session.daemon.wait_line("after the refusal")["weight"] == "24"
