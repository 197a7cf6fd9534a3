"""A host with NVIDIA's container toolkit: files below a folder, a stand-in for nvidia-ctk among them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from gpufleet.devices import cdi
from gpufleet.devices.allocation import access_keys
from gpufleet.devices.inventory import Inventory

PROGRAMS = Path(__file__).parent / "programs"
SMI = """#!/bin/sh
echo "nvidia-smi $*" >> "$HOST_ROOT/calls"
"""


class CdiHost:
    """The host whose file system is at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.enter = (str(PROGRAMS / "enter-host"), str(root))
        self.specs = root / cdi.SPEC_FOLDERS[-1].lstrip("/")
        for folder in ("usr/bin", "faults", "dev/nvidia-caps", "proc/driver/nvidia-caps"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        smi = root / "usr/bin/nvidia-smi"
        smi.write_text(SMI)
        smi.chmod(0o755)

    def install(self) -> None:
        """Put the toolkit onto the host."""
        toolkit = self.root / "usr/bin/nvidia-ctk"
        text = (PROGRAMS / "nvidia-ctk").read_text().partition("\n")[2]
        toolkit.write_text(f"#!{sys.executable}\n{text}")
        toolkit.chmod(0o755)

    def remove(self) -> None:
        """Take the toolkit and all specs away."""
        (self.root / "usr/bin/nvidia-ctk").unlink(missing_ok=True)
        shutil.rmtree(self.specs, ignore_errors=True)

    def show(self, inventory: Inventory) -> None:
        """Have the driver know these GPUs and MIG devices."""
        minors, devices = dict[str, int](), list[dict[str, Any]]()
        for gpu in inventory.gpus:
            nodes = [f"/dev/nvidia{gpu.minor}"]
            devices.append({"index": str(gpu.index), "uuid": gpu.uuid, "nodes": nodes})
            pairs = [(one.id, part.uuid) for one in gpu.instances for part in one.compute]
            for number, (_, uuid) in enumerate(sorted(pairs)):
                keys = access_keys(gpu, uuid)
                minors |= {key: len(minors) + offset for offset, key in enumerate(keys, 1)}
                caps = [f"/dev/nvidia-caps/nvidia-cap{minors[key]}" for key in keys]
                devices.append({"index": f"{gpu.index}:{number}", "uuid": uuid, "nodes": [*nodes, *caps]})
        lines = "".join(f"{key} {number}\n" for key, number in minors.items())
        (self.root / "proc/driver/nvidia-caps/mig-minors").write_text(lines)
        (self.root / "gpus.json").write_text(json.dumps(devices))

    def fault(self, name: str, *, on: bool = True) -> None:
        """Make the toolkit fail in some way, or well again."""
        path = self.root / "faults" / name
        path.touch() if on else path.unlink()

    def calls(self) -> list[str]:
        """What was called so far, with its arguments."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def nodes_of(self, uuid: str) -> list[str]:
        """The device nodes that a device needs."""
        devices = json.loads((self.root / "gpus.json").read_text())
        return next(list(one["nodes"]) for one in devices if one["uuid"] == uuid)
