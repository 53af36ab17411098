"""The queue of model work: one at a time, what is stale is dropped, what takes long lets others go first."""

from collections.abc import Generator
from threading import Event, get_ident
from typing import Any

import pytest

from t3vis.viewer.worker import ClosedError, SupersededError, Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def at_once(answer: Any, done: list[Any]) -> Generator[None, None, Any]:
    done.append(answer)
    return answer
    yield


def until(event: Event, begun: Event, done: list[Any]) -> Generator[None, None, str]:
    begun.set()
    assert event.wait(30)
    done.append("waited")
    return "waited"
    yield


def in_steps(events: list[Event], done: list[Any], name: str) -> Generator[None, None, str]:
    for number, event in enumerate(events):
        done.append(f"{name}{number}")
        assert event.wait(30)
        yield
    return name


def test_work_is_done_in_one_other_thread(worker):
    def thread() -> Generator[None, None, int]:
        return get_ident()
        yield

    found = {worker.submit("a", kind, thread()).result(30) for kind in ("attention", "saliency", "attention")}
    assert len(found) == 1
    assert found != {get_ident()}


def test_a_newer_request_of_the_same_client_and_kind_takes_the_place_of_an_older_one(worker):
    go, begun = Event(), Event()
    done: list[Any] = []
    first = worker.submit("a", "predict", until(go, begun, done))
    assert begun.wait(30)
    stale = worker.submit("a", "saliency", at_once("stale", done))
    others = worker.submit("b", "saliency", at_once("another client's", done))
    newer = worker.submit("a", "saliency", at_once("newer", done))
    with pytest.raises(SupersededError, match="superseded by a newer request for saliency"):
        stale.result(30)
    go.set()
    assert (first.result(30), others.result(30), newer.result(30)) == ("waited", "another client's", "newer")
    assert done == ["waited", "another client's", "newer"]


def test_long_work_lets_others_go_first_between_its_steps_and_stops_when_it_is_stale(worker):
    steps = [Event(), Event(), Event()]
    done: list[Any] = []
    long = worker.submit("a", "metric", in_steps(steps, done, "long"))
    quick = worker.submit("a", "predict", at_once("quick", done))
    steps[0].set()
    assert quick.result(30) == "quick"
    newer = worker.submit("a", "metric", at_once("newer", done))
    with pytest.raises(SupersededError):
        long.result(30)
    steps[1].set()
    assert newer.result(30) == "newer"
    assert "long2" not in done
    assert done.index("long0") < done.index("quick")


def test_what_the_work_raises_is_told_and_the_next_goes_on(worker):
    def fails() -> Generator[None, None, None]:
        raise ValueError("no such head")
        yield

    with pytest.raises(ValueError, match="no such head"):
        worker.submit("a", "prune", fails()).result(30)
    assert worker.submit("a", "prune", at_once(7, [])).result(30) == 7


def test_nothing_is_begun_after_the_end():
    worker = Worker()
    go, begun = Event(), Event()
    done: list[Any] = []
    worker.submit("a", "predict", until(go, begun, done))
    assert begun.wait(30)
    waiting = worker.submit("a", "saliency", at_once("never", done))
    worker.close()
    go.set()
    with pytest.raises(ClosedError):
        waiting.result(30)
    with pytest.raises(ClosedError):
        worker.submit("a", "saliency", at_once("never", done))
    assert "never" not in done
