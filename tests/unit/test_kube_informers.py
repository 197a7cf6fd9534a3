"""Informers against a scripted client: which versions they ask for, and how they get up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gpufleet.kube import informers
from gpufleet.kube.client import Client
from gpufleet.kube.decoding import Listing
from gpufleet.kube.errors import ApiError, StatusCause, StatusDetails, Unreachable
from gpufleet.kube.informers import Change, Informer
from gpufleet.kube.kinds import PODS, Kind
from gpufleet.kube.metrics import INFORMER_HANDLER_FAILURES
from gpufleet.kube.objects import ObjectMeta, Pod
from gpufleet.kube.ratelimit import Backoff
from gpufleet.kube.watch import WatchEvent


def pod(name: str, version: int, uid: str = "u") -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace="ns", uid=uid, resource_version=str(version)))


def event(verb: str, name: str, version: int) -> WatchEvent[Pod]:
    return WatchEvent(verb, pod(name, version), str(version))


def unreadable(verb: str, name: str, version: int, node: str = "n") -> WatchEvent[Pod]:
    return WatchEvent(verb, None, str(version), pod(name, version).metadata, "of another form", node)


def bookmark(version: int) -> WatchEvent[Pod]:
    return WatchEvent("BOOKMARK", None, str(version))


GONE = ApiError(status=410, reason="Expired", message="too old")
MISSING = ApiError(status=404, reason="NotFound", message="page not found")
BROKEN = Unreachable(reason="ConnectionLost", message="cut", sent=True)


class Script(Client):
    """Answers lists (a version and pods) and watches (events, then an end or error) in order, then waits."""

    def __init__(self, *steps: tuple[Any, ...]) -> None:
        self.steps = list(steps)
        self.asked: list[str] = []
        self.finished = asyncio.Event()

    async def list(self, kind: Kind, namespace: str | None = None, **options: Any) -> Any:
        self.asked.append(f"list {options['resource_version']}".strip())
        verb, version, *entries = await self._next()
        assert verb == "list"
        if isinstance(version, Exception):
            raise version
        skipped = {key: node for entry in entries if isinstance(entry, dict) for key, node in entry.items()}
        return Listing([entry for entry in entries if isinstance(entry, Pod)], str(version), skipped)

    async def watch(
        self, kind: Kind, namespace: str | None = None, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append(f"watch {options['resource_version']}")
        verb, *events = await self._next()
        assert verb == "watch"
        for entry in events:
            if isinstance(entry, Exception):
                raise entry
            yield entry

    async def _next(self) -> tuple[Any, ...]:
        if not self.steps:
            self.finished.set()
            await asyncio.Event().wait()
        return self.steps.pop(0)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Backoff takes no time here; the delays that were asked for."""
    delays: list[float] = []

    def next_delay(self: Backoff) -> float:
        delays.append(0.0)
        return 0.0

    monkeypatch.setattr(Backoff, "next", next_delay)
    return delays


