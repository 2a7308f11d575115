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


REACHED = """
    mod parts;
    use parts::{One, Part};
    static mut CALLS: u64 = 0;
    #[inline(never)]
    fn step(tick: u64) -> u64 {
        unsafe {
            CALLS += 1;
            tick - CALLS + 2
        }
    }
    fn main() {
        let part: Box<dyn Part> = std::hint::black_box(Box::new(One(7)));
        for tick in 0_u64.. {
            println!("tick={tick} weight={} step={}", part.weight(), step(tick));
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    """


@pytest.mark.parametrize("codegen_units", ["1", "16"])
def test_small_functions_and_private_ones_are_reached(tmp_path: Path, codegen_units: str) -> None:
    """Both by a virtual table that is there and from a loop that never ends, without incremental compilation."""
    project = Project("optimised", tmp_path / "optimised")
    (project.root / "src/main.rs").write_text(REACHED)
    env = {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": codegen_units}
    with Session(project, selection=("--release",), env=env).wait_started() as session:
        session.daemon.wait_value("weight", "21")
        session.apply(PARTS, "self.0 * 3", "self.0 * 5")
        assert session.daemon.wait_value("weight", "35")["step"] == "1"
        session.apply("src/main.rs", "- CALLS + 2", "- CALLS + 40")
        assert session.daemon.wait_value("step", "39")["weight"] == "35"


@pytest.mark.parametrize("codegen_units", ["1", "16"])
def test_an_edit_that_the_optimiser_left_no_place_for_is_refused(tmp_path: Path, codegen_units: str) -> None:
    """The developer turned off what keeps names: what has none left in the program is told."""
    project = Project("optimised", tmp_path / "optimised")
    (project.root / "src/main.rs").write_text(REACHED)
    env = {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": codegen_units, "RUSTFLAGS": "-C link-dead-code=no"}
    with Session(project, selection=("--release",), env=env).wait_started() as session:
        verdict = session.wait_verdict(session.edit("src/main.rs", "- CALLS + 2", "- CALLS + 40"))
        assert [refusal["reason"] for refusal in verdict.refusals] == ["static_lost"]
        assert session.daemon.wait_line("after the refusal")["step"] == "1"


@pytest.mark.parametrize("edited", ["Left", "Right"])
@pytest.mark.parametrize("codegen_units", ["1", "16"])
def test_equal_functions_of_a_patch_are_edited_one_by_one(tmp_path: Path, codegen_units: str, edited: str) -> None:
    """Virtual tables and function pointers that a patch brought lead to the one whose they are."""
    project = Project("optimised", tmp_path / "optimised")
    (project.root / "src/main.rs").write_text(
        """
        mod made;
        fn main() {
            let mut made = made::Made::default();
            for tick in 0_u64.. {
                made::fill(&mut made);
                let [left, right] = [0, 1].map(|at| made.objects.get(at).map_or(0, |object| object.turn(1)));
                let [by_left, by_right] = [0, 1].map(|at| made.pointers.get(at).map_or(0, |pointer| pointer(1)));
                println!("tick={tick} left={left} right={right} by_left={by_left} by_right={by_right}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        """
    )
    before = """
        pub trait Turns { fn turn(&self, value: u64) -> u64; }
        #[derive(Default)]
        pub struct Made { pub objects: Vec<Box<dyn Turns>>, pub pointers: Vec<fn(u64) -> u64> }
        #[inline(never)]
        pub fn fill(made: &mut Made) {
            made.objects.truncate(2);
        }
        """
    turn = "(value ^ 85).rotate_left(7) % 1000"
    types = "".join(
        f"""
        pub struct {name};
        impl Turns for {name} {{ fn turn(&self, value: u64) -> u64 {{ {turn} }} }}
        pub fn by_{name.lower()}(value: u64) -> u64 {{ {turn} + 0 }}
        """
        for name in ("Left", "Right")
    )
    filled = before.replace(
        "made.objects.truncate(2);",
        """
        if made.objects.is_empty() {
            made.objects.push(Box::new(Left));
            made.objects.push(Box::new(Right));
            made.pointers.push(by_left);
            made.pointers.push(by_right);
        }
        """,
    )
    (project.root / "src/made.rs").write_text(before)
    env = {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": codegen_units}
    with Session(project, selection=("--release",), env=env).wait_started() as session:
        session.daemon.wait_value("left", "0")
        verdict = session.wait_verdict(session.save("src/made.rs", filled + types))
        assert verdict.verdict == "applied"
        value = str(((1 ^ 85) << 7) % 1000)
        assert session.daemon.wait_value("by_right", value)["right"] == value
        owner, _, rest = types.partition(f"Turns for {edited} {{ fn turn(&self, value: u64) -> u64 {{ ")
        types = f"{owner}Turns for {edited} {{ fn turn(&self, value: u64) -> u64 {{ 1000 + {rest}"
        assert session.wait_verdict(session.save("src/made.rs", filled + types)).verdict == "applied"
        line = session.daemon.wait_value(edited.lower(), "1" + value)
        assert [line["left"], line["right"]].count(value) == 1
        types = types.replace(
            f"by_{edited.lower()}(value: u64) -> u64 {{ ", f"by_{edited.lower()}(value: u64) -> u64 {{ 2000 + "
        )
        assert session.wait_verdict(session.save("src/made.rs", filled + types)).verdict == "applied"
        line = session.daemon.wait_value(f"by_{edited.lower()}", "2" + value)
        assert [line["by_left"], line["by_right"]].count(value) == 1


@pytest.mark.parametrize("edited", ["one", "two"])
@pytest.mark.parametrize("flags", ["", "-C link-dead-code=no"], ids=["named", "as cargo says"])
def test_equal_functions_of_the_program_are_edited_one_by_one(tmp_path: Path, flags: str, edited: str) -> None:
    """Also where the thin rebuild, in which they are in different units, never had one of them for the other."""
    project = Project("optimised", tmp_path / "optimised")
    (project.root / "src/main.rs").write_text(
        """
        mod one;
        mod two;
        pub trait Part { fn weight(&self, value: u64) -> u64; }
        fn main() {
            let parts = std::hint::black_box([Box::new(one::Own(7)) as Box<dyn Part>, Box::new(two::Own(7))]);
            for tick in 0_u64.. {
                let [one, two] = parts.each_ref().map(|part| part.weight(1));
                println!("tick={tick} one={one} two={two}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        """
    )
    body = "(self.0 ^ value ^ 85).rotate_left(7) % 1000 + value * 3"
    for module in ("one", "two"):
        (project.root / f"src/{module}.rs").write_text(
            f"""
            pub struct Own(pub u64);
            impl crate::Part for Own {{ fn weight(&self, value: u64) -> u64 {{ {body} }} }}
            """
        )
    with Session(project, selection=("--release",), env={"RUSTFLAGS": flags}).wait_started() as session:
        before = session.daemon.wait_line("before the edit")
        session.apply(f"src/{edited}.rs", body, f"{body} + 5000")
        assert before["one"] == before["two"]
        after = session.daemon.wait_value(edited, str(int(before["one"]) + 5000))
        assert {**after, "tick": "", edited: ""} == {**before, "tick": "", edited: ""}


@pytest.mark.parametrize("lto", ["true", '"fat"', '"thin"'])
def test_link_time_optimisation_is_left_out(tmp_path: Path, lto: str) -> None:
    """Whatever the manifest asks for, edits of inlined functions and of statics' users reach the program."""
    project = Project("optimised", tmp_path / "optimised")
    manifest = project.root / "Cargo.toml"
    manifest.write_text(f"{manifest.read_text()}\n[profile.dist]\ninherits = 'release'\nlto = {lto}\n")
    with Session(project, selection=("--profile", "dist")).wait_started() as session:
        assert f"built without `lto = {lto}`" in session.daemon.wait_text("built without").replace('\\"', '"')
        session.apply(PARTS, "self.0 * 3", "self.0 * 5")
        session.daemon.wait_value("weight", "38")


def test_link_time_optimisation_is_named(tmp_path: Path) -> None:
    """Who sets it for one run has it: one piece, without the functions that new code would have to call."""
    project = Project("optimised", tmp_path / "optimised")
    env = {"CARGO_PROFILE_RELEASE_LTO": "fat"}
    with Session(project, selection=("--release",), env=env).wait_started() as session:
        verdict = session.wait_verdict(session.edit(PARTS, "self.0 * 3", "self.0 * 5"))
        (detail,) = {refusal["detail"] for refusal in verdict.refusals if refusal["reason"] == "unresolved"}
        assert verdict.verdict == "refused"
        assert '`lto = "fat"`' in detail
        assert session.daemon.wait_line("after the refusal")["weight"] == "24"
