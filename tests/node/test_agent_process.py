"""`gpufleet agent` as a process: one look at a node, and its life until a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.node.agent_world import DRIVER_FILES
from tests.node.nvml_nodes import NvmlNode, cut_node, whole_node

GPUFLEET = (sys.executable, "-c", "from gpufleet.cli import main; raise SystemExit(main())")


def agent(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*GPUFLEET, "agent", *words],
        capture_output=True, text=True, timeout=60, env=os.environ | environ, check=False,
    )  # fmt: skip


def look(node: NvmlNode) -> Any:
    """What one look prints for scripts."""
    for path, text in DRIVER_FILES.items():
        (node.root / path).parent.mkdir(parents=True, exist_ok=True)
        (node.root / path).write_text(text)
    done = agent("--once", "--host-root", str(node.root), "-o", "json", "--node", "n1")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_look_shows_devices_labels_and_the_owner_of_each_part(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("h100", 2))
    said = look(nvml_node)
    assert (said["node"], said["driver"]) == ("n1", nvml_node.machine.driver)
    assert [one["name"] for one in said["devices"]] == ["NVIDIA H100 80GB HBM3"] * 2
    assert len(said["devices"][0]["instances"]) == 4
    assert said["labels"]["nvidia.com/gpu.count"] == "2"
    assert [part["component"] for part in said["parts"]] == [
        "driver", "toolkit", "device-plugin", "exporter", "labels", "mig-manager", "mps",
    ]  # fmt: skip
    assert all(part["owner"] and part["reasons"] for part in said["parts"])
    plugin = next(part for part in said["parts"] if part["component"] == "device-plugin")
    assert plugin["does"] == "leave", "without the cluster's word somebody may own it"


def test_one_look_at_a_machine_without_gpus_says_why_there_are_none(tmp_path: Path) -> None:
    done = agent("--once", "--host-root", str(tmp_path), "-o", "json")
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert said["devices"] == []
    assert said["problem"] == "there is no libnvidia-ml.so.1 that can be loaded"
    text = agent("--once", "--host-root", str(tmp_path)).stdout
    assert "device-plugin" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--once", "--host-root", "/does/not/exist"), 1, "HostRootNotFound"),
        (("--once", "--config-file", "/does/not/exist.yaml"), 1, "PluginConfigUnreadable"),
        (("-o", "json"), 2, "--once"),
    ],
)
def test_what_cannot_be_is_one_clear_error(words: tuple[str, ...], code: int, said: str) -> None:
    done = agent(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_without_a_driver_waits_for_one_and_ends_on_a_signal(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n"
    )
    words = ["agent", "--host-root", str(tmp_path), "--kubeconfig", str(kubeconfig), "--metrics-port", "0"]
    process = subprocess.Popen([*GPUFLEET, *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "no GPUs yet" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_look_does_not_change_the_machine(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    before = nvml_node.machine
    look(nvml_node)
    assert nvml_node.machine == before
