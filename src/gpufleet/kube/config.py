"""Which cluster to talk to, and as whom.

A `ClusterConfig` is the resolved answer: relative paths made absolute, contexts and merging gone.
It comes from an explicit kubeconfig, from $KUBECONFIG (several files, the first to name a thing wins), from
~/.kube/config, or from the service account of the pod that runs us, in this order.
What changes while a process lives (tokens) is named here and read by `gpufleet.kube.credentials`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kubeconfig import (
    ClusterEntry,
    ExecEntry,
    Kubeconfig,
    UserEntry,
    bad_kubeconfig,
    merge,
    read_bytes,
    read_kubeconfig,
)

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXEC_EXTENSION = "client.authentication.k8s.io/exec"


class ExecPlugin(msgspec.Struct, frozen=True):
    """A program that prints an ExecCredential. `cluster` is what it is told about the cluster, or None."""

    api_version: str
    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    install_hint: str = ""
    interactive_mode: str = "IfAvailable"
    cluster: Mapping[str, Any] | None = None


class ClusterConfig(msgspec.Struct, frozen=True):
    """One cluster and one user. `server` is a URL without trailing slash; certificates and keys are PEM.

    `token_file` is read again while the process runs and wins over `token`. `source` says where this comes
    from, `fleet` which fleet of this machine it is, if it is one: both for error messages. The representation
    shows no secret.
    """

    server: str
    ca_data: bytes | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = None
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    exec_plugin: ExecPlugin | None = None
    impersonate: tuple[tuple[str, str], ...] = ()
    """Impersonate-* headers."""
    namespace: str = "default"
    tls_server_name: str = ""
    insecure: bool = False
    proxy_url: str = ""
    source: str = ""
    context: str = ""
    fleet: str = ""

    def __repr__(self) -> str:
        return f"ClusterConfig(server={self.server!r}, context={self.context!r}, source={self.source!r})"


def load_config(
    kubeconfig: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """The cluster to talk to.

    Raises GpufleetError KubeconfigMissing, KubeconfigInvalid (with the file and what is wrong in it),
    ContextNotFound or NoCluster.
    """
    if kubeconfig:
        path = Path(kubeconfig).expanduser()
        return resolve(read_kubeconfig(path), context, source=str(path))
    named = [Path(part).expanduser() for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    home = environ.get("HOME")
    candidates = named or ([Path(home) / ".kube" / "config"] if home else [])
    files = [path for path in candidates if path.exists()]
    if files:
        return resolve(
            merge(read_kubeconfig(path) for path in files), context, source=", ".join(map(str, files))
        )
    if "KUBERNETES_SERVICE_HOST" in environ and context is None:
        return in_cluster_config(environ)
    missing = ", ".join(map(str, candidates)) or "no $KUBECONFIG, no $HOME"
    raise GpufleetError(
        reason="NoCluster",
        message=f"no cluster to talk to: no kubeconfig found ({missing}) and not inside a pod",
        hint="start a local fleet with `gpufleet up`, or set KUBECONFIG",
    )


def in_cluster_config(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_FOLDER) -> ClusterConfig:
    """The cluster around this pod, as its service account; the token is read from its file while we run."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    token, namespace = folder / "token", folder / "namespace"
    if not token.exists():
        raise GpufleetError(
            reason="NoServiceAccount",
            message=f"this pod has no service account token at {token}",
            hint="set automountServiceAccountToken: true, or set KUBECONFIG",
        )
    try:
        authority = (folder / "ca.crt").read_bytes()
    except OSError as error:
        raise GpufleetError(
            reason="NoServiceAccount", message=f"cannot read the cluster's CA certificate: {error}"
        ) from None
    return ClusterConfig(
        server=f"https://{host}:{port}",
        ca_data=authority,
        token_file=str(token),
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
        source="service account",
    )