def play(*steps: tuple[Any, ...]) -> tuple[Script, Informer[Pod], list[str]]:
    """Run an informer through a script; the script, the informer, and what it told."""
    told: list[str] = []

    def note(change: Change[Pod]) -> None:
        verb = "add" if change.old is None else "delete" if change.new is None else "update"
        told.append(f"{verb} {change.key}")

    async def run() -> tuple[Script, Informer[Pod]]:
        script = Script(*steps)
        informer = Informer(script, PODS, Pod)
        informer.subscribe(note, lambda key, node: told.append(f"unread {key} on {node}"))
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(script.finished.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return script, informer

    script, informer = asyncio.run(run())
    return script, informer, told


def test_a_watch_resumes_from_the_last_event_or_bookmark() -> None:
    script, informer, told = play(
        ("list", 5, pod("a", 3)),
        ("watch", event("MODIFIED", "a", 7), BROKEN),
        ("watch", bookmark(20), BROKEN),
        ("watch", event("DELETED", "a", 21)),
    )
    assert script.asked == ["list 0", "watch 5", "watch 7", "watch 20", "watch 21"]
    assert told == ["add ns/a", "update ns/a", "delete ns/a"]
    assert informer.relists == 1


@pytest.mark.parametrize("gone", [("watch", GONE), ("watch", bookmark(6), GONE)])
def test_410_leads_to_a_consistent_list_and_its_difference(gone: tuple[Any, ...]) -> None:
    script, informer, told = play(
        ("list", 5, pod("a", 1), pod("b", 2), pod("c", 3, uid="old")),
        gone,
        ("list", 90, pod("b", 2), pod("c", 80, uid="new"), pod("d", 85)),
    )
    assert script.asked[0] == "list 0"
    assert script.asked[2:] == ["list", "watch 90"]
    assert told[3:] == ["delete ns/a", "delete ns/c", "add ns/c", "add ns/d"]
    assert set(informer.items()) == {"ns/b", "ns/c", "ns/d"}


def test_repeated_410_backs_off(no_waiting: list[float]) -> None:
    play(
        ("list", 5), ("watch", GONE), ("list", 6), ("watch", GONE), ("list", 7), ("watch", GONE), ("list", 8)
    )
    assert len(no_waiting) == 2, "the first is answered at once, the others after a pause"


def test_a_version_of_the_future_leads_to_a_list() -> None:
    too_large = ApiError(status=504, reason="Timeout", message="Too large resource version")
    too_large.details = StatusDetails(causes=(StatusCause(reason="ResourceVersionTooLarge"),))
    script, _, _ = play(("list", 500), ("watch", too_large), ("list", 8))
    assert script.asked == ["list 0", "watch 500", "list", "watch 8"]


def test_a_history_that_goes_back_leads_to_a_list() -> None:
    script, _, told = play(("list", 500, pod("a", 400)), ("watch", bookmark(30)), ("list", 30, pod("b", 20)))
    assert script.asked == ["list 0", "watch 500", "list", "watch 30"]
    assert told == ["add ns/a", "delete ns/a", "add ns/b"]


def test_other_errors_keep_the_version() -> None:
    busy = ApiError(status=429, reason="TooManyRequests", message="busy")
    script, informer, _ = play(
        ("list", 5), ("watch", busy), ("watch", BROKEN), ("watch", event("ADDED", "a", 6))
    )
    assert script.asked == ["list 0", "watch 5", "watch 5", "watch 5", "watch 6"]
    assert informer.relists == 1


def test_a_list_that_fails_is_tried_again_until_it_works(no_waiting: list[float]) -> None:
    forbidden = ApiError(status=403, reason="Forbidden", message="no")
    script, _, told = play(("list", BROKEN), ("list", forbidden), ("list", 5, pod("a", 1)))
    assert script.asked == ["list 0", "list 0", "list 0", "watch 5"]
    assert told == ["add ns/a"]
    assert len(no_waiting) == 2


def test_a_stream_that_ends_at_once_is_not_opened_again_without_a_pause(no_waiting: list[float]) -> None:
    play(("list", 5), ("watch",), ("watch",), ("watch", bookmark(6)))
    assert len(no_waiting) == 2


def test_an_event_that_is_known_already_is_not_told_again() -> None:
    _, _, told = play(("list", 5, pod("a", 3)), ("watch", event("ADDED", "a", 3), event("MODIFIED", "a", 6)))
    assert told == ["add ns/a", "update ns/a"]


def test_a_handler_that_fails_does_not_keep_others_from_hearing() -> None:
    heard: list[str] = []

    def fail(change: Change[Pod]) -> None:
        raise RuntimeError(change.key)

    async def run() -> None:
        script = Script(("list", 5, pod("a", 3)))
        informer = Informer(script, PODS, Pod)
        informer.subscribe(fail)
        informer.subscribe(lambda change: heard.append(change.key))
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(informer.synced(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    before = INFORMER_HANDLER_FAILURES.labels("pods")._value.get()
    asyncio.run(run())
    assert heard == ["ns/a"]
    assert INFORMER_HANDLER_FAILURES.labels("pods")._value.get() == before + 1


def test_an_object_that_does_not_decode_is_told_until_it_does_or_is_gone() -> None:
    _, informer, told = play(
        ("list", 5, pod("a", 3), {"ns/b": "n", "ns/c": "n"}),
        (
            "watch",
            event("MODIFIED", "b", 6),
            unreadable("DELETED", "c", 7),
            unreadable("MODIFIED", "a", 8),
            unreadable("ADDED", "d", 9, node=""),
            GONE,
        ),
        ("list", 10),
    )
    assert told == [
        "add ns/a",
        "unread ns/b on n",
        "unread ns/c on n",
        "add ns/b",
        "unread ns/c on None",
        "unread ns/a on n",
        "unread ns/d on ",
        "delete ns/a",
        "delete ns/b",
        "unread ns/d on None",
    ]
    late: list[str] = []
    informer.subscribe(lambda change: late.append(change.key), lambda key, node: late.append(key))
    assert late == []


@pytest.mark.parametrize("optional", [True, False])
def test_only_a_kind_that_a_cluster_need_not_serve_counts_as_empty_until_it_does(
    optional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informers, "UNSERVED_SECONDS", 0.01)

    async def story() -> None:
        script = Script(("list", MISSING), ("list", MISSING))
        informer = Informer(script, PODS, Pod, optional=optional)
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(script.finished.wait(), 10)
        assert informer._synced.is_set() == optional
        assert len(script.asked) == 3, "it goes on asking"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_an_optional_kind_that_goes_takes_its_objects_along_and_is_watched_when_it_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(informers, "UNSERVED_SECONDS", 0.01)
    told: list[str] = []

    async def story() -> None:
        first, again = ("list", 1, pod("a", 1), {"ns/b": "n"}), ("list", 9, pod("c", 9))
        script = Script(first, ("watch", MISSING), ("list", MISSING), ("list", MISSING), again)
        informer = Informer(script, PODS, Pod, optional=True)
        informer.subscribe(
            lambda change: told.append(f"{'add' if change.new else 'delete'} {change.key}"),
            lambda key, node: told.append(f"unread {key} {node}"),
        )
        task = asyncio.create_task(informer.run())
        await asyncio.wait_for(script.finished.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level("INFO", logger="gpufleet.kube.informers"):
        asyncio.run(story())
    assert told == ["add ns/a", "unread ns/b n", "delete ns/a", "unread ns/b None", "add ns/c"]
    assert [record.getMessage() for record in caplog.records].count(
        "not served, looked for again every 0 s"
    ) == 1
