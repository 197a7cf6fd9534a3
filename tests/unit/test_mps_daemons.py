"""MPS daemons as processes: started with limits, watched, restarted, handed on and stopped.

The program is a stand-in that behaves like NVIDIA's (`programs/nvidia-cuda-mps-control`); the GPUs are the
simulated backend's.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.unit.inventories import gpu, uuid_of

from gpufleet.devices.clocks import RunningClock
from gpufleet.devices.host_facts import host_facts
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.mps import MpsDaemon, MpsGPU, MpsPlan, plan_daemons
from gpufleet.devices.mps_control import MpsControl
from gpufleet.devices.mps_daemons import MpsDaemons
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.resources import Device, offer
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.timeline import FailCall
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.products import find_product

SHARED = "nvidia.com/gpu.shared"
PROGRAM = Path(__file__).parent / "programs" / "nvidia-cuda-mps-control"
COMMAND = (sys.executable, "-S", "-E", str(PROGRAM))
BOUND_S = 30.0

pytestmark = pytest.mark.timeout(120)


def inventory(count: int) -> Inventory:
    return Inventory(
        gpus=tuple(
            msgspec.structs.replace(gpu(index), memory_mib=80_000, capability=(9, 0))
            for index in range(count)
        )
    )


def shared_by(replicas: int) -> PluginConfig:
    resource = SharedResource("nvidia.com/gpu", replicas, SHARED)
    return PluginConfig(sharing=Sharing("mps", (resource,), fail_requests_greater_than_one=True))


def plan(count: int, replicas: int = 4) -> MpsPlan:
    config = shared_by(replicas)
    return plan_daemons(offer(inventory(count), config), inventory(count), config)


def replica(index: int, replicas: int = 4) -> list[Device]:
    devices = offer(inventory(2), shared_by(replicas)).resource(SHARED).devices
    return [one for one in devices if one.id == f"{uuid_of(index)}::0"]


class Node:
    """A node with an MPS root, its GPUs, and one agent after another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backend = SimulatedBackend(find_product("h100"), inventory(2), RunningClock())
        self.changes = 0
        self.log = root / SHARED / "log"
        self.pid_file = root / SHARED / "pipe" / "nvidia-cuda-mps-control.pid"

    def _changed(self) -> None:
        self.changes += 1

    @contextlib.asynccontextmanager
    async def agent(self, timeout_s: float = 10.0) -> AsyncIterator[MpsDaemons]:
        daemons = MpsDaemons(
            self.root,
            self.backend.set_exclusive,
            command=COMMAND,
            changed=self._changed,
            probe_s=0.1,
            pause_s=0.1,
            timeout_s=timeout_s,
        )
        task = asyncio.create_task(daemons.run())
        try:
            yield daemons
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def exclusive(self) -> list[bool]:
        return [one.exclusive for one in self.backend.inventory().gpus]

    def told(self) -> list[str]:
        """What the daemons were told, without questions."""
        path = self.log / "commands.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("get_")]

    def processes(self) -> list[psutil.Process]:
        """Every process of MPS below the root."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                place = process.environ().get("CUDA_MPS_PIPE_DIRECTORY", "")
                if place.startswith(str(self.root)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def servers(self) -> list[int]:
        """The pids of the servers."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "nvidia-cuda-mps-server" in process.cmdline():
                    found.append(process.pid)
        return found

    def pid(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def machine() -> Iterator[Node]:
    """A node; the path of its sockets is short, and nothing of it is left behind."""
    root = Path(tempfile.mkdtemp(prefix="mps-"))
    node = Node(root)
    yield node
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    node.backend.close()
    shutil.rmtree(root)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, within a bound."""
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.02)


def ready(daemons: MpsDaemons, resource: str = SHARED) -> bool:
    return resource in daemons.states and daemons.states[resource].phase == "ready"


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_a_daemon_is_started_with_limits_on_exclusive_gpus_and_then_serves_clients(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(2), ())
            assert daemons.sick == {uuid_of(0), uuid_of(1)}
            with pytest.raises(GpufleetError, match="MpsNotReady"):
                daemons.extras(SHARED, replica(0))
            await until(lambda: ready(daemons))
            assert machine.exclusive() == [True, True]
            assert machine.told() == [
                "set_default_device_pinned_mem_limit 0 20000M",
                "set_default_device_pinned_mem_limit 1 20000M",
                "set_default_active_thread_percentage 25",
            ]
            assert daemons.sick == frozenset()
            assert daemons.states[SHARED].pid == machine.pid()
            found = daemons.extras(SHARED, replica(1))
            assert found.mounts[0].host_path == str(machine.root / SHARED / "pipe")
            assert found.envs["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=20000M"
            assert machine.changes

    run(story())


def test_a_daemon_that_is_killed_is_started_again_with_its_limits(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(2), ())
            await until(lambda: ready(daemons))
            first, told = machine.pid(), machine.told()
            busy = [uuid_of(0)]
            daemons.update(plan(2), busy)
            psutil.Process(first).kill()
            await until(lambda: daemons.sick == {uuid_of(0), uuid_of(1)})
            assert "ended" in daemons.states[SHARED].error
            await until(lambda: ready(daemons))
            assert machine.pid() != first
            assert daemons.states[SHARED].restarts == 1
            assert machine.told() == told * 2
            assert machine.exclusive() == [True, True]

    run(story())


def test_the_servers_of_a_daemon_that_was_killed_do_not_keep_the_gpus(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            await control(machine).ask("start_server -uid 0")
            await until(machine.servers)
            psutil.Process(machine.pid()).kill()
            await until(lambda: daemons.states[SHARED].restarts == 1)
            assert machine.servers() == []

    run(story())


def control(machine: Node) -> MpsControl:
    return MpsControl(machine.root, SHARED, COMMAND)


def test_a_daemon_that_cannot_start_says_why_and_starts_when_it_can(machine: Node) -> None:
    machine.log.mkdir(parents=True)
    (machine.log / "refuse").touch()

    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: daemons.states[SHARED].phase == "failed")
            assert "already running" in daemons.states[SHARED].error
            assert daemons.sick == {uuid_of(0)}
            (machine.log / "refuse").unlink()
            await until(lambda: ready(daemons))
            assert daemons.states[SHARED].error == ""

    run(story())


def test_a_daemon_that_does_not_answer_any_more_is_replaced(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent(timeout_s=1.0) as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            first = machine.pid()
            (machine.log / "mute").touch()
            await until(lambda: not psutil.pid_exists(first) or gone(first))
            (machine.log / "mute").unlink()
            await until(lambda: ready(daemons) and machine.pid() != first)

    run(story())


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_limits_that_somebody_has_changed_are_set_again(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            first, told = machine.pid(), len(machine.told())
            await control(machine).ask("set_default_active_thread_percentage 90")
            await until(lambda: len(machine.told()) > told + 1 and ready(daemons))
            assert machine.told()[-1] == "set_default_active_thread_percentage 25"
            assert machine.pid() == first

    run(story())


def test_other_limits_reach_a_running_daemon_and_its_server_without_a_restart(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            first = machine.pid()
            await control(machine).ask("start_server -uid 0")
            await until(machine.servers)
            (server,) = machine.servers()
            daemons.update(plan(1, replicas=2), [uuid_of(0)])
            await until(lambda: f"set_active_thread_percentage {server} 50" in machine.told())
            assert f"set_device_pinned_mem_limit {server} 0 40000M" in machine.told()
            assert machine.pid() == first

    run(story())


def test_an_agent_that_stops_leaves_its_daemon_to_the_next_one(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(2), ())
            await until(lambda: ready(daemons))
        first = machine.pid()
        assert psutil.pid_exists(first)
        async with machine.agent() as daemons:
            daemons.update(plan(2), [uuid_of(0), uuid_of(1)])
            await until(lambda: ready(daemons))
            assert machine.pid() == first
            assert daemons.states[SHARED].restarts == 0
            assert daemons.sick == frozenset()

    run(story())


def test_a_daemon_whose_agent_died_before_it_told_it_anything_is_known_and_ended_by_the_next(
    machine: Node,
) -> None:
    async def story() -> None:
        await MpsControl(machine.root, SHARED, COMMAND).start()
        first = machine.pid()
        async with machine.agent() as daemons:
            daemons.update(MpsPlan(), ())
            await until(lambda: not machine.processes())
            assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE

    run(story())


def test_a_daemon_is_ours_on_its_host_from_its_start_to_its_end(machine: Node) -> None:
    async def story() -> None:
        node = Node(machine.root / "run/nvidia/mps")
        pipe = f"/run/nvidia/mps/{SHARED}/pipe"
        control = MpsControl(node.root, SHARED, COMMAND)
        await control.start()
        assert (node.root / SHARED / "pipe" / "control").is_socket()
        assert host_facts(machine.root).mps == ()
        async with node.agent() as daemons:
            daemons.update(plan(2), ())
            await until(lambda: ready(daemons))
            assert host_facts(machine.root).mps == ()
            control.forget()
            assert host_facts(machine.root).mps == (pipe,)
            daemons.update(MpsPlan(), ())
            await until(lambda: not node.processes())
            await until(lambda: host_facts(machine.root).mps == ())

    run(story())


def test_a_daemon_that_died_while_no_agent_ran_is_started_though_its_clients_hold_the_gpu(
    machine: Node,
) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
        psutil.Process(machine.pid()).kill()
        async with machine.agent() as daemons:
            daemons.update(plan(1), [uuid_of(0)])
            await until(lambda: ready(daemons))

    run(story())


def test_a_pid_file_that_names_somebody_else_harms_nobody(machine: Node) -> None:
    machine.pid_file.parent.mkdir(parents=True)

    async def story() -> None:
        other = await asyncio.create_subprocess_exec("sleep", "300")
        machine.pid_file.write_text(str(other.pid))
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            daemons.update(MpsPlan(), ())
            await until(lambda: not machine.processes())
        assert other.returncode is None
        other.kill()
        await other.wait()

    run(story())


@pytest.mark.parametrize("deaf", [False, True])
def test_a_daemon_that_is_not_wanted_ends_when_no_pod_holds_its_gpus(machine: Node, deaf: bool) -> None:
    """By its own command, or by a signal when it does not obey."""

    async def story() -> None:
        async with machine.agent(timeout_s=1.0) as daemons:
            daemons.update(plan(1), ())
            await until(lambda: ready(daemons))
            daemons.update(MpsPlan(), [uuid_of(0)])
            assert daemons.sick == {uuid_of(0)}
            assert [one.reason for one in daemons.waiting] == ["MpsDraining"]
            await asyncio.sleep(0.3)
            assert psutil.pid_exists(machine.pid())
            assert machine.exclusive()[0]
            if deaf:
                (machine.log / "deaf").touch()
            daemons.update(MpsPlan(), ())
            await until(lambda: not daemons.states)
            await until(lambda: not machine.processes())
            assert machine.exclusive() == [False, False]
            assert daemons.sick == frozenset()
            assert "quit" in machine.told()

    run(story())


def test_a_gpu_that_a_pod_uses_without_mps_is_shared_when_that_pod_has_ended(machine: Node) -> None:
    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(2), [uuid_of(1)])
            await until(lambda: ready(daemons))
            assert machine.exclusive() == [True, False]
            assert daemons.sick == {uuid_of(1)}
            first = machine.pid()
            daemons.update(plan(2), [uuid_of(0)])
            await until(lambda: daemons.sick == frozenset())
            assert machine.exclusive() == [True, True]
            assert machine.pid() == first

    run(story())


def test_a_driver_that_refuses_is_told_and_asked_again(machine: Node) -> None:
    machine.backend.play([FailCall(at=0, call="set_exclusive", reason="NoPermission", times=2)])

    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(plan(1), ())
            await until(lambda: daemons.states[SHARED].phase == "failed")
            assert "needs root" in daemons.states[SHARED].error
            await until(lambda: ready(daemons))

    run(story())


def test_daemons_of_two_resources_do_not_hold_up_each_other(machine: Node) -> None:
    def one(resource: str, index: int) -> MpsDaemon:
        return MpsDaemon(resource, (MpsGPU(index, uuid_of(index), 80_000),), 2)

    broken = machine.root / "nvidia.com/b" / "log"
    broken.mkdir(parents=True)
    (broken / "refuse").touch()

    async def story() -> None:
        async with machine.agent() as daemons:
            daemons.update(MpsPlan((one("nvidia.com/a", 0), one("nvidia.com/b", 1))), ())
            await until(lambda: ready(daemons, "nvidia.com/a"))
            await until(lambda: daemons.states["nvidia.com/b"].phase == "failed")
            assert daemons.sick == {uuid_of(1)}

    run(story())


def test_a_program_that_is_not_installed_is_an_error_with_a_name(machine: Node) -> None:
    missing: Sequence[str] = ("/nowhere/nvidia-cuda-mps-control",)

    async def story() -> None:
        with pytest.raises(GpufleetError, match="cannot run /nowhere/nvidia-cuda-mps-control"):
            await MpsControl(machine.root, SHARED, missing).start()

    run(story())