def resolve(merged: Kubeconfig, context: str | None, source: str) -> ClusterConfig:
    """The cluster and user of one context (by default the current one) of a kubeconfig."""
    name = context or merged.current_context
    if not merged.contexts:
        raise bad_kubeconfig(
            source,
            "it has no contexts, so it names no cluster",
            "name another file with --kubeconfig or KUBECONFIG; "
            "`gpufleet kubeconfig --merge --into FILE` adds a local fleet to one",
        )
    if not name:
        raise bad_kubeconfig(
            source, "it has no current-context", f"choose one with --context: {_names(merged.contexts)}"
        )
    if name not in merged.contexts:
        raise GpufleetError(
            reason="ContextNotFound",
            message=f"context {name!r} is not in {source}",
            hint=f"known contexts: {_names(merged.contexts)}",
        )
    chosen = merged.contexts[name]
    cluster = merged.clusters.get(chosen.cluster)
    if cluster is None:
        raise bad_kubeconfig(
            source, f"context {name!r} names the cluster {chosen.cluster!r}, which is not defined"
        )
    if not cluster.server:
        raise bad_kubeconfig(source, f"cluster {chosen.cluster!r} has no server")
    user = merged.users.get(chosen.user, UserEntry()) if chosen.user else UserEntry()
    if chosen.user and chosen.user not in merged.users:
        raise bad_kubeconfig(source, f"context {name!r} names the user {chosen.user!r}, which is not defined")
    if user.auth_provider:
        provider = user.auth_provider.get("name", "?")
        raise bad_kubeconfig(
            source,
            f"user {chosen.user!r} uses the auth-provider {provider!r}, which Kubernetes has removed",
            "use the exec plugin of your cloud",
        )
    certificate = read_bytes(
        user.client_certificate_data, user.client_certificate, "client-certificate", source
    )
    key = read_bytes(user.client_key_data, user.client_key, "client-key", source)
    if bool(certificate) != bool(key):
        raise bad_kubeconfig(source, f"user {chosen.user!r} has a client certificate or a key but not both")
    authority = read_bytes(
        cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority", source
    )
    secure = bool(authority or certificate or cluster.insecure_skip_tls_verify)
    return ClusterConfig(
        server=_server_url(cluster.server, secure=secure),
        ca_data=None if cluster.insecure_skip_tls_verify else authority,
        client_certificate=certificate,
        client_key=key,
        token=user.token,
        token_file=user.token_file,
        username=user.username,
        password=user.password,
        exec_plugin=_exec_plugin(user.exec, cluster, authority) if user.exec else None,
        impersonate=_impersonation(user),
        namespace=chosen.namespace or "default",
        tls_server_name=cluster.tls_server_name,
        insecure=cluster.insecure_skip_tls_verify,
        proxy_url=cluster.proxy_url,
        source=source,
        context=name,
    )


def _server_url(server: str, *, secure: bool) -> str:
    url = server if "://" in server else f"{'https' if secure else 'http'}://{server}"
    return url.rstrip("/")


def _exec_plugin(entry: ExecEntry, cluster: ClusterEntry, authority: bytes | None) -> ExecPlugin:
    told: dict[str, Any] | None = None
    if entry.provide_cluster_info:
        extensions = cluster.extensions or ()
        told = {
            "server": cluster.server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": base64.b64encode(authority).decode() if authority else "",
            "proxy-url": cluster.proxy_url,
            "config": next((e.extension for e in extensions if e.name == EXEC_EXTENSION), None),
        }
        told = {key: value for key, value in told.items() if value}
    return ExecPlugin(
        api_version=entry.api_version,
        command=entry.command,
        args=tuple(entry.args or ()),
        env=tuple((variable.name, variable.value) for variable in entry.env or ()),
        install_hint=entry.install_hint or "",
        interactive_mode=entry.interactive_mode,
        cluster=told,
    )


def _impersonation(user: UserEntry) -> tuple[tuple[str, str], ...]:
    headers = [("Impersonate-User", user.as_user), ("Impersonate-Uid", user.as_uid)]
    headers += [("Impersonate-Group", group) for group in user.as_groups or ()]
    for name, values in (user.as_user_extra or {}).items():
        headers += [(f"Impersonate-Extra-{quote(name.lower(), safe='')}", value) for value in values]
    return tuple((name, value) for name, value in headers if value)


def _names(entries: Mapping[str, object]) -> str:
    return ", ".join(sorted(entries))
