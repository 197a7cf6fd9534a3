"""Where a local fleet keeps its state, and how a file of it changes: whole or not at all.

One folder per fleet, named by the fleet, in the user's state folder (`$XDG_STATE_HOME`, else
`~/.local/state`). Everything that a fleet knows lies below it, so that two fleets share nothing but the
machine, `down` and `up` are independent of each other's process, and `clean` is the removal of one folder.
Folders are 0700 and files 0600: the admin certificate and the data of etcd are in there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from gpufleet.fleet.errors import GpufleetError

DEFAULT_FLEET = "default"
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ROOM_NEEDED_MIB = 256
_ANOTHER_FOLDER = "choose another folder: export XDG_STATE_HOME=/a/folder/of/yours"
_RUN_BEGINS = "=== started "


class Layout(msgspec.Struct, frozen=True):
    """The paths of one fleet. `root` is absolute and also the value of the environment marker of its
    processes.
    """

    name: str
    root: Path

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def etcd(self) -> Path:
        """The data of etcd: the whole state of the cluster."""
        return self.root / "etcd"

    @property
    def logs(self) -> Path:
        """One log per component, and the logs of workload processes."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """What is true only while processes run: their records and the supervisor's state."""
        return self.root / "run"

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig, complete in itself."""
        return self.root / "kubeconfig"

    @property
    def fleet_file(self) -> Path:
        """The fleet file in force."""
        return self.root / "fleet.yaml"

    @property
    def settings(self) -> Path:
        """How the components are started: ports, binaries, options."""
        return self.root / "settings.json"

    @property
    def supervisor_state(self) -> Path:
        """What the supervisor last knew about each component."""
        return self.run / "supervisor.json"

    @property
    def objects_applied(self) -> Path:
        """Present once the built-in objects are in the API server; clients that watch them start after it."""
        return self.run / "objects-applied"

    def log(self, component: str) -> Path:
        """The log of a component."""
        return self.logs / f"{component}.log"

    def record(self, component: str) -> Path:
        """The record of a component's process."""
        return self.run / f"{component}.json"

    def ready_file(self, component: str) -> Path:
        """The file that a Python component writes when it is ready."""
        return self.run / f"{component}.ready"

    def revision(self) -> str:
        """A digest of everything that the components are started from; it changes when `up` changes any of
        it.
        """
        digest = hashlib.sha256()
        for path in (self.settings, self.fleet_file):
            digest.update(path.read_bytes() if path.exists() else b"")
        return digest.hexdigest()

    @property
    def exists(self) -> bool:
        """Whether this fleet was ever started and not forgotten."""
        return self.settings.exists()


def fleets_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that has one folder per fleet. Raises when the environment names no place for state."""
    given = environ.get("XDG_STATE_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given) / "gpufleet"
    home = environ.get("HOME", "")
    if not home:
        raise GpufleetError(
            reason="NoStateFolder",
            message="neither XDG_STATE_HOME nor HOME is set, so there is no place for the state of a fleet",
            hint="export XDG_STATE_HOME=/an/absolute/folder",
        )
    return Path(home) / ".local" / "state" / "gpufleet"


def check_fleet_name(name: str) -> None:
    """Raise BadFleetName unless `name` is a DNS label, which it must be because contexts and objects bear
    it.
    """
    if not _DNS_LABEL.fullmatch(name):
        raise GpufleetError(
            reason="BadFleetName",
            message=f"{name!r} cannot name a fleet: use at most 63 of a-z, 0-9 and inner -",
            hint="gpufleet up --name my-fleet",
        )


def layout_of(name: str, environ: Mapping[str, str] = os.environ) -> Layout:
    """The layout of the fleet `name`; raises BadFleetName and NoStateFolder."""
    check_fleet_name(name)
    return Layout(name, Path(os.path.realpath(fleets_home(environ))) / name)


def known_fleets(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the fleets that have state on this machine, sorted."""
    home = fleets_home(environ)
    if not home.is_dir():
        return []
    return sorted(
        path.name
        for path in home.iterdir()
        if not path.name.startswith(".") and (path / "settings.json").exists()
    )


def prepare(layout: Layout) -> None:
    """Make the folders of a fleet, private to the user; raises when there is no permission or no room."""
    with file_errors(layout.root):
        layout.root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (layout.root, layout.pki, layout.etcd, layout.logs, layout.run):
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        free_mib = shutil.disk_usage(layout.root).free >> 20
    if free_mib < _ROOM_NEEDED_MIB:
        raise _disk_full(layout.root, f"{free_mib} MiB are free, a fleet needs {_ROOM_NEEDED_MIB}")


def forget(layout: Layout) -> None:
    """Remove a fleet's folder: at one moment, so that who waits for its lock finds all of it or nothing."""
    doomed = layout.root.with_name(f".{layout.name}.removed")
    with file_errors(layout.root):
        if doomed.exists():
            shutil.rmtree(doomed)
        layout.root.rename(doomed)
        shutil.rmtree(doomed)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`: a reader, or a crash at any moment, sees the old or the new
    whole.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rotate(log: Path, *, limit_bytes: int = 16 << 20) -> None:
    """Set a log aside as `NAME.1` when it has grown beyond the limit; the one before that is dropped."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > limit_bytes:
            log.replace(log.with_name(f"{log.name}.1"))


def begin_run(log: Path) -> int:
    """Open a log for the output of one more run, after a line that says so; a file descriptor."""
    rotate(log)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(output, f"{_RUN_BEGINS}{dt.datetime.now(dt.UTC).isoformat(timespec='seconds')}\n".encode())
    except OSError:
        os.close(output)
        raise
    return output


def tail(log: Path, *, lines: int = 8, reach_bytes: int = 16 << 10) -> list[str]:
    """The last lines of the last run in a log, oldest first; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - reach_bytes))
            text = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    begins = [number for number, line in enumerate(text) if line.startswith(_RUN_BEGINS)]
    return text[begins[-1] + 1 if begins else 0 :][-lines:]


@contextlib.contextmanager
def file_errors(where: Path, hint: str = _ANOTHER_FOLDER) -> Iterator[None]:
    """Turn what the file system says about `where` into an error with a remedy: `hint`, or another folder for
    the state of fleets.
    """
    try:
        yield
    except OSError as error:
        path = error.filename or where
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(where, str(error.strerror).lower(), hint) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise GpufleetError(
                reason="NoPermission",
                message=f"cannot write {path}: {str(error.strerror).lower()}",
                hint=f"make it yours, or {hint}",
            ) from error
        raise GpufleetError(
            reason="FileSystem",
            message=f"cannot use {path}: {str(error.strerror).lower()}",
            hint=f"look at the path, or {hint}",
        ) from error


def _disk_full(where: Path, why: str, hint: str = _ANOTHER_FOLDER) -> GpufleetError:
    return GpufleetError(
        reason="DiskFull",
        message=f"the disk that holds {where} is full: {why}; nothing was lost",
        hint=f"free some room, or {hint}",
    )
