"""Which cluster a command means.

What is said on the command line wins: --kubeconfig or --context, or --name (a local fleet). Then
$KUBECONFIG, then the local fleet `default` if it exists, then ~/.kube/config, then the pod that we run in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.layout import DEFAULT_FLEET, Layout, fleets_home, known_fleets, layout_of

if TYPE_CHECKING:
    from gpufleet.kube.client import Client
    from gpufleet.kube.config import ClusterConfig

_PATIENCE_S = 10.0
_TRY_AGAIN_S = 5.0


def choose_cluster(
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
    environ: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """The cluster that a command talks to. Raises GpufleetError when there is none, or two are named."""
    import msgspec

    config = _chosen_config(kubeconfig, context, name, environ)
    return msgspec.structs.replace(config, fleet=_fleet_of(config, environ))


def client_for(config: ClusterConfig, command: str) -> Client:
    """The client of a command that somebody waits for: a server that hangs is given up on after one try."""
    from gpufleet.kube.client import Client

    return Client(config, user_agent=f"gpufleet-{command}", deadline=_TRY_AGAIN_S, patience=_PATIENCE_S)


def _chosen_config(
    kubeconfig: str | None, context: str | None, name: str | None, environ: Mapping[str, str]
) -> ClusterConfig:
    from gpufleet.kube.config import load_config

    if name is not None:
        if kubeconfig or context:
            other = "--kubeconfig" if kubeconfig else "--context"
            raise GpufleetError(
                reason="Usage",
                message=f"--name {name} is a fleet of this machine, and {other} names a cluster, too",
                hint=f"use --name or {other}, not both",
            )
        return load_config(str(existing_fleet(name, environ).kubeconfig), None, environ)
    if kubeconfig or context:
        return load_config(kubeconfig, context, environ)
    if not environ.get("KUBECONFIG"):
        local = _default_fleet(environ)
        if local is not None:
            return load_config(str(local.kubeconfig), None, environ)
    try:
        return load_config(None, None, environ)
    except GpufleetError as error:
        if error.reason != "NoCluster":
            raise
        raise GpufleetError(
            reason=error.reason, message=error.message, hint=_which(environ, error.hint)
        ) from None


def _fleet_of(config: ClusterConfig, environ: Mapping[str, str]) -> str:
    """The name of the fleet of this machine that a cluster is, by its kubeconfig or, where that was merged
    into another one, by its context; empty for any other cluster.
    """
    try:
        home, known = fleets_home(environ).resolve(), known_fleets(environ)
    except GpufleetError:
        return ""
    folder = Path(config.source).resolve().parent
    if folder.parent == home:
        return folder.name
    return next((name for name in known if config.context == f"gpufleet-{name}"), "")


def chosen_fleet(name: str | None, environ: Mapping[str, str] = os.environ) -> Layout:
    """The local fleet that a command means: --name, the one whose kubeconfig $KUBECONFIG names, or the
    default.
    """
    if name is not None:
        return layout_of(name, environ)
    named = environ.get("KUBECONFIG", "")
    if named and os.pathsep not in named:
        folder = Path(named).resolve().parent
        if folder.parent == fleets_home(environ).resolve():
            return layout_of(folder.name, environ)
    return layout_of(DEFAULT_FLEET, environ)


def existing_fleet(name: str | None, environ: Mapping[str, str] = os.environ) -> Layout:
    """Like `chosen_fleet`, for commands that need the fleet to exist; raises FleetNotFound."""
    layout = chosen_fleet(name, environ)
    if layout.exists:
        return layout
    raise no_fleet(layout, environ)


def no_fleet(layout: Layout, environ: Mapping[str, str] = os.environ) -> GpufleetError:
    """The error for a local fleet that does not exist."""
    others = known_fleets(environ)
    up = "gpufleet up" + (f" --name {layout.name}" if layout.name != DEFAULT_FLEET else "")
    return GpufleetError(
        reason="FleetNotFound",
        message=f"there is no local fleet {layout.name!r}",
        hint=up + (f"; known fleets: {', '.join(others)} (choose with --name)" if others else ""),
    )


def _which(environ: Mapping[str, str], hint: str) -> str:
    """What to type where no cluster was named: one of the local fleets, if there are any."""
    try:
        known = known_fleets(environ)
    except GpufleetError:
        return hint
    if not known:
        return hint
    return f"choose a local fleet with --name {known[0]} (known: {', '.join(known)}), or set KUBECONFIG"


def _default_fleet(environ: Mapping[str, str]) -> Layout | None:
    try:
        layout = layout_of(DEFAULT_FLEET, environ)
    except GpufleetError:
        return None
    return layout if layout.exists else None


def named_pod(text: str, chosen: str | None, default: str) -> tuple[str, str]:
    """Namespace and name of a pod: POD, pod/POD or NAMESPACE/POD; where the text has no namespace it is the
    `chosen` one (-n) or the `default`. Raises GpufleetError (Usage) when two are named.
    """
    before, _, name = text.rpartition("/")
    if before in ("", "pod", "pods"):
        return chosen or default, name
    if chosen not in (None, "", before):
        raise GpufleetError(
            reason="Usage",
            message=f"{text} names the namespace {before}, and -n {chosen} another one",
            hint=f"{name} -n {before}, or {name} -n {chosen}",
        )
    return before, name


def no_pod(namespace: str, pod: str) -> GpufleetError:
    """The error for a pod that does not exist."""
    return GpufleetError(
        reason="NotFound",
        message=f"there is no pod {namespace}/{pod}",
        hint="kubectl get pods -A, or choose -n NAMESPACE",
    )


def name_flag(config: ClusterConfig) -> str:
    """What a command that is suggested must add to mean the same cluster."""
    return f" --name {config.fleet}" if config.fleet not in ("", DEFAULT_FLEET) else ""
