"""A real kubelet with containerd and runc beside it: its own folders, its own sockets, ended by pid.

What a machine needs is Debian's runc, containernetworking-plugins and busybox-static, and root; containerd is
Debian's too or a built one (`runtimes`). Images come from no registry: the one image is busybox, also for the
sandbox. The kubelet's folder of device plugins has a fixed path, so both programs live in a mount namespace
of their own in which that path is ours; the namespace takes every mount with it when it goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from tests.contract.servers import free_port
from tests.contract.simnodes.fleet import KubeletControlPlane
from tests.node.runtimes import Containerd, Places, cni_folder, found

from gpufleet.devices.cdi import SPEC_FOLDERS

IMAGE = "gpufleet.test/busybox:1"
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
_READY_WITHIN = 60.0


def image_archive() -> bytes:
    """The image as a docker archive: one layer with a static busybox and its applets."""
    busybox = found("busybox")
    assert busybox is not None
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "tmp", "etc", "dev", "proc", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for applet in ("sh", "sleep", "env", "cat", "ls", "echo", "true"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "2147483"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.getvalue())}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class RealNode:
    """containerd and a kubelet as child processes; the node's name is `name`. Below `host` lie the files of
    its host that tests make up, CDI specs among them.
    """

    def __init__(
        self,
        folder: Path,
        plane: KubeletControlPlane,
        kubelet: Sequence[str],
        containerd: Containerd,
        name: str,
    ) -> None:
        self.folder = folder
        self.host = folder / "host"
        self.containerd = containerd
        self.plane = plane
        self.name = name
        self.kubelet_root = folder / "kubelet"
        self.device_plugins = folder / "device-plugins"
        self.pod_resources = self.kubelet_root / "pod-resources" / "kubelet.sock"
        self.pod_logs = folder / "pod-logs"
        self._kubelet_command = kubelet
        self._socket = folder / "containerd.sock"
        self._state = folder / "containerd-state"
        self._port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start both; the node is Ready about a second later."""
        for path in (self.device_plugins, _DEVICE_PLUGINS):
            path.mkdir(parents=True, exist_ok=True)
        script = f"mount --bind {self.device_plugins} {_DEVICE_PLUGINS} && echo ready && exec sleep infinity"
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
        self._spawn("namespace", command)
        self._until(lambda: "ready" in self.log("namespace"), "namespace")
        self._start_containerd()
        self.start_kubelet()

    def _start_containerd(self) -> None:
        cni = self.folder / "cni"
        cni.mkdir()
        conflist = {
            "cniVersion": "0.4.0",
            "name": "gpufleet",
            "plugins": [{"type": "loopback"}],
        }
        (cni / "10-gpufleet.conflist").write_text(json.dumps(conflist))
        specs = tuple(self.host / path.lstrip("/") for path in SPEC_FOLDERS)
        for path in specs:
            path.mkdir(parents=True)
        programs = cni_folder()
        assert programs is not None
        places = Places(self.folder / "containerd", self._state, self._socket, cni, programs, specs, IMAGE)
        config = self.folder / "containerd.toml"
        config.write_text(self.containerd.config(places))
        self._spawn("containerd", [self.containerd.program("containerd"), "--config", str(config)])
        self._until(self._socket.exists, "containerd")
        archive = self.folder / "image.tar"
        archive.write_bytes(image_archive())
        self._until(lambda: self._ctr("version"), "containerd")
        assert self._ctr("-n", "k8s.io", "images", "import", str(archive)), self.log("containerd")[-2000:]

    def start_kubelet(self) -> None:
        """Start the kubelet."""
        self.kubelet_root.mkdir(exist_ok=True)
        config = self.folder / "kubelet.json"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "containerRuntimeEndpoint": f"unix://{self._socket}",
                    "cgroupDriver": "cgroupfs",
                    "cgroupsPerQOS": False,  # else kubelets of one machine remove each other's cgroups
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "enforceNodeAllocatable": [],
                    "localStorageCapacityIsolation": False,
                    "imageGCHighThresholdPercent": 100,
                    "address": "127.0.0.1",
                    "port": self._port,
                    "healthzPort": 0,
                    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
                    "authorization": {"mode": "AlwaysAllow"},
                    "nodeStatusUpdateFrequency": "1s",
                    "podLogsDir": str(self.pod_logs),
                }
            )
        )
        self._spawn(
            "kubelet",
            [
                *self._kubelet_command,
                f"--config={config}",
                f"--kubeconfig={self.plane.admin_kubeconfig()}",
                f"--root-dir={self.kubelet_root}",
                f"--hostname-override={self.name}",
                "--node-ip=127.0.0.1",
                "--v=2",
            ],
        )

    def stop_kubelet(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the kubelet; containers go on."""
        process = self._processes.pop("kubelet")
        self.plane.watch(process.pid)
        process.send_signal(number)
        process.wait(timeout=30)

    def stop(self) -> None:
        """End everything, also the shims and what runs below them."""
        shims = [
            p for p in psutil.process_iter(["cmdline"]) if str(self._socket) in (p.info["cmdline"] or [])
        ]
        below = [child for shim in shims for child in shim.children(recursive=True)]
        for process in self._processes.values():
            process.kill()
            process.wait(timeout=30)
        self._processes.clear()
        for one in (*shims, *below):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs([*shims, *below], timeout=10)
        self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        """Remove what runc would have removed: the cgroups of containers that ran until the end."""
        ids = {path.name for path in self._state.glob("io.containerd.runtime.v2.task/k8s.io/*")}
        hierarchies = Path("/sys/fs/cgroup")
        for path in (*hierarchies.glob("k8s.io/*"), *hierarchies.glob("*/k8s.io/*")):
            if path.name in ids:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def log(self, program: str) -> str:
        """What a program has logged."""
        return (self.folder / f"{program}.log").read_text(errors="replace")

    def _ctr(self, *words: str) -> bool:
        done = subprocess.run(
            [self.containerd.program("ctr"), "-a", str(self._socket), *words],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        path = f"{self.containerd.folder}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
        if namespace := self._processes.get("namespace"):
            command = ["nsenter", f"--target={namespace.pid}", "--mount", "--", *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | {"PATH": path},
            )
        self._processes[name] = process
        self.plane.watch(process.pid)

    def _until(self, what: Callable[[], bool], program: str) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not what():
            if self._processes[program].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log(program)[-3000:])
            time.sleep(0.05)
