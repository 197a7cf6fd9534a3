"""Recorded cluster shapes: who owns each part of the node, judged from objects and a host's files.

Each file of cluster_shapes/ has a Node, the pods and DaemonSets around it, CRDs, operators and DRA objects,
and what lies on the host. `expect` was written by hand: owner, what we do, and the code of the first reason.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gpufleet.devices.host_facts import host_facts
from gpufleet.devices.mps import RECORD
from gpufleet.devices.ownership import Ownership, ownership
from gpufleet.devices.ownership_facts import (
    ClusterObjects,
    DaemonSet,
    DeviceClass,
    Facts,
    HostFacts,
    ResourceSlice,
    node_facts,
)
from gpufleet.fleet.reasons import CODES
from gpufleet.kube import objects

SHAPES = sorted((Path(__file__).parent / "cluster_shapes").glob("*.yaml"))
_PLUGINS = "var/lib/kubelet/device-plugins"


def _convert(value: Any, wanted: Any) -> Any:
    return None if value is None else msgspec.convert(value, list[wanted])


def shape_facts(shape: dict[str, Any], host: HostFacts | None) -> Facts:
    """The facts of a shape of cluster_shapes/, with what was found on its host."""
    cluster = ClusterObjects(
        node=msgspec.convert(shape["node"], objects.Node),
        pods=_convert(shape.get("pods", []), objects.Pod),
        daemon_sets=_convert(shape.get("daemonSets", []), DaemonSet),
        crds=shape.get("crds", []),
        operators=shape.get("operators", []),
        device_classes=_convert(shape.get("deviceClasses", []), DeviceClass),
        slices=_convert(shape.get("resourceSlices", []), ResourceSlice),
    )
    return node_facts(
        cluster,
        host,
        ours=shape.get("ours", ()),
        zero_for_s=shape.get("zeroForS"),
        mig_capable=shape.get("migCapable"),
    )


def _write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _build(root: Path, host: dict[str, Any], sockets: ExitStack) -> None:
    """The host's file system: module, PCI devices, files, and sockets on which somebody listens."""
    if host.get("module"):
        version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {host['module']}  Tue Sep 23 2025\n"
        _write(root / "proc/driver/nvidia/version", version)
    for number in range(host.get("pci", 0)):
        device = root / f"sys/bus/pci/devices/0000:{number + 16:02x}:00.0"
        _write(device / "vendor", "0x10de\n")
        _write(device / "class", "0x030200\n")
    for path in host.get("files", ()):
        _write(root / path, "kind: k8s.device-plugin.nvidia.com/gpu" if "cdi" in path else "")
    for name in host.get("sockets", ()):
        sockets.enter_context(_listening(root / _PLUGINS / name))


