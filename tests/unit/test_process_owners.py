"""Which pod a process belongs to, as kubelets and container runtimes name control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpufleet.devices.process_owners import ProcessOwners, pod_uid

UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
SLICE = f"kubelet-kubepods-besteffort-pod{UID.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("cgroups", "expected"),
    [
        (f"0::/kubelet.slice/kubelet-kubepods.slice/{SLICE}/cri-containerd-5c1f.scope\n", UID),
        (f"0::/kubepods/burstable/pod{UID}/5c1f\n", UID),
        (f"12:cpu,cpuacct:/kubepods/pod{UID}/5c1f\n11:memory:/kubepods/pod{UID}/5c1f\n", UID),
        ("0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/5c1f\n", "0123456789abcdef" * 2),
        ("0::/system.slice/nvidia-persistenced.service\n", ""),
        ("0::/user.slice/podman-1234.scope\n", ""),
        ("", ""),
    ],
)
def test_a_pod_is_known_by_its_control_group(cgroups: str, expected: str) -> None:
    assert pod_uid(cgroups) == expected


def test_a_process_that_is_gone_belongs_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(f"0::/kubepods/pod{UID}/5c1f\n")
    owners = ProcessOwners(tmp_path)
    assert [owners.pod(7), owners.pod(8)] == [UID, ""]
