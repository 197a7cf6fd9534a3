"""MPS: which daemons a node needs, what they are told, what clients get, and when GPUs join and leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inventories import SEVEN, gpu, node, uuid_of

from gpufleet.devices.allocation import Grant, Mount
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mps import (
    REASONS,
    MpsDaemon,
    MpsGPU,
    MpsPlan,
    client_grant,
    daemon_variables,
    limit_commands,
    next_daemons,
    plan_daemons,
    server_commands,
)
from gpufleet.devices.plugin_config import DeviceChoice, PluginConfig, SharedResource, Sharing
from gpufleet.devices.resources import Device, offer
from gpufleet.fleet.errors import GpufleetError

SHARED = "nvidia.com/gpu.shared"
MEMORY = 80_000


def mps(
    replicas: int = 4,
    rename: str = SHARED,
    devices: DeviceChoice = "all",
    several: bool = False,
    root: str = "/run/nvidia/mps",
) -> PluginConfig:
    resource = SharedResource("nvidia.com/gpu", replicas, rename, devices)
    sharing = Sharing("mps", (resource,), fail_requests_greater_than_one=not several)
    return PluginConfig(mps_root=root, sharing=sharing)


def gpus(count: int, capability: tuple[int, int] = (9, 0)) -> Inventory:
    def one(index: int) -> GPU:
        return msgspec.structs.replace(gpu(index), memory_mib=MEMORY, capability=capability)

    return Inventory(gpus=tuple(one(index) for index in range(count)))


def plan(inventory: Inventory, config: PluginConfig) -> MpsPlan:
    return plan_daemons(offer(inventory, config), inventory, config)


def replicas(inventory: Inventory, config: PluginConfig, *ids: str) -> list[Device]:
    """The devices of these ids (`0:2` is replica 2 of GPU 0)."""
    wanted = [f"{uuid_of(int(one.split(':')[0]))}::{one.split(':')[1]}" for one in ids]
    return [one for one in offer(inventory, config).resource(SHARED).devices if one.id in wanted]


def codes(found: MpsPlan) -> list[str]:
    return [one.reason for one in found.withheld]


def test_the_replicas_are_offered_under_the_new_name_and_one_daemon_serves_their_gpus() -> None:
    inventory, config = gpus(2), mps()
    found = offer(inventory, config)
    assert {one.name: len(one.devices) for one in found.resources} == {SHARED: 8}
    shared = tuple(MpsGPU(index, uuid_of(index), MEMORY) for index in range(2))
    assert plan(inventory, config) == MpsPlan((MpsDaemon(SHARED, shared, 4, 1),))


@pytest.mark.parametrize("strategy", ["none", "time-slicing"])
def test_a_node_that_does_not_share_by_mps_has_no_daemon_and_its_clients_get_nothing(strategy: str) -> None:
    inventory, config = gpus(1), mps()
    sharing = msgspec.structs.replace(config.sharing, strategy=strategy)
    other = msgspec.structs.replace(config, sharing=sharing)
    assert plan(inventory, other) == MpsPlan()
    assert client_grant(MpsPlan(), SHARED, replicas(inventory, config, "0:0"), "/mps") == Grant()


def test_a_daemon_is_told_the_limits_by_the_index_of_each_gpu() -> None:
    (daemon,) = plan(gpus(2), mps(4)).daemons
    assert limit_commands(daemon) == (
        "set_default_device_pinned_mem_limit 0 20000M",
        "set_default_device_pinned_mem_limit 1 20000M",
        "set_default_active_thread_percentage 25",
    )
    assert server_commands(daemon, 71) == (
        "set_device_pinned_mem_limit 71 0 20000M",
        "set_device_pinned_mem_limit 71 1 20000M",
        "set_active_thread_percentage 71 25",
    )


def test_memory_that_is_not_known_is_not_limited() -> None:
    unknown = Inventory(gpus=(msgspec.structs.replace(gpus(1).gpus[0], memory_mib=0),))
    (daemon,) = plan(unknown, mps(2)).daemons
    assert limit_commands(daemon) == ("set_default_active_thread_percentage 50",)


def test_a_daemon_counts_gpus_as_the_inventory_does() -> None:
    assert daemon_variables("/mps", SHARED) == {
        "CUDA_MPS_PIPE_DIRECTORY": f"/mps/{SHARED}/pipe",
        "CUDA_MPS_LOG_DIRECTORY": f"/mps/{SHARED}/log",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_a_client_gets_the_way_to_its_server_and_its_limits() -> None:
    inventory, config = gpus(2), mps(4)
    found = client_grant(plan(inventory, config), SHARED, replicas(inventory, config, "1:2"), "/host/mps")
    assert found == Grant(
        {
            "CUDA_MPS_PIPE_DIRECTORY": f"/mps/{SHARED}/pipe",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20000M",
        },
        (Mount(f"/host/mps/{SHARED}/pipe", f"/mps/{SHARED}/pipe"), Mount("/host/mps/shm", "/dev/shm")),
    )


@pytest.mark.parametrize(
    ("held", "threads", "memory"),
    [
        (("0:0",), "25", "0=20000M"),
        (("0:0", "0:1"), "50", "0=40000M"),
        (("0:0", "0:1", "0:2", "0:3"), "100", "0=80000M"),
        (("0:0", "1:0"), "25", "0=20000M,1=20000M"),
        (("0:0", "0:3", "2:1"), "25", "0=40000M,1=20000M"),
    ],
)
def test_the_limits_of_a_client_grow_with_the_replicas_that_it_holds(
    held: Sequence[str], threads: str, memory: str
) -> None:
    """GPUs are numbered as the container sees them."""
    inventory, config = gpus(3), mps(4, several=True)
    found = client_grant(plan(inventory, config), SHARED, replicas(inventory, config, *held), "/mps")
    assert found.envs["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == threads
    assert found.envs["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == memory


def test_a_daemon_whose_clients_may_hold_several_replicas_does_not_bind_them_to_one() -> None:
    """A container's variables can only lower what the daemon allows."""
    (daemon,) = plan(gpus(1), mps(4, several=True)).daemons
    assert limit_commands(daemon) == (
        "set_default_device_pinned_mem_limit 0 80000M",
        "set_default_active_thread_percentage 100",
    )


