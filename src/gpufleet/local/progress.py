"""What `up` tells whoever waits for it, and the one failure that it mends by itself."""

from __future__ import annotations

from typing import Protocol

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import gotoolchain


class Progress(Protocol):
    """Where the one who waits sees what is going on."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def work(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is being done now, and how much of it when `total` is not 0."""


def building(progress: Progress) -> gotoolchain.Progress:
    """Who tells `progress` how a build of the control plane goes."""

    def tell(event: gotoolchain.BuildProgress | str) -> None:
        if isinstance(event, str):
            progress.say(event)
        else:
            progress.work(f"building {event.target}", event.done, event.total)

    return tell


class PortTakenError(GpufleetError):
    """A component lost a race for its port: somebody bound it between our look and its start."""

    def __init__(self, component: str) -> None:
        super().__init__(
            reason="PortTaken",
            message=f"the ports chosen for {component} are used by another program",
            hint="gpufleet down; gpufleet up",
        )
        self.component = component
