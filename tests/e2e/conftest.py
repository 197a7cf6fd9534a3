"""Local fleets for end-to-end tests: each in a state folder of its own, each ended whatever the test did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.local_fleet import TINY, LocalFleet

NewFleet = Callable[[str], LocalFleet]


def end(fleet: LocalFleet) -> None:
    """Take a fleet down and make sure that nothing of it is left."""
    done = fleet.run("down")
    left = fleet.processes()
    assert done.returncode == 0, done.stderr
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def new_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewFleet]:
    """Make fleets by name; all of them are down at the end of the module."""
    state_home = tmp_path_factory.mktemp("state")
    made: list[LocalFleet] = []

    def make(name: str) -> LocalFleet:
        fleet = LocalFleet.at(state_home, name)
        made.append(fleet)
        return fleet

    with contextlib.ExitStack() as ends:
        yield make
        for fleet in made:
            ends.callback(end, fleet)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet file with three nodes."""
    path = tmp_path_factory.mktemp("fleet") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def fleet(new_fleet: NewFleet, tiny: Path, request: pytest.FixtureRequest) -> LocalFleet:
    """A running fleet of three nodes that the tests of a module share."""
    name = str(request.module.__name__).rpartition(".")[2].replace("_", "-").removeprefix("test-")
    shared = new_fleet(name)
    shared.up("--fleet", str(tiny))
    return shared