@pytest.mark.parametrize(
    ("inventory", "config", "reason"),
    [
        (gpus(1), mps(49), "MpsTooManyClients"),
        (gpus(1, (7, 0)), mps(17), "MpsTooManyClients"),
        (gpus(1, (6, 0)), mps(2), "MpsLimitsUnsupported"),
        (gpus(2), mps(2, "", ("0",)), "MpsPartlyShared"),
        (gpus(1), mps(2, root="/" + "m" * 90), "MpsRootTooLong"),
        (Inventory(gpus=(*gpus(1).gpus, gpu(1, SEVEN))), mps(2, devices=("0",)), "MpsWithMig"),
        (node(SEVEN), mps(2), "MpsWithMig"),
    ],
)
def test_what_mps_cannot_do_is_withheld_with_its_reason(
    inventory: Inventory, config: PluginConfig, reason: str
) -> None:
    found = plan(inventory, config)
    assert (found.daemons, set(codes(found))) == ((), {reason})
    assert reason in REASONS


@pytest.mark.parametrize(("capability", "most"), [((7, 0), 16), ((7, 5), 48), ((9, 0), 48)])
def test_as_many_replicas_as_a_server_takes_clients_are_fine(capability: tuple[int, int], most: int) -> None:
    assert plan(gpus(1, capability), mps(most)).withheld == ()


def test_a_gpu_that_cannot_be_shared_does_not_keep_the_others_from_it() -> None:
    old = msgspec.structs.replace(gpus(1).gpus[0], capability=(6, 1))
    found = plan(Inventory(gpus=(old, gpus(2).gpus[1])), mps(2))
    assert [one.index for one in found.daemons[0].gpus] == [1]
    with pytest.raises(GpufleetError, match="MpsNotReady"):
        client_grant(found, SHARED, replicas(gpus(2), mps(2), "0:0"), "/mps")


def test_a_lost_gpu_is_not_waited_for() -> None:
    config = mps(2)
    before = offer(gpus(2), config)
    inventory = Inventory(gpus=(gpus(1).gpus[0], gpu(1, lost="fell off the bus")))
    found = plan_daemons(offer(inventory, config, before=before), inventory, config)
    assert [one.index for one in found.daemons[0].gpus] == [0]


