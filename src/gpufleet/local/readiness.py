"""Waiting until a fleet that was started is ready, and telling early and clearly why it will not be.

Ready means: every component answers, the built-in objects are served, every node of the fleet file is Ready,
its GPUs are reported, and the pools of the file are there. A component that keeps ending before it ever
answered will not get better by waiting: its last words are the error.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.errors import Unreachable
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES, NODES
from gpufleet.kube.objects import Node
from gpufleet.local.builtin import apply_builtin
from gpufleet.local.components import API_SERVER, SUPERVISOR
from gpufleet.local.fleetfile import Fleet
from gpufleet.local.layout import Layout, tail, write_atomic
from gpufleet.local.observed import (
    ComponentState,
    FleetState,
    node_ready,
    observe,
    read_supervisor_state,
)
from gpufleet.local.pools import apply_pools
from gpufleet.local.progress import PortTakenError, Progress

HOPELESS_AFTER = 3
"""So often in a row a component may end without having answered."""

_NODES = "waiting for nodes to be Ready"
_GPUS = "waiting for GPUs to be reported"
_PORT_TAKEN = "address already in use"


class Wait:
    """One wait for a fleet, bounded by `timeout_s` from its creation. What failed before does not count."""

    def __init__(
        self,
        layout: Layout,
        progress: Progress,
        *,
        timeout_s: float,
        supervisor: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self._layout = layout
        self._progress = progress
        self._supervisor = supervisor
        earlier = () if supervisor is not None else observe(layout).components
        self._restarts = {component.name: component.restarts for component in earlier}
        self._count = (0, 0)
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    async def until_ready(self, fleet: Fleet) -> None:
        """Return once all works, and the nodes are Ready, report their GPUs and have their pools. Raises
        GpufleetError.
        """
        nodes, gpus = fleet.nodes, sum(group.count * group.gpus for group in fleet.groups)
        api_server = observe(self._layout).component(API_SERVER)
        what = "asking" if api_server is not None and api_server.pid else "starting"
        await self._until(self._api_answers, f"{what} the control plane")
        config = load_config(str(self._layout.kubeconfig))
        async with Client(config, user_agent="gpufleet-up") as client:
            what = "applying custom resources and priority classes"
            await self._until(lambda: self._applied(client), what)
            await self._until(lambda: self._nodes_ready(client, nodes), _NODES, poll_s=0.3)
            await self._until(lambda: self._gpus_reported(client, gpus), _GPUS, poll_s=0.3)
            await self._until(self._all_answer, "waiting for the controllers")
            # Last, so that an `up` that fails leaves the pools of the fleet that lives on.
            await self._until(lambda: self._pooled(client, fleet), "applying GPU pools")

    async def _applied(self, client: Client) -> bool:
        """The API server may still be restarting when a new supervisor takes over."""
        try:
            await apply_builtin(client)
        except Unreachable:
            return False
        write_atomic(self._layout.objects_applied, b"")
        return True

    async def _pooled(self, client: Client, fleet: Fleet) -> bool:
        try:
            await apply_pools(client, fleet, self._layout.name)
        except Unreachable:
            return False
        return True

    async def _api_answers(self) -> bool:
        component = observe(self._layout).component(API_SERVER)
        return self._taken_up() and component is not None and component.answering

    def _taken_up(self) -> bool:
        """Whether the supervisor knows the settings that are waited for."""
        said = read_supervisor_state(self._layout)
        return said is not None and said.revision == self._layout.revision()

    async def _all_answer(self) -> bool:
        state = observe(self._layout)
        return state.supervised and all(component.answering for component in state.components)

    async def _nodes_ready(self, client: Client, wanted: int) -> bool:
        try:
            nodes = (await client.list(NODES, type=Node, resource_version="0")).items
        except Unreachable:
            return False
        ready = sum(node_ready(node) for node in nodes)
        self._count = (min(ready, wanted), wanted)
        return ready >= wanted

    async def _gpus_reported(self, client: Client, wanted: int) -> bool:
        try:
            reports = (await client.list(GPU_NODES, type=GPUNode, resource_version="0")).items
        except Unreachable:
            return False
        found = sum(len(report.status.devices) for report in reports)
        self._count = (min(found, wanted), wanted)
        return found >= wanted

    async def _until(
        self, condition: Callable[[], Awaitable[bool]], what: str, *, poll_s: float = 0.1
    ) -> None:
        self._count = (0, 0)
        self._progress.work(what)
        while not await condition():
            self._progress.work(what, *self._count)
            self._check_alive()
            if time.monotonic() > self._deadline:
                raise self._too_slow(what)
            await asyncio.sleep(poll_s)

    def _check_alive(self) -> None:
        """Raise when waiting is pointless."""
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise self._failed(SUPERVISOR, self._supervisor.returncode)
        if not self._taken_up():
            return
        for component in observe(self._layout).components:
            failures = min(component.failures, component.restarts - self._restarts.get(component.name, 0))
            if failures >= HOPELESS_AFTER or (failures > 0 and self._port_taken(component.name)):
                raise self._failed(component.name, component.last_exit)

    def _failed(self, name: str, code: int | None) -> GpufleetError:
        if self._port_taken(name):
            return PortTakenError(name)
        said = "\n".join(f"    {line}" for line in tail(self._layout.log(name)))
        return GpufleetError(
            reason="ComponentFailed",
            message=f"{name} keeps ending ({_exit_words(code)}); its last words:\n{said or '    (none)'}",
            hint=f"read {self._layout.log(name)}, then run gpufleet up again",
        )

    def _port_taken(self, name: str) -> bool:
        return any(_PORT_TAKEN in line for line in tail(self._layout.log(name), lines=20))

    def _too_slow(self, what: str) -> GpufleetError:
        behind = laggards(observe(self._layout))
        names = ", ".join(f"{one.name} ({one.state})" for one in behind)
        logs = self._layout.log(behind[0].name) if behind else self._layout.logs
        return GpufleetError(
            reason="Timeout",
            message=f"the fleet was not ready within {self._timeout_s:.0f} s, while {what}{self._so_far()}"
            + (f"; not answering: {names}" if names else ""),
            hint=f"read {logs}; a slow machine may need more time: gpufleet up --timeout 600",
        )

    def _so_far(self) -> str:
        done, total = self._count
        return f" ({done} of {total})" if total else ""


def laggards(state: FleetState) -> list[ComponentState]:
    """The components that do not answer, in the order of their start."""
    return [component for component in state.components if not component.answering]


def _exit_words(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
