"""A user's machine whose `go` is a small script: builds without network and without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpufleet.local import controlplane
from gpufleet.local.controlplane import BuildProgress, locate

FAKE_GO = """#!/bin/sh
compile() {
  if ! grep -qsx "$1" "$FAKE/compiled"; then
    echo "$1"
    echo "$1" >> "$FAKE/compiled"
  fi
}
verb=$1
shift
echo "$verb" >> "$FAKE/calls"
case $verb in
env)
  for name; do
    case $name in
    GOVERSION) cat "$FAKE/version" ;;
    GOMODCACHE) echo "${GOMODCACHE:-$FAKE/modules}" ;;
    GOCACHE) echo "${GOCACHE:-$FAKE/packages}" ;;
    esac
  done ;;
list)
  echo "go: downloading example.org/one v1.0.0"
  echo "go: downloading example.org/two v1.0.0"
  for i in $(seq 30); do echo "stale example.org/p$i"; done ;;
build)
  env > "$FAKE/environ"
  output=
  for word; do
    case $word in example.org/*) compile "$word" ;; esac
    if [ "$previous" = -o ]; then output=$word; fi
    previous=$word
  done
  if [ -z "$output" ]; then exit; fi
  printf half > "$output"
  for i in $(seq 30); do compile "example.org/p$i"; done
  if [ -e "$FAKE/fail" ]; then cat "$FAKE/fail"; exit 1; fi
  if [ -e "$FAKE/hang" ]; then
    echo $$ > "$FAKE/pid.part"
    mv "$FAKE/pid.part" "$FAKE/pid"
    while :; do echo still compiling; sleep 0.05; done
  fi
  echo "whole $word" > "$output"
  chmod +x "$output" ;;
esac
"""


@dataclass
class Machine:
    """A user's machine: home folder, cache folder, and a `go` that does what the files in `fake` say."""

    root: Path
    heard: list[BuildProgress | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "cache", "fake", "bin"):
            (self.root / name).mkdir()
        executable(self.root / "bin" / "go", FAKE_GO)
        self.fake = self.root / "fake"
        (self.fake / "version").write_text("go1.26.8\n")
        self.cache = self.root / "cache" / "gpufleet" / "controlplane"
        self.environ = {
            "PATH": f"{self.root / 'bin'}:{os.defpath}",
            "HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "FAKE": str(self.fake),
        }

    def locate(self, *components: str) -> dict[str, tuple[str, ...]]:
        return locate(components, progress=self.heard.append, environ=self.environ)

    def finished(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("v*/*"))

    def unfinished(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("unfinished-*"))

    def calls(self, verb: str) -> int:
        record = self.fake / "calls"
        return record.read_text().split().count(verb) if record.exists() else 0

    def go_environ(self) -> dict[str, str]:
        return dict(
            line.split("=", 1) for line in (self.fake / "environ").read_text().splitlines() if "=" in line
        )

    def in_another_process(self) -> subprocess.Popen[bytes]:
        """`locate(["etcd"])` in a Python of its own that hangs in `go build`; returns once it hangs."""
        (self.fake / "hang").touch()
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from gpufleet.local.controlplane import locate; locate(['etcd'], progress=lambda event: None)"
        )
        path = str(Path(controlplane.__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**self.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
        )
        wait_for((self.fake / "pid").exists)
        (self.fake / "hang").unlink()
        return process

    def compiler_runs(self) -> bool:
        """Whether the hanging `go` is there; one that ended and waits for its parent is not."""
        stat = Path(f"/proc/{(self.fake / 'pid').read_text().strip()}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    """A program at a path."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def wait_for(true: Callable[[], bool]) -> None:
    """Return once something is true."""
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def assets(machine: Machine, variable: str, *names: str) -> Path:
    """A folder of programs that a variable names."""
    folder = machine.root / variable.lower()
    folder.mkdir()
    for name in names:
        executable(folder / name)
    machine.environ[variable] = str(folder)
    return folder
