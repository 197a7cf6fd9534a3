"""A local fleet under test, driven through its public face: the command line as a subprocess."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

GPUFLEET = (sys.executable, "-P", "-c", "import sys; from gpufleet.cli import main; sys.exit(main())")
MARKER = "GPUFLEET_FLEET"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "controller", "devices", "simulated-nodes")

TINY = """\
groups:
  - name: train
    count: 2
    gpu: h100
  - name: infer
    count: 1
    gpu: l4
    gpusPerNode: 4
"""
"""Three nodes, 20 GPUs."""


class LocalFleet(msgspec.Struct, frozen=True):
    """One fleet by name, with the folder that holds its state and the environment of its commands."""

    name: str
    state_home: Path
    environ: Mapping[str, str]

    @classmethod
    def at(cls, state_home: Path, name: str) -> LocalFleet:
        """The fleet `name`, which need not exist yet; the tester's own fleets and clusters are not seen."""
        clean = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", MARKER)}
        return cls(name, state_home, {**clean, "XDG_STATE_HOME": str(state_home)})

    @property
    def root(self) -> Path:
        """Its state folder."""
        return self.state_home / "gpufleet" / self.name

    @property
    def kubeconfig(self) -> Path:
        """Its kubeconfig."""
        return self.root / "kubeconfig"

    def run(self, command: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """`gpufleet COMMAND --name NAME ARGUMENTS`, whatever its exit code."""
        return subprocess.run(
            [*GPUFLEET, command, "--name", self.name, *arguments],
            env=dict(self.environ), capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """The same without waiting for its end."""
        return subprocess.Popen(
            [*GPUFLEET, command, "--name", self.name, *arguments],
            env=dict(self.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def up(self, *arguments: str) -> str:
        """Bring it up, which must succeed; what was printed. etcd does not wait for the disk here."""
        done = self.run("up", "--unsafe-no-fsync", *arguments)
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def down(self, *arguments: str) -> str:
        """Take it down, which must succeed; what was printed."""
        done = self.run("down", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> Any:
        """`status -o json`."""
        done = self.run("status", "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def component(self, name: str) -> Any:
        """One component of the status."""
        return next(one for one in self.status()["components"] if one["name"] == name)

    def ports(self) -> dict[str, int]:
        """Its ports by name."""
        settings = json.loads((self.root / "settings.json").read_text())
        ports: dict[str, int] = settings["ports"]
        return ports

    def processes(self) -> dict[int, str]:
        """Pids and command lines of all processes that carry its marker."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == str(self.root.resolve()):
                    found[process.pid] = " ".join(process.cmdline())
            except psutil.Error:
                continue
        return found

    def listening(self) -> list[int]:
        """Which of its ports something listens on."""
        listening = {
            connection.laddr.port
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr
        }
        return [port for port in self.ports().values() if port in listening]

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a component; its pid."""
        pid: int = self.component(component)["pid"]
        os.kill(pid, number)
        return pid

    def logs(self) -> str:
        """The ends of all logs, for the message of a failed test."""
        ends = []
        for log in sorted((self.root / "logs").glob("*.log")):
            ends.append(f"\n== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "".join(ends)


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    """Return once `condition` holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