def _listening(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        listener.bind(path.name)
    listener.listen()
    return listener


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Sockets that are closed after the test."""
    with ExitStack() as stack:
        yield stack


def _shape(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "cluster_shapes" / f"{name}.yaml"
    shape: dict[str, Any] = yaml.safe_load(path.read_text())
    return shape


def _told(owners: Ownership) -> dict[str, str]:
    return {p.component: f"{p.owner} {p.does} {p.reasons[0].code}" for p in owners.parts}


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_each_part_of_a_recorded_cluster_has_its_owner(
    path: Path, tmp_path: Path, sockets: ExitStack
) -> None:
    shape = yaml.safe_load(path.read_text())
    _build(tmp_path, shape["host"], sockets)
    owners = ownership(shape_facts(shape, host_facts(tmp_path)))
    assert _told(owners) == shape["expect"]
    assert all(reason.code in CODES for part in owners.parts for reason in part.reasons)


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "missing", ["pods", "daemonSets", "crds", "deviceClasses", "resourceSlices", "host", "node"]
)
def test_a_source_that_cannot_be_read_never_makes_us_a_registrar(
    path: Path, missing: str, tmp_path: Path, sockets: ExitStack
) -> None:
    shape = yaml.safe_load(path.read_text())
    _build(tmp_path, shape["host"], sockets)
    host = None if missing == "host" else host_facts(tmp_path)
    if missing == "node":
        facts = node_facts(ClusterObjects(), host)
    else:
        facts = shape_facts(shape if missing == "host" else {**shape, missing: None}, host)
    owners = ownership(facts)
    assert not owners.registers
    assert owners.part("mig-manager").does != "run"


def test_capacity_without_a_pod_names_the_evidence_and_the_image() -> None:
    part = ownership(shape_facts(_shape("bottlerocket"), HostFacts(driver="580.95.05", gpus=8))).part(
        "device-plugin"
    )
    assert [reason.message for reason in part.reasons] == [
        "capacity nvidia.com/gpu=8 that we did not register",
        "device-plugin comes with the node (osImage=Bottlerocket OS 1.50.0 (aws-k8s-1.34-nvidia))",
    ]
    assert part.reasons[0].evidence == {"resource": "nvidia.com/gpu", "capacity": 8}
    assert part.command == "apiclient get settings.kubelet-device-plugins.nvidia"


def test_the_gke_trap_is_told_with_the_way_out() -> None:
    driver = ownership(shape_facts(_shape("gke-opted-out-no-driver"), HostFacts(gpus=8))).part("driver")
    assert "finishes GKE's driver installation" in driver.reasons[0].message
    assert driver.command == "kubectl label node gke-a100-2 gke-no-default-nvidia-gpu-device-plugin-"


def test_a_socket_that_nobody_answers_on_is_no_registrar(tmp_path: Path, sockets: ExitStack) -> None:
    _build(tmp_path, {"sockets": ["nvidia-gpu.sock"]}, sockets)
    assert host_facts(tmp_path).sockets == (f"/{_PLUGINS}/nvidia-gpu.sock",)
    sockets.close()
    assert (tmp_path / _PLUGINS / "nvidia-gpu.sock").exists()
    assert host_facts(tmp_path).sockets == ()


def test_an_empty_host_has_nothing(tmp_path: Path) -> None:
    assert host_facts(tmp_path) == HostFacts()


def test_a_foreign_mps_daemon_on_the_host_keeps_ours_away(tmp_path: Path, sockets: ExitStack) -> None:
    sockets.enter_context(_listening(tmp_path / "run/nvidia/mps/nvidia.com/gpu/pipe/control"))
    host = host_facts(tmp_path)
    assert host.mps == ("/run/nvidia/mps/nvidia.com/gpu/pipe",)
    shape = _shape("bare-with-toolkit")
    found = ownership(shape_facts(shape, msgspec.structs.replace(host, driver="580.95.05", gpus=8)))
    assert found.part("mps").owner == "external:host-service"
    assert found.registers


def test_our_own_mps_daemons_are_ours_and_those_beside_them_are_not(
    tmp_path: Path, sockets: ExitStack
) -> None:
    root = tmp_path / "run/nvidia/mps/nvidia.com"
    for name in ("gpu", "gpu.shared"):
        sockets.enter_context(_listening(root / name / "pipe/control"))
        (root / name / RECORD).touch()
    assert host_facts(tmp_path).mps == ()
    shape = _shape("bare-with-toolkit")
    host = msgspec.structs.replace(host_facts(tmp_path), driver="580.95.05", gpus=8)
    assert ownership(shape_facts(shape, host)).part("mps").does == "run"
    (root / "gpu.shared" / RECORD).unlink()
    assert host_facts(tmp_path).mps == ("/run/nvidia/mps/nvidia.com/gpu.shared/pipe",)


def test_a_record_outside_the_mps_root_makes_no_daemon_ours(tmp_path: Path, sockets: ExitStack) -> None:
    sockets.enter_context(_listening(tmp_path / "tmp/nvidia-mps/control"))
    (tmp_path / "tmp" / RECORD).touch()
    assert host_facts(tmp_path).mps == ("/tmp/nvidia-mps",)


def test_the_pipe_of_an_mps_daemon_that_has_ended_is_nobodys(tmp_path: Path, sockets: ExitStack) -> None:
    sockets.enter_context(_listening(tmp_path / "run/nvidia/mps/nvidia.com/gpu/pipe/control"))
    sockets.close()
    assert (tmp_path / "run/nvidia/mps/nvidia.com/gpu/pipe/control").is_socket()
    assert host_facts(tmp_path).mps == ()


def test_a_capacity_that_is_no_number_is_somebodys() -> None:
    shape = _shape("bare-with-toolkit")
    shape["node"]["status"]["capacity"]["nvidia.com/gpu"] = "plenty"
    found = ownership(shape_facts(shape, HostFacts(driver="580.95.05", gpus=8)))
    assert found.part("device-plugin").reasons[0].code == "RegisteredByOther"


def _where(operator: str) -> dict[str, Any]:
    expression = {"key": "kubernetes.io/os", "operator": operator}
    return {"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}


@pytest.mark.parametrize(
    ("spec", "registers"),
    [
        ({"nodeName": "other"}, True),
        ({"nodeName": "bare-8"}, False),
        ({"allNodes": True}, False),
        (_where("Exists"), False),
        (_where("DoesNotExist"), True),
    ],
)
def test_a_slice_of_gpus_counts_for_the_nodes_that_it_covers(spec: dict[str, Any], registers: bool) -> None:
    shape = _shape("bare-with-toolkit")
    shape["resourceSlices"] = [{"metadata": {"name": "s"}, "spec": {"driver": "gpu.nvidia.com", **spec}}]
    assert ownership(shape_facts(shape, HostFacts(driver="580.95.05", gpus=8))).registers is registers
