"""Async functions and closures that a router was given at start, as in web frameworks."""

from pathlib import Path

from tests.e2e.harness import Session
from tests.e2e.program import Project

ROUTER = """
use std::future::Future;
use std::pin::{pin, Pin};
use std::task::{Context, Poll, Waker};

type Reply = Pin<Box<dyn Future<Output = u64>>>;

pub trait Handler { fn handle(&self, tick: u64) -> Reply; }
impl<F, Fut> Handler for F
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = u64> + 'static,
{
    fn handle(&self, tick: u64) -> Reply {
        let reply = self(tick);
        Box::pin(async move { reply.await })
    }
}

pub struct Service<F, Fut>(F, std::marker::PhantomData<fn(u64) -> Fut>);
impl<F: Fn(u64) -> Fut, Fut> Service<F, Fut> {
    pub fn new(handler: F) -> Self { Self(handler, std::marker::PhantomData) }
}
impl<F: Fn(u64) -> Fut, Fut: Future<Output = u64> + 'static> Handler for Service<F, Fut> {
    fn handle(&self, tick: u64) -> Reply { Box::pin((self.0)(tick)) }
}

pub trait Endpoint { fn call(&self, tick: u64) -> Reply; }
pub struct Route<H>(pub H);
impl<H: Handler> Endpoint for Route<H> {
    fn call(&self, tick: u64) -> Reply { self.0.handle(tick) }
}

pub struct Pause(pub bool);
impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

pub fn finish(reply: impl Future<Output = u64>) -> u64 {
    let mut reply = pin!(reply);
    loop {
        if let Poll::Ready(value) = reply.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}
"""

PAGES = """
use crate::router::{Endpoint, Pause, Route, Service};

pub async fn named(tick: u64) -> u64 {
    Pause(false).await;
    tick * 0 + 7
}

pub fn routes() -> [Box<dyn Endpoint>; 3] {
    let (one, two) = (std::hint::black_box(1), std::hint::black_box(2));
    let by_closure = move |tick: u64| async move { tick * 0 + one };
    let _ = two;
    [Box::new(Route(named)), Box::new(Route(by_closure)), Box::new(Route(Service::new(named)))]
}
"""

MAIN = """
mod pages;
mod router;
fn main() {
    let routes = pages::routes();
    let mut waiting = Some(routes[0].call(0));
    let mut begun = 0;
    let waker = std::task::Waker::noop();
    let _ = waiting.as_mut().unwrap().as_mut().poll(&mut std::task::Context::from_waker(waker));
    for tick in 0_u64.. {
        let [named, closure, service] = [0, 1, 2].map(|at| router::finish(routes[at].call(tick)));
        if named != 7 && waiting.is_some() { begun = router::finish(waiting.take().unwrap()); }
        println!("tick={tick} named={named} closure={closure} service={service} begun={begun}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
"""


def started(root: Path) -> Session:
    """The program under `hotpatchd run`."""
    project = Project("single", root / "handlers")
    for file, text in {"main": MAIN, "router": ROUTER, "pages": PAGES}.items():
        (project.root / f"src/{file}.rs").write_text(text)
    return Session(project).wait_started()


def test_calls_of_an_async_function_that_a_router_holds_reach_its_new_code(tmp_path: Path) -> None:
    """Its future has another state after the edit; one that waits ends with the old code, which later edits recall."""
    with started(tmp_path) as session:
        session.daemon.wait_value("named", "7")
        kept = "let kept = tick * 0 + 40;\n    Pause(false).await;\n    Pause(false).await;\n    kept"
        verdict = session.apply("src/pages.rs", "Pause(false).await;\n    tick * 0 + 7", kept)
        assert verdict.noted("old_code_kept") == ["single::pages::named"]
        line = session.daemon.wait_value("named", "40")
        assert (line["service"], line["begun"]) == ("40", "7")
        verdict = session.apply("src/pages.rs", "tick * 0 + 40", "tick * 0 + 41")
        session.daemon.wait_value("named", "41")
        assert [note["detail"].split()[0] for note in verdict.notes] == ["futures"]


def test_an_edit_that_closures_of_a_router_do_not_get_is_noted(tmp_path: Path) -> None:
    """What it was given at start captured something else; each later edit says so, until there is none like that."""
    with started(tmp_path) as session:
        session.daemon.wait_value("closure", "1")
        verdict = session.apply("src/pages.rs", "tick * 0 + one", "tick * 0 + one + two")
        assert verdict.noted("old_code_kept") == ["single::pages::routes"]
        verdict = session.apply("src/pages.rs", "one + two", "one + two + 5")
        assert verdict.noted("old_code_stays") == ["single::pages::routes"]
        assert session.daemon.wait_line("after the edits")["closure"] == "1"
        assert [session.cli_json("undo")["edits"] for _ in range(2)] == [[2], [1]]
        session.apply("src/pages.rs", "one + two + 5", "one + 9")
        session.daemon.wait_value("closure", "10")
