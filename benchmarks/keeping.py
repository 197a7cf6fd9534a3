"""Numbers of benchmarks kept as JSON, beside the machine that they depend on."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

import gpufleet
from gpufleet.local.controlplane import KUBERNETES_VERSION

RESULTS = Path(__file__).resolve().parent / "results"


def keep(folder: Path, name: str, found: Mapping[str, Any]) -> Path:
    """Write what was found, with time and machine, to a file of its own in the folder."""
    now = dt.datetime.now(dt.UTC)
    content = {"measured": now.isoformat(timespec="seconds"), "machine": machine(), **found}
    path = folder / f"{name}-{now:%Y-%m-%d-%H%M%S}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = [line.split(":")[1].strip() for line in cpu_info() if line.startswith("model name")]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kubernetes": KUBERNETES_VERSION,
        "gpufleet": gpufleet.__version__,
        "commit": commit(),
    }


def cpu_info() -> list[str]:
    """The lines of the kernel's description of the processors."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str:
    """The commit that was measured, with `-dirty` when files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
