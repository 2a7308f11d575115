"""Events go to the file, to followers and into memory."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hotpatchd.core.errors import UsageError
from hotpatchd.core.events import DaemonReady, EditSettled
from hotpatchd.daemon import logs
from hotpatchd.daemon.event_log import KEPT_EVENTS, SUBSCRIBER_QUEUE, EventBus


def edit(number: int) -> EditSettled:
    """Some event."""
    return EditSettled(edit=number, files=(), classes={})


def test_file_gets_one_line_an_event(tmp_path: Path) -> None:
    """Each event is in the file, with its time, as soon as it is published."""
    bus = EventBus(tmp_path / "events")
    bus.publish(DaemonReady(url="u", pid=1))
    bus.publish(edit(1))
    records = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [record["event"] for record in records] == ["daemon.ready", "edit.settled"]
    assert records[0]["ts"] <= records[1]["ts"]
    bus.close()


def test_file_is_appended_to(tmp_path: Path) -> None:
    """What an earlier daemon wrote stays."""
    (tmp_path / "events").write_text("earlier\n")
    bus = EventBus(tmp_path / "events")
    bus.publish(edit(1))
    bus.close()
    assert (tmp_path / "events").read_text().startswith("earlier\n{")


def test_file_that_cannot_be_opened_is_the_callers_fault(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(UsageError, match="missing/events"):
        EventBus(tmp_path / "missing/events")


def test_full_disk_does_not_end_the_daemon() -> None:
    """An event that cannot be written is logged, and still reaches the memory."""
    bus = EventBus(Path("/dev/full"))
    with capture_logs() as logged:
        bus.publish(edit(1))
    assert [line["event"] for line in logged] == [logs.EVENTS_DROPPED]
    assert len(bus.recent) == 1
    bus.close()


def test_last_events_are_remembered() -> None:
    """The memory is bounded and holds the newest."""
    bus = EventBus()
    for number in range(KEPT_EVENTS + 5):
        bus.publish(edit(number))
    assert [record["edit"] for record in bus.recent] == list(range(5, KEPT_EVENTS + 5))


async def test_follower_gets_events_from_its_beginning_on() -> None:
    """Events before the subscription are not sent, those after it are, in order."""
    bus = EventBus()
    bus.publish(edit(1))
    with bus.subscribe() as subscription:
        bus.publish(edit(2))
        bus.publish(edit(3))
        records = aiter(subscription)
        assert [(await anext(records))["edit"] for _ in range(2)] == [2, 3]


async def test_slow_follower_ends_without_a_gap() -> None:
    """Whoever falls too far behind gets what was queued, and then the end."""
    bus = EventBus()
    with bus.subscribe() as subscription:
        for number in range(SUBSCRIBER_QUEUE + 1):
            bus.publish(edit(number))
        records = aiter(subscription)
        first = await anext(records)
        bus.publish(edit(-1))
        rest = [record["edit"] async for record in records]
        assert [first["edit"], *rest] == list(range(SUBSCRIBER_QUEUE))


async def test_follower_that_left_costs_nothing() -> None:
    """After the subscription's end its queue is not filled any more."""
    bus = EventBus()
    with bus.subscribe() as subscription:
        pass
    for number in range(SUBSCRIBER_QUEUE + 1):
        bus.publish(edit(number))
    with bus.subscribe() as other:
        bus.publish(edit(7))
        assert (await anext(aiter(other)))["edit"] == 7
    subscription.put({"edit": 8})
    assert await anext(aiter(subscription)) == {"edit": 8}
