"""Which pod a process belongs to, by its control group, whose path every kubelet builds from the pod's uid.

The driver of cgroups writes the uid as it is (cgroupfs) or with underscores (systemd); that of a static pod
has no dashes. Needs the host's /proc.
Source: kubelet pkg/kubelet/cm (pod container manager), cgroups(7).
"""

from __future__ import annotations

import re
from pathlib import Path

_POD = re.compile(r"\bpod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})\b")


def pod_uid(cgroups: str) -> str:
    """The uid of the pod in the content of /proc/<pid>/cgroup; empty when it is in none."""
    found = _POD.search(cgroups)
    return found.group(1).replace("_", "-") if found else ""


class ProcessOwners:
    """Asks the /proc of the host whose file system is at `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._processes = root / "proc"

    def pod(self, pid: int) -> str:
        """The uid of a process' pod; empty when it is in none, or gone."""
        try:
            return pod_uid((self._processes / str(pid) / "cgroup").read_text())
        except OSError:
            return ""