def test_a_client_of_a_gpu_that_its_daemon_lacks_is_refused() -> None:
    inventory, config = gpus(2), mps(2)
    with pytest.raises(GpufleetError, match="MpsNotReady"):
        client_grant(plan(gpus(1), config), SHARED, replicas(inventory, config, "1:0"), "/mps")


@given(count=st.integers(1, 48), memory=st.integers(1, 200_000), several=st.booleans())
def test_all_clients_together_never_get_more_than_a_gpu(count: int, memory: int, several: bool) -> None:
    daemon = MpsDaemon(SHARED, (MpsGPU(0, "GPU-a", memory),), count, count if several else 1)
    assert count * daemon.memory_mib(daemon.gpus[0], 1) <= memory
    assert count * daemon.thread_percentage(1) <= 100
    assert daemon.memory_mib(daemon.gpus[0], count) == memory


# -------------------------------------------------------------------------------------- joining and leaving


def daemon(resource: str, *indexes: int) -> MpsDaemon:
    return MpsDaemon(resource, tuple(MpsGPU(one, uuid_of(one)) for one in indexes), 2)


def held(found: Sequence[MpsDaemon]) -> dict[str, list[int]]:
    return {one.resource: [gpu.index for gpu in one.gpus] for one in found}


def busy(*indexes: int) -> list[str]:
    return [uuid_of(one) for one in indexes]


def test_a_gpu_that_a_pod_uses_without_mps_joins_when_the_pod_has_ended() -> None:
    wanted = [daemon("a", 0, 1)]
    now, waiting = next_daemons(wanted, [], busy(1))
    assert held(now) == {"a": [0]}
    assert [(one.reason, one.gpu) for one in waiting] == [("MpsGpuBusy", uuid_of(1))]
    then, waiting = next_daemons(wanted, now, busy(0))
    assert (held(then), waiting) == ({"a": [0, 1]}, ())


def test_a_daemon_keeps_its_own_busy_gpus() -> None:
    wanted = [daemon("a", 0, 1)]
    assert next_daemons(wanted, wanted, busy(0, 1)) == (tuple(wanted), ())


def test_a_daemon_that_is_not_wanted_any_more_stays_until_its_last_client_has_ended() -> None:
    now, waiting = next_daemons([], [daemon("a", 0, 1)], busy(1))
    assert held(now) == {"a": [1]}
    assert [(one.reason, one.gpu) for one in waiting] == [("MpsDraining", uuid_of(1))]
    assert next_daemons([], now, ()) == ((), ())


def test_a_gpu_goes_from_one_daemon_to_another_only_through_nobody() -> None:
    wanted = [daemon("b", 0)]
    now, waiting = next_daemons(wanted, [daemon("a", 0)], ())
    assert (held(now), [one.reason for one in waiting]) == ({}, ["MpsGpuBusy"])
    assert held(next_daemons(wanted, now, ())[0]) == {"b": [0]}


@st.composite
def daemons(draw: st.DrawFn) -> list[MpsDaemon]:
    """Daemons of up to three resources that share no GPU."""
    owners = draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=6, max_size=6))
    return [
        daemon(name, *(index for index, owner in enumerate(owners) if owner == name))
        for name in "abc"
        if name in owners
    ]


@given(wanted=daemons(), running=daemons(), used=st.sets(st.integers(0, 5)))
def test_no_pod_loses_its_server_and_what_is_wanted_is_reached(
    wanted: list[MpsDaemon], running: list[MpsDaemon], used: set[int]
) -> None:
    now = tuple(running)
    for _ in range(3):
        before, (now, _) = now, next_daemons(wanted, now, busy(*used))
        for one in before:
            kept = {gpu.index for after in now if after.resource == one.resource for gpu in after.gpus}
            assert {gpu.index for gpu in one.gpus} & used <= kept
        counts = Counter(gpu.index for one in now for gpu in one.gpus)
        assert max(counts.values(), default=1) == 1
    for _ in range(2):
        now, waiting = next_daemons(wanted, now, ())
    assert (held(now), waiting) == (held(wanted), ())
