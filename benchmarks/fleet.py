"""A fleet to measure on: the real control plane with simulated nodes, and no scheduler.

The components are those of a local fleet with the same options, started here instead of by the supervisor,
so that schedulers can be switched one at a time. Everything lives in a temporary folder and ends with the
context. etcd does not wait for the disk: schedulers are measured here, not disks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from gpufleet.local import components, controlplane, fleetfile, kubeconfig, pki, probes, processes, settings
from gpufleet.local.layout import Layout, prepare, tail

READY_S = 120.0
ENDING_S = 15.0


class Fleet:
    """Running components by name. Programs started by `start` end with the fleet."""

    def __init__(
        self, layout: Layout, chosen: settings.Settings, programs: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.layout = layout
        self.settings = chosen
        self.programs = programs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.layout.kubeconfig

    def start(self, name: str, argv: Sequence[str]) -> None:
        """Start a program; its output is in the fleet's log folder under its name."""
        self.running[name] = processes.spawn(self.layout, name, argv, dict(os.environ))

    def stop(self, name: str) -> None:
        """End a program and wait until it is gone."""
        process = self.running.pop(name)
        process.terminate()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_component(self, name: str) -> None:
        """Start a component of the local fleet and wait until it answers."""
        [component] = [one for one in components.components(self.layout, self.settings) if one.name == name]
        self.start(name, component.argv)
        deadline = time.monotonic() + READY_S
        while not probes.answers(component.probe):
            self.must_run(name)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not answer within {READY_S:.0f} s")
            time.sleep(0.05)

    def must_run(self, name: str) -> None:
        """Raise with the last lines of its log when a program has ended."""
        code = self.running[name].poll()
        if code is not None:
            raise RuntimeError(f"{name} ended with status {code}; {self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """The end of a program's log, for error messages."""
        return "the end of its log:\n" + "\n".join(tail(self.layout.log(name)))

    def resident_mib(self) -> dict[str, float]:
        """Resident memory of each program with its children, in MiB."""
        return self._sums(lambda process: process.memory_info().rss / 2**20)

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time that each program has used with its children, those that have ended included."""
        return self._sums(lambda process: sum(process.cpu_times()[:4]))

    def _sums(self, measure: Callable[[psutil.Process], float]) -> dict[str, float]:
        found = {}
        for name, process in self.running.items():
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(process.pid)
                found[name] = sum(measure(one) for one in (root, *root.children(recursive=True)))
        return found


@contextlib.contextmanager
def fleet(preset: str, *, kubelets: bool) -> Iterator[Fleet]:
    """A control plane for `preset`, still without nodes and scheduler, on the disk of the temporary folder.

    Without `kubelets` nobody renews the nodes' Leases, so the controller that taints silent nodes is off.
    """
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that nothing outlives a benchmark that is ended
    programs = controlplane.locate([*components.CONTROL_PLANE, "kube-scheduler"], progress=report)
    with tempfile.TemporaryDirectory(prefix="gpufleet-bench-") as folder:
        layout = Layout("bench", Path(os.path.realpath(folder)) / "bench")
        prepare(layout)
        pki.ensure(layout.pki)
        _, text = fleetfile.load_fleet(preset)
        layout.fleet_file.write_text(text)
        ports, _ = settings.choose_ports({}, ours=lambda _: False)
        extra = (
            {}
            if kubelets
            else {components.CONTROLLER_MANAGER: ("--controllers=*,-node-lifecycle-controller",)}
        )
        chosen = settings.Settings(ports, programs, settings.Options(unsafe_no_fsync=True, extra_args=extra))
        kubeconfig.write_all(layout, ports["api-server"])
        one = Fleet(layout, chosen, programs)
        try:
            for name in components.CONTROL_PLANE:
                one.start_component(name)
            yield one
        finally:
            for name in reversed(list(one.running)):
                one.stop(name)
            processes.end_marked(layout, grace_s=5.0)


def report(step: object) -> None:
    """Show what is being prepared, on stderr."""
    print(f"  {step}", file=sys.stderr, flush=True)
