"""State that an edit touches: what stays, what comes, and what is refused or noted by name."""

from __future__ import annotations

from tests.e2e.harness import Session
from tests.e2e.program import assert_continuous

MAIN = "src/main.rs"


def test_new_thread_local_lives_in_threads_that_run_already(session: Session) -> None:
    """It starts with its initial value and keeps what is put into it, also over the next edit."""
    verdict = session.apply(
        MAIN,
        '    String::from("plain")\n}\n',
        '    FRESH_LOCAL.set(FRESH_LOCAL.get() + 1);\n    format!("tls{}", FRESH_LOCAL.get())\n}\n\n'
        "thread_local! {\n    static FRESH_LOCAL: std::cell::Cell<u64> = const { std::cell::Cell::new(40) };\n}\n",
    )
    assert verdict.verdict == "applied"
    first = int(session.daemon.wait_line("with the thread-local", lambda line: "tls" in line["extra"])["extra"][3:])
    session.apply(MAIN, "    left + right", "    left * right")
    later = int(session.daemon.wait_value("private", "60")["extra"][3:])
    assert 40 < first < later


NEEDS_RELOCATION = (
    '    format!("tls{}", NAMED_LOCAL.get())\n}\n\n'
    "thread_local! {\n    static NAMED_LOCAL: std::cell::Cell<&'static str> = "
    'const { std::cell::Cell::new("name") };\n}\n'
)


def test_new_thread_local_that_holds_an_address_is_refused_by_name(session: Session) -> None:
    """Its initial content cannot be told before it is placed: the verdict names it, and nothing changes."""
    verdict = session.wait_verdict(session.edit(MAIN, '    String::from("plain")\n}\n', NEEDS_RELOCATION))
    assert verdict.verdict == "refused"
    assert any("NAMED_LOCAL" in refusal["symbol"] for refusal in verdict.refusals), verdict
    assert session.daemon.wait_line("after the refusal")["extra"] == "plain"


def test_edit_after_a_refused_one_applies(session: Session) -> None:
    """A refused edit leaves nothing behind: the next one that can be applied is."""
    original = session.project.read(MAIN)
    refused = session.edit(MAIN, '    String::from("plain")\n}\n', NEEDS_RELOCATION)
    assert session.wait_verdict(refused).verdict == "refused"
    saved = session.save(MAIN, original.replace("    left + right", "    left * right"))
    assert session.wait_verdict(saved).verdict == "applied"
    session.daemon.wait_value("private", "60")


def test_changed_initialiser_keeps_the_value(session: Session) -> None:
    """A static keeps what it holds when its initialiser is edited, and the verdict says so."""
    original = session.project.read(MAIN)
    start = len(session.daemon.app_lines())
    saved = session.save(
        MAIN,
        original.replace("LIMIT: AtomicU64 = AtomicU64::new(100)", "LIMIT: AtomicU64 = AtomicU64::new(200)").replace(
            'format!("limit:{}"', 'format!("bound:{}"'
        ),
    )
    verdict = session.wait_verdict(saved)
    assert verdict.verdict == "applied"
    assert any("LIMIT" in symbol for symbol in verdict.noted("initialiser_kept")), verdict
    session.daemon.wait_value("limit", "bound:100")
    assert_continuous(session.daemon.app_lines()[start:])


def test_function_that_never_returns_is_noted(stateful: Session) -> None:
    """An edited loop that threads are in runs on as it was, and the verdict says which function that is."""
    verdict = stateful.apply(
        MAIN,
        "        WORK.fetch_add(work_step(), Ordering::Relaxed);\n",
        "        WORK.fetch_add(work_step() + 1, Ordering::Relaxed);\n",
    )
    assert any(symbol.endswith("::worker_loop") for symbol in verdict.noted("on_stack")), verdict


def test_function_that_returns_is_not_noted(session: Session) -> None:
    """A function that no thread is inside carries no such note."""
    verdict = session.apply(MAIN, "    left + right", "    left * right")
    assert verdict.notes == ()


def test_thread_locals_of_every_thread_go_on(stateful: Session) -> None:
    """A patched function sees each thread's own thread-locals, of both kinds, where they were."""
    start = len(stateful.daemon.app_lines())
    stateful.apply(
        "src/places.rs",
        "    PLAIN.set(PLAIN.get() + 1);\n",
        "    let next = PLAIN.get() + 1;\n    PLAIN.set(next);\n",
    )
    stateful.daemon.wait_next_lines(5)
    assert_continuous(stateful.daemon.app_lines()[start:])


def test_task_in_flight_runs_the_new_code(stateful: Session) -> None:
    """An async function that is waiting goes on with its own state in the new code."""
    before = stateful.daemon.wait_line("before the edit")
    stateful.apply("src/executor.rs", "STEPS.fetch_add(1,", "STEPS.fetch_add(100,")
    stateful.daemon.wait_line(
        "three tasks that step by a hundred", lambda line: int(line["async"]) > int(before["async"]) + 300
    )
