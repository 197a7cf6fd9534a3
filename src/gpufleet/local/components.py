"""What a fleet consists of: each component's command line, what it waits for, and how it says that it is
ready.

The control plane is configured as a cluster would be (RBAC, service account tokens, request headers for
aggregated APIs, real TLS everywhere), except that everything listens on loopback only and that leaders need
no election. Pure: a function of the layout and the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
from pathlib import Path

import msgspec

import gpufleet
from gpufleet.local import pki
from gpufleet.local.layout import Layout
from gpufleet.local.settings import Settings

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
CONTROLLER = "controller"
DEVICES = "devices"
SIMULATED_NODES = "simulated-nodes"
BRIDGE = "bridge"
SUPERVISOR = "supervisor"

PACKAGE = Path(gpufleet.__file__).resolve().parent
"""Our own source: what runs it is started anew when it changed."""

CONTROL_PLANE = (ETCD, API_SERVER, CONTROLLER_MANAGER)

SERVICE_RANGE = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"


class HttpProbe(msgspec.Struct, frozen=True):
    """Ready when a GET on loopback answers 200; plain HTTP without `authority`, `client` for mutual TLS."""

    port: int
    path: str
    authority: Path | None = None
    client: pki.Pair | None = None


class FileProbe(msgspec.Struct, frozen=True):
    """Ready when the component has written this file; it is removed before each start."""

    path: Path


class Component(msgspec.Struct, frozen=True):
    """One process of a fleet.

    It starts once the components in `after` answer and the file `needs` exists, and is restarted on reload
    when its command line or the content of one of `inputs` changed (a file, or a folder with Python modules).
    `grace_s` is how long it may take to end.
    `handover` is the signal that ends it when a successor takes over what it runs, `look_again` the one that
    tells it, while it runs, that somebody has typed `up`.
    """

    name: str
    argv: tuple[str, ...]
    probe: HttpProbe | FileProbe
    after: tuple[str, ...] = ()
    needs: Path | None = None
    inputs: tuple[Path, ...] = ()
    grace_s: float = 10.0
    handover: signal.Signals = signal.SIGTERM
    look_again: signal.Signals | None = None

    def fingerprint(self) -> str:
        """A digest of everything that the process was started with."""
        digest = hashlib.sha256("\0".join(self.argv).encode())
        for given in self.inputs:
            # A file may go away while we look, in the middle of a `git pull`: then the digest is another.
            with contextlib.suppress(FileNotFoundError):
                for path in sorted(given.rglob("*.py")) if given.is_dir() else [given]:
                    digest.update(f"\0{path}\0".encode() + path.read_bytes())
        return digest.hexdigest()


def components(layout: Layout, settings: Settings) -> tuple[Component, ...]:
    """The components of a fleet in the order of their start; they end in the reverse order."""
    plain = [
        _etcd(layout, settings),
        _api_server(layout, settings),
        _controller_manager(layout, settings),
        _controller(layout, settings),
        _devices(layout, settings),
        _simulated_nodes(layout, settings),
    ]
    if settings.options.bridge:
        plain.append(_bridge(layout, settings))
    extra = settings.options.extra_args
    return tuple(
        msgspec.structs.replace(one, argv=one.argv + tuple(extra.get(one.name, ()))) for one in plain
    )


def _etcd(layout: Layout, settings: Settings) -> Component:
    client = f"https://127.0.0.1:{settings.ports['etcd-client']}"
    peer = f"https://127.0.0.1:{settings.ports['etcd-peer']}"
    server, authority = pki.pair(layout.pki, "etcd-server"), pki.pair(layout.pki, "etcd-ca").cert
    argv = [
        *settings.programs[ETCD],
        "--name=default",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        f"--cert-file={server.cert}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={authority}",
        "--client-cert-auth",
        f"--peer-cert-file={server.cert}",
        f"--peer-key-file={server.key}",
        f"--peer-trusted-ca-file={authority}",
        "--peer-client-cert-auth",
        f"--quota-backend-bytes={4 << 30}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        "--log-level=warn",
    ]
    if settings.options.unsafe_no_fsync:
        argv.append("--unsafe-no-fsync")
    probe = HttpProbe(
        settings.ports["etcd-client"], "/health", authority, pki.pair(layout.pki, "etcd-client")
    )
    return Component(ETCD, tuple(argv), probe)


def _api_server(layout: Layout, settings: Settings) -> Component:
    port, options, folder = settings.ports["api-server"], settings.options, layout.pki
    serving, etcd = pki.pair(folder, "apiserver"), pki.pair(folder, "etcd-client")
    kubelet, proxy = pki.pair(folder, "apiserver-kubelet-client"), pki.pair(folder, "front-proxy-client")
    authority = pki.pair(folder, "ca").cert
    argv = [
        *settings.programs[API_SERVER],
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        # Endpoints of the service `kubernetes` may not be loopback addresses: they exist only with a bridge.
        f"--advertise-address={options.bridge or '127.0.0.1'}",
        f"--endpoint-reconciler-type={'lease' if options.bridge else 'none'}",
        f"--etcd-servers=https://127.0.0.1:{settings.ports['etcd-client']}",
        f"--etcd-cafile={pki.pair(folder, 'etcd-ca').cert}",
        f"--etcd-certfile={etcd.cert}",
        f"--etcd-keyfile={etcd.key}",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority}",
        f"--authorization-mode={options.authorization}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={folder / 'sa.pub'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        f"--requestheader-client-ca-file={pki.pair(folder, 'front-proxy-ca').cert}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={proxy.cert}",
        f"--proxy-client-key-file={proxy.key}",
        # No kube-proxy plays here, so an aggregated API is reached at its endpoints.
        "--enable-aggregator-routing=true",
        f"--kubelet-client-certificate={kubelet.cert}",
        f"--kubelet-client-key={kubelet.key}",
        f"--kubelet-certificate-authority={authority}",
        "--kubelet-preferred-address-types=InternalIP",
        "--enable-admission-plugins=ExtendedResourceToleration",
        "--feature-gates=GenericWorkload=true",
        "--runtime-config=scheduling.k8s.io/v1beta1=true",
        "--allow-privileged=true",
        "--profiling=false",
        "--max-requests-inflight=3000",
        "--max-mutating-requests-inflight=1500",
    ]
    return Component(API_SERVER, tuple(argv), HttpProbe(port, "/readyz", authority), after=(ETCD,))


def _controller_manager(layout: Layout, settings: Settings) -> Component:
    port, folder = settings.ports["controller-manager"], layout.pki
    serving, authority = pki.pair(folder, "controller-manager-server"), pki.pair(folder, "ca")
    kubeconfig = component_kubeconfig(layout, CONTROLLER_MANAGER)
    argv = [
        *settings.programs[CONTROLLER_MANAGER],
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority.cert}",
        f"--requestheader-client-ca-file={pki.pair(folder, 'front-proxy-ca').cert}",
        f"--root-ca-file={authority.cert}",
        f"--cluster-signing-cert-file={authority.cert}",
        f"--cluster-signing-key-file={authority.key}",
        f"--service-account-private-key-file={folder / 'sa.key'}",
        "--use-service-account-credentials=false",
        "--leader-elect=false",
        "--feature-gates=GenericWorkload=true",
        "--profiling=false",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--concurrent-replicaset-syncs=10",
        "--concurrent-deployment-syncs=10",
        "--concurrent-job-syncs=10",
        "--concurrent-gc-syncs=20",
    ]
    probe = HttpProbe(port, "/healthz", authority.cert)
    return Component(CONTROLLER_MANAGER, tuple(argv), probe, after=(API_SERVER,))


def _controller(layout: Layout, settings: Settings) -> Component:
    return _rooms(CONTROLLER, "scheduling", layout, settings, "--scheduler-names=auto")


def _devices(layout: Layout, settings: Settings) -> Component:
    return _rooms(DEVICES, "devices", layout, settings)


def _rooms(name: str, rooms: str, layout: Layout, settings: Settings, *arguments: str) -> Component:
    port = settings.ports[f"{name}-metrics"]
    argv = [
        *_python("gpufleet.controller"),
        f"--rooms={rooms}",
        f"--kubeconfig={component_kubeconfig(layout, name)}",
        f"--metrics-port={port}",
        *arguments,
        "--lease-namespace=kube-system",
        # One leader on one machine: after a kill its successor need not wait as long as on a cluster.
        "--lease-seconds=6",
    ]
    return Component(
        name,
        tuple(argv),
        HttpProbe(port, "/readyz"),
        after=(API_SERVER,),
        needs=layout.objects_applied,
        inputs=(PACKAGE,),
    )


def _simulated_nodes(layout: Layout, settings: Settings) -> Component:
    port, serving = settings.ports["simulated-nodes-metrics"], pki.pair(layout.pki, "kubelet")
    argv = [
        *_python("gpufleet.local.simnodes"),
        f"--kubeconfig={component_kubeconfig(layout, SIMULATED_NODES)}",
        f"--fleet={layout.fleet_file}",
        f"--kubelet-port={settings.ports['kubelet']}",
        f"--kubelet-cert={serving.cert}",
        f"--kubelet-key={serving.key}",
        f"--client-ca={pki.pair(layout.pki, 'ca').cert}",
        f"--metrics-port={port}",
        f"--exporter-port={settings.ports['exporter']}",
        f"--state={layout.root}",
    ]
    return Component(
        SIMULATED_NODES,
        tuple(argv),
        HttpProbe(port, "/readyz"),
        after=(API_SERVER,),
        needs=layout.objects_applied,
        inputs=(PACKAGE, layout.fleet_file),
        handover=signal.SIGUSR1,
        look_again=signal.SIGHUP,
    )


def _bridge(layout: Layout, settings: Settings) -> Component:
    port, ready = settings.ports["api-server"], layout.ready_file(BRIDGE)
    argv = [
        *_python("gpufleet.local.bridge"),
        f"--listen={settings.options.bridge}:{port}",
        f"--to=127.0.0.1:{port}",
        f"--ready-file={ready}",
    ]
    return Component(
        BRIDGE, tuple(argv), FileProbe(ready), after=(API_SERVER,), inputs=(PACKAGE,), grace_s=2.0
    )


def supervisor(layout: Layout) -> Component:
    """The process that runs the others. `up` starts it, and replaces one whose fingerprint is another."""
    argv = (*_python("gpufleet.local.supervisor"), "--name", layout.name)
    return Component(SUPERVISOR, argv, FileProbe(layout.supervisor_state), inputs=(PACKAGE,))


def component_kubeconfig(layout: Layout, component: str) -> Path:
    """The kubeconfig with which a component connects."""
    return layout.pki / f"{component}.kubeconfig"


def _python(module: str) -> tuple[str, ...]:
    """A module of this very installation; -P keeps the working folder out of its import path."""
    return (sys.executable, "-P", "-m", module)
