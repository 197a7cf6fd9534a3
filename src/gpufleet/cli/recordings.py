"""Saved snapshots on the command line: read one, write one, or take one of a live cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpufleet.cli.cluster import client_for
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.scheduling.cycle import Policy
    from gpufleet.scheduling.recording import Recording

F = TypeVar("F", bound=Callable[..., Any])

AUTOMATIC = "auto"


def schedulers_option(default: str) -> Callable[[F], F]:
    """--schedulers: the scheduler names that gpufleet answers for; `default` says what holds without it."""
    return click.option(
        "--schedulers",
        metavar="NAMES",
        help=f"The schedulerNames to answer for, by comma (default: {default}).",
    )


def snapshot_option(function: F) -> F:
    """--snapshot: a saved snapshot instead of a live cluster."""
    text = "A saved snapshot (`gpufleet snapshot save`) to ask instead of a live cluster."
    return click.option("--snapshot", "saved", metavar="FILE", help=text)(function)


def no_cluster_beside(saved: str, *named: str | None) -> None:
    """Refuse a command line that names a saved snapshot and a cluster. Raises GpufleetError (Usage)."""
    if any(named):
        raise GpufleetError(
            reason="Usage",
            message=f"--snapshot {saved} is asked instead of a cluster, and a cluster is named, too",
            hint="use --snapshot, or --kubeconfig, --context or --name",
        )


async def live_recording(config: ClusterConfig, command: str, schedulers: str | None) -> Recording:
    """A live cluster now. Without `schedulers`, gpufleet answers for every known name without owner."""
    import asyncio

    from gpufleet.kube.snapshot import load_snapshot
    from gpufleet.scheduling.names import SchedulerNames
    from gpufleet.scheduling.recording import Recording

    async with client_for(config, command) as client:
        names = SchedulerNames(client, schedulers or AUTOMATIC)
        (snapshot, _), _ = await asyncio.gather(load_snapshot(client), names.refresh())
    return Recording(snapshot, names.policy())


def read_recording(file: str, schedulers: str | None = None) -> Recording:
    """The recording of a file (`-`: stdin), with other scheduler names where some are given.

    Raises GpufleetError: FileUnreadable, and those of `recording.from_bytes`.
    """
    import msgspec

    from gpufleet.scheduling.recording import from_bytes

    recording = from_bytes(_content(file), "stdin" if file == "-" else file)
    if schedulers is None:
        return recording
    return msgspec.structs.replace(recording, policy=_policy(schedulers, recording.policy))


def write_recording(recording: Recording, file: str) -> int:
    """Write a recording (`-`: to stdout), compressed where the name ends with .gz; its bytes. A file is there
    as a whole or not at all.
    """
    from gpufleet.scheduling.recording import to_bytes

    data = to_bytes(recording, compressed=file.endswith(".gz"))
    if file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return len(data)
    path = Path(file)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise GpufleetError(
            reason="FileSystem",
            message=f"cannot write {file}: {error.strerror}",
            hint="name a file in a folder that exists and that you may write to",
        ) from error
    return len(data)


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise GpufleetError(
            reason="FileUnreadable",
            message=f"cannot read {file}: {error.strerror}",
            hint="gpufleet snapshot save FILE writes a snapshot",
        ) from error


def _policy(schedulers: str, policy: Policy) -> Policy:
    import msgspec

    names = frozenset(name.strip() for name in schedulers.split(",") if name.strip())
    if AUTOMATIC in names:
        raise GpufleetError(
            reason="Usage",
            message=f"--schedulers {AUTOMATIC} asks a live cluster, and a saved snapshot is none",
            hint="leave it out: the snapshot has the names that were free when it was saved",
        )
    return msgspec.structs.replace(policy, schedulers=names)
