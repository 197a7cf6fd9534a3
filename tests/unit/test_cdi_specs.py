"""CDI specs follow the devices of a host, with a stand-in for NVIDIA's toolkit (`programs/nvidia-ctk`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import yaml
from tests.unit.cdi_hosts import CdiHost
from tests.unit.inventories import SEVEN, instance_of, node, uuid_of, whole

from gpufleet.devices.cdi_specs import CdiSpecs
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.resources import offer

CRI = PluginConfig(mig_strategy="mixed", device_list_strategies=("cdi-cri",))
INDEX = msgspec.structs.replace(CRI, device_id_strategy="index")
TWO = {instance_of(0, 1), instance_of(0, 2)}


@pytest.fixture
def host(tmp_path: Path) -> CdiHost:
    found = CdiHost(tmp_path / "host")
    found.install()
    return found


class Watched:
    """Specs at work, and how often they said that something has changed."""

    def __init__(self, host: CdiHost, config: PluginConfig = CRI, **more: Any) -> None:
        self.host, self.config, self.changes = host, config, 0
        more = {"look_s": 0.05, "pause_s": 0.05, **more}
        self.specs = CdiSpecs(host.root, enter=host.enter, changed=self._changed, **more)

    def _changed(self) -> None:
        self.changes += 1

    def show(self, inventory: Inventory) -> None:
        """The driver has these devices now, and they are to be offered."""
        self.host.show(inventory)
        self.specs.update(offer(inventory, self.config), inventory, self.config)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.specs.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.01)

    async def settled(self) -> None:
        await self.until(lambda: not self.specs.withheld and not self.specs.reasons)

    def reasons(self) -> list[str]:
        return [reason.code for reason in self.specs.reasons]

    def names(self) -> set[str]:
        """Names in the spec."""
        spec = yaml.safe_load((self.host.specs / "nvidia.yaml").read_text())
        return {one["name"] for one in spec["devices"]}

    def made(self) -> int:
        """How often the spec was made."""
        return sum("cdi generate" in call for call in self.host.calls())


def running(host: CdiHost) -> list[psutil.Process]:
    """Toolkits that are at work."""
    toolkit = str(host.root / "usr/bin/nvidia-ctk")
    return [one for one in psutil.process_iter(["cmdline"]) if toolkit in (one.info["cmdline"] or [])]


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_what_no_spec_describes_is_withheld_until_the_spec_is_made_anew(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(whole(2))
        await watched.specs.look()
        assert watched.specs.withheld == {uuid_of(0), uuid_of(1)}
        async with watched.running():
            await watched.settled()
            assert watched.names() == {uuid_of(0), uuid_of(1), "0", "1"}
            changes = watched.changes
            watched.show(node(SEVEN[:2], None))
            assert watched.specs.withheld == TWO
            await watched.settled()
            assert watched.changes > changes > 0
            assert watched.names() > TWO
        assert watched.made() == 2
        assert [path.name for path in host.specs.iterdir()] == ["nvidia.yaml"]

    run(test)


def test_another_driver_root_makes_the_spec_anew_and_withholds_nothing(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(whole(1))
        async with watched.running():
            await watched.settled()
            watched.config = msgspec.structs.replace(CRI, driver_root="/run/nvidia/driver")
            watched.show(whole(1))
            assert not watched.specs.withheld
            await watched.until(lambda: "--driver-root=/run/nvidia/driver" in watched.host.calls()[-1])
            await watched.settled()

    run(test)


def test_an_index_is_withheld_when_it_means_another_device_now(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host, INDEX)
        watched.show(node(SEVEN[:2], None))
        async with watched.running():
            await watched.settled()
            moved = node(SEVEN[:2], None)
            first = msgspec.structs.replace(moved.gpus[0], minor=5)
            moved = msgspec.structs.replace(moved, gpus=(first, *moved.gpus[1:]))
            watched.show(moved)
            assert watched.specs.withheld == TWO
            await watched.settled()

    run(test)


def test_nodes_are_created_first_and_a_host_without_nvidia_smi_is_none_the_worse(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(whole(1))
        async with watched.running():
            await watched.settled()
        words = [call.split()[:2] for call in host.calls()]
        assert words == [["nvidia-smi", "-L"], ["nvidia-ctk", "system"], ["nvidia-ctk", "cdi"]]
        (host.root / "usr/bin/nvidia-smi").unlink()
        async with watched.running():
            watched.show(whole(2))
            await watched.settled()

    run(test)


@pytest.mark.parametrize("fault", ["fail", "garble"])
def test_a_toolkit_that_fails_leaves_the_old_spec_and_is_tried_again(host: CdiHost, fault: str) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(node((), None))
        async with watched.running():
            await watched.settled()
            before = (host.specs / "nvidia.yaml").read_bytes()
            host.fault(fault)
            made = watched.made()
            watched.show(node(SEVEN[:2], None))
            await watched.until(lambda: watched.reasons() == ["CdiSpecFailed"])
            if fault == "fail":
                assert "Driver Not Loaded" in watched.specs.reasons[0].message
            assert watched.specs.withheld == TWO
            await watched.until(lambda: watched.made() >= made + 2)
            assert (host.specs / "nvidia.yaml").read_bytes() == before
            host.fault(fault, on=False)
            await watched.settled()
        assert [path.name for path in host.specs.iterdir()] == ["nvidia.yaml"]

    run(test)


def test_a_toolkit_that_hangs_is_ended(host: CdiHost) -> None:
    async def test() -> None:
        host.fault("hang")
        watched = Watched(host, timeout_s=1.0)
        watched.show(whole(1))
        async with watched.running():
            await watched.until(lambda: watched.reasons() == ["CdiSpecFailed"])
            assert "did not end in 1 s" in watched.specs.reasons[0].message
            host.fault("hang", on=False)
            await watched.settled()
        assert not running(host)

    run(test)


def test_an_agent_that_ends_while_the_toolkit_works_leaves_nothing_of_it(host: CdiHost) -> None:
    async def test() -> None:
        left = host.specs / ".gpufleet-of-one-that-was-killed"
        left.mkdir(parents=True)
        host.fault("hang")
        watched = Watched(host)
        watched.show(whole(1))
        async with watched.running():
            await watched.until(lambda: watched.made() == 1)
            assert not left.exists()
        assert not list(host.specs.iterdir())
        assert not running(host)

    run(test)


def test_without_a_toolkit_devices_are_named_by_a_variable_until_one_is_installed(tmp_path: Path) -> None:
    async def test() -> None:
        host = CdiHost(tmp_path / "host")
        watched = Watched(host)
        watched.show(whole(1))
        async with watched.running():
            await watched.until(lambda: watched.reasons() == ["CdiToolkitMissing"])
            assert watched.specs.withheld == frozenset()
            assert watched.specs.settled(CRI).device_list_strategies == ("envvar",)
            host.install()
            await watched.until(lambda: watched.specs.settled(CRI) == CRI)
            await watched.settled()
            assert watched.changes

    run(test)


def test_a_new_agent_withholds_nothing_that_a_spec_describes_and_makes_it_anew(host: CdiHost) -> None:
    async def test() -> None:
        first = Watched(host)
        first.show(node(SEVEN[:2], None))
        async with first.running():
            await first.settled()
        second = Watched(host)
        await second.specs.look()
        second.show(node(SEVEN[:2], None))
        assert second.specs.withheld == frozenset()
        async with second.running():
            await second.until(lambda: second.made() == 2)

    run(test)


def test_a_spec_that_somebody_replaced_is_made_anew(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(whole(2))
        async with watched.running():
            await watched.settled()
            made = watched.made()
            spec = {"kind": "nvidia.com/gpu", "devices": [{"name": "0"}]}
            (host.specs / "nvidia.yaml").write_text(json.dumps(spec))
            await watched.until(lambda: watched.made() > made)
            await watched.settled()
            assert watched.names() >= {uuid_of(0), uuid_of(1)}

    run(test)


def test_devices_in_two_specs_are_withheld_until_one_of_them_goes(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host)
        watched.show(whole(2))
        async with watched.running():
            await watched.settled()
            other = host.specs / "other.json"
            other.write_text(json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": uuid_of(1)}]}))
            await watched.until(lambda: watched.reasons() == ["CdiSpecConflict"])
            assert watched.specs.withheld == {uuid_of(1)}
            other.unlink()
            await watched.settled()

    run(test)


def test_without_cdi_in_the_config_nothing_is_run_and_nothing_withheld(host: CdiHost) -> None:
    async def test() -> None:
        watched = Watched(host, PluginConfig())
        watched.show(whole(2))
        async with watched.running():
            await asyncio.sleep(0.3)
        assert not host.calls()
        assert not watched.specs.withheld
        assert not watched.specs.reasons

    run(test)


def test_the_link_of_var_run_stays_on_the_host(host: CdiHost) -> None:
    async def test() -> None:
        (host.root / "run").mkdir()
        (host.root / "var").mkdir()
        (host.root / "var/run").symlink_to("/run")
        watched = Watched(host)
        watched.show(whole(1))
        async with watched.running():
            await watched.settled()
        assert (host.root / "run/cdi/nvidia.yaml").is_file()

    run(test)
