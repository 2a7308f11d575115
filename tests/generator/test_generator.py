"""Random programs that are edited at random do what the model says."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.e2e.harness import START_WITHIN_S
from tests.e2e.program import PROGRAM_WITHIN_S, wait_for
from tests.generator.drive import Mismatch, Run
from tests.generator.edits import edited, is_valid
from tests.generator.interpret import Machine
from tests.generator.judge import allowed
from tests.generator.language import Body, Const, ConstRef, Expr, Hook, Lit, Now, Program, Static, Use, Var
from tests.generator.make import Maker, make_program
from tests.generator.render import sources

STEPS = 10


@pytest.mark.parametrize("seed", [6, 4])
def test_known_seed(seed: int, tmp_path: Path) -> None:
    """A program of this seed, optimised or not, follows its edits as the model does."""
    Run(seed, tmp_path / "run").run(STEPS)


def test_mismatch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does something else than the model fails, with its seed, the step, and the sources alone."""
    monkeypatch.setattr(Machine, "tick", lambda *_: "e0=nothing")
    with pytest.raises(Mismatch, match=r"seed 3, step \d+"):
        Run(3, tmp_path / "run").run(STEPS)
    assert (tmp_path / "run" / "before" / "src" / "main.rs").exists()
    assert (tmp_path / "run" / "after" / "src" / "main.rs").exists()
    assert not (tmp_path / "run" / "program").exists()


def test_nothing_is_left_when_ended(tmp_path: Path) -> None:
    """A generator that is told to end while its program runs leaves no file."""
    command = [sys.executable, "-m", "tests.generator", "--seed", "3", "--minutes", "9"]
    generator = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    wait_for(
        "a running program",
        lambda: any(tmp_path.glob("generator-*/socket")),
        within_s=START_WITHIN_S,
        diagnose=lambda: f"exit status {generator.poll()}",
    )
    generator.terminate()
    generator.communicate(timeout=PROGRAM_WITHIN_S)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(5))
def test_edits_keep_programs_whole(seed: int) -> None:
    """After many edits, code uses only what is there, and the same seed gives the same sources."""
    results = []
    for _ in range(2):
        random = Random(seed)
        program = make_program(random, "")
        for _ in range(30):
            _, program = edited(Maker(random, program))
        results.append(sources(program))
        assert is_valid(program)
    assert results[0] == results[1]


def test_statics_outlive_edits() -> None:
    """The model keeps what a static holds, whatever its initialiser says now; a changed constant is the new one."""
    machine = Machine(_counting(step=5, initial=10))
    assert [machine.tick(1), machine.tick(2)] == ["e0=10", "e0=15"]
    machine.switch(_counting(step=7, initial=100))
    assert [machine.tick(3), machine.tick(4)] == ["e0=20", "e0=27"]


def _counting(*, step: int, initial: int) -> Program:
    """A program that adds a constant to an atomic."""
    return Program(
        crates=("app",),
        items=(
            Const(name="K0", home="app::m0", rank=0, value=step),
            Static(name="X0", home="app::m0", rank=0, kind="atomic", initial=initial),
        ),
        tick=Body((("e0", Use("X0", ConstRef("K0"))),), Lit(0)),
        profile="",
    )


def test_kept_closures_are_edited_or_left() -> None:
    """A kept closure runs the new text of its owner's closure, but not that of one with another count above it."""
    machine = Machine(_keeping(Lit(1)))
    assert machine.tick(1) == "e0=1"
    machine.switch(_keeping(Lit(2)))
    assert machine.tick(2) == "e0=8"
    machine.switch(_keeping(Lit(5), Now("x0", Var("x0"), Lit(0))))
    assert machine.tick(3) == "e1=0 e0=29"
    machine.switch(_keeping(Lit(7)))
    assert machine.tick(4) == "e0=40"


def test_closures_may_be_left_where_several_change() -> None:
    """A note that old closures keep their code is believed where others changed too, and not where one did."""
    machine = Machine(_keeping(Lit(1), Now("x0", Lit(1), Lit(0))))
    assert machine.tick(1) == "e1=1 e0=1"
    machine.switch(_keeping(Lit(2), Now("x0", Lit(1), Lit(0))), ("app::tick::tick",))
    assert machine.tick(2) == "e1=1 e0=8"
    machine.switch(_keeping(Lit(5), Now("x0", Lit(2), Lit(0))), ("app::tick::tick",))
    assert machine.tick(3) == "e1=2 e0=29"


def test_undone_closures_have_the_form_before() -> None:
    """After an undo, closures that the edit left behind are their owner's again, and those made in between are not."""
    machine = Machine(before := _keeping(Lit(1)))
    assert machine.tick(1) == "e0=1"
    machine.switch(_keeping(Lit(5), Now("x0", Var("x0"), Lit(0))))
    assert machine.tick(2) == "e1=0 e0=8"
    machine.take_back(before)
    machine.switch(_keeping(Lit(2)))
    assert machine.tick(3) == "e0=35"


def test_static_of_a_removed_one_s_path_may_be_refused() -> None:
    """A static that comes back with another type than it was used with may be refused, and one that is new may not."""
    machine = Machine(_counting(step=5, initial=10))
    machine.tick(1)
    without = Program(crates=("app",), items=(), tick=Body((), Lit(0)), profile="")
    machine.switch(without)
    used = Body((("e0", Use("X0", Lit(1))),), Lit(0))
    for home, named in (("app::m0", {"X0"}), ("app::m1", set())):
        static = Static(name="X0", home=home, rank=0, kind="mutex", initial=0)
        assert allowed(machine, replace(without, items=(static,), tick=used)).named == named


def _keeping(body: Expr, *above: Expr) -> Program:
    """A program that keeps one more closure each time; others may be made above it."""
    lets = [*((f"e{number}", value) for number, value in enumerate(above, 1)), ("e0", Hook("X0", "y", body, Lit(0)))]
    static = Static(name="X0", home="app::m0", rank=0, kind="hooks", initial=0)
    return Program(crates=("app",), items=(static,), tick=Body(tuple(lets), Lit(0)), profile="")
