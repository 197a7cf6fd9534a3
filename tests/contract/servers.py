"""A real etcd and a real kube-apiserver: loopback only, free ports, a folder of their own, ended by pid.

ConfigMaps are served without watch cache, so that a compaction of etcd is all it takes to make a watch or a
continue token expire with a true 410; etcd reports progress every second, which gives them true bookmarks.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gpufleet.kube.config import ClusterConfig
from gpufleet.local.ports import free_ports

_READY_WITHIN = 60.0


def free_port() -> int:
    """A port that nothing listens on, and that no client of this machine takes while its server restarts."""
    return free_ports(1)[0]


class Authority:
    """A certificate authority that lives in memory."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "contract-ca")])
        self.certificate = self._build(self._name, self._key.public_key(), ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, organization: str = "", server: bool = False) -> tuple[bytes, bytes]:
        """Certificate and key as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            names.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        certificate = self._build(x509.Name(names), key.public_key(), server=server)
        return certificate.public_bytes(serialization.Encoding.PEM), private_pem(key)

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, ca: bool = False, server: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if server:
            names = [x509.DNSName("kubernetes"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


_REAPER = """
import os, signal, sys
pids = set()
for line in sys.stdin:
    pids ^= {int(line)}
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Reaper:
    """A process that outlives a killed test run just long enough to end the processes it was told of."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _REAPER], stdin=subprocess.PIPE)

    def watch(self, pid: int) -> None:
        """End this process when the test run is killed; told a second time: not any more."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid}\n".encode())
        self._process.stdin.flush()

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait(timeout=10)
        self._process.stdin.close()


class ControlPlane:
    """etcd and kube-apiserver as child processes."""

    def __init__(self, folder: Path, commands: Mapping[str, Sequence[str]]) -> None:
        self.folder = folder
        self._commands = commands
        self.authority = Authority()
        self.port, self._etcd_port, self._etcd_peer_port = free_ports(3)
        self.server = f"https://127.0.0.1:{self.port}"
        self.tokens = {"first-token": "contract-user"}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper: Reaper | None = None
        certificate, key = self.authority.issue("contract-admin", "system:masters")
        self.config = ClusterConfig(
            server=self.server,
            ca_data=self.authority.pem,
            client_certificate=certificate,
            client_key=key,
            source="contract tests",
        )
        self._write_keys()

    def _write_keys(self) -> None:
        certificate, key = self.authority.issue("kube-apiserver", server=True)
        account_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for name, content in {
            "ca.crt": self.authority.pem,
            "server.crt": certificate,
            "server.key": key,
            "accounts.key": private_pem(account_key),
        }.items():
            (self.folder / name).write_bytes(content)

    def start(self) -> None:
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._etcd_peer_port}"
        self._spawn(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--watch-progress-notify-interval=1s",
        )
        self.start_server()

    def start_server(self) -> None:
        """Start kube-apiserver and wait until it is ready and the namespace `default` exists."""
        tokens = self.folder / "tokens.csv"
        tokens.write_text("".join(f"{token},{user},{user}\n" for token, user in self.tokens.items()))
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.folder / 'ca.crt'}",
            f"--token-auth-file={tokens}",
            "--service-account-issuer=https://contract.invalid",
            f"--service-account-key-file={self.folder / 'accounts.key'}",
            f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=AlwaysAllow",
            "--disable-admission-plugins=ServiceAccount",
            "--watch-cache-sizes=configmaps#0",
            "--endpoint-reconciler-type=none",
            "--feature-gates=GenericWorkload=true,TopologyAwareWorkloadScheduling=true,CompositePodGroup=true",
            "--runtime-config=scheduling.k8s.io/v1beta1=true,scheduling.k8s.io/v1alpha3=true",
        )
        deadline = time.monotonic() + _READY_WITHIN
        while not (self._answers("/readyz") and self._answers("/api/v1/namespaces/default")):
            if self._processes["kube-apiserver"].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log("kube-apiserver")[-3000:])
            time.sleep(0.05)

    def kill_server(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End kube-apiserver with a signal and wait until it is gone."""
        process = self._processes.pop("kube-apiserver")
        assert self._reaper is not None
        self._reaper.watch(process.pid)
        process.send_signal(number)
        process.wait(timeout=30)

    def stop(self) -> None:
        if self._reaper is not None:
            self._reaper.dismiss()
            self._reaper = None
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(timeout=30)
        self._processes.clear()

    @staticmethod
    def stranger(config: ClusterConfig) -> ClusterConfig:
        """The same server, trusted by way of an authority that did not sign its certificate."""
        return msgspec.structs.replace(config, ca_data=Authority().pem)

    @staticmethod
    def insecure(config: ClusterConfig) -> ClusterConfig:
        """The same server without looking at its certificate."""
        return msgspec.structs.replace(config, insecure=True, ca_data=None)

    def compact(self, version: str) -> None:
        """Make etcd forget every resourceVersion before this one."""
        self._etcd("/v3/kv/compaction", {"revision": int(version), "physical": True})

    def log(self, component: str) -> str:
        return (self.folder / f"{component}.log").read_text(errors="replace")

    def write_kubeconfig(self, path: Path, user: Mapping[str, object]) -> Path:
        """A kubeconfig for this server with one user."""
        authority = base64.b64encode(self.authority.pem).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "contract",
            "clusters": [
                {"name": "c", "cluster": {"server": self.server, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "contract", "context": {"cluster": "c", "user": "u"}}],
        }
        path.write_bytes(msgspec.json.encode(content))
        return path

    def _etcd(self, path: str, body: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._etcd_port}{path}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: dict[str, object] = json.load(response)
            return answer

    def _spawn(self, component: str, *flags: str) -> None:
        self._reaper = self._reaper or Reaper()
        with (self.folder / f"{component}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._commands[component], *flags],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        self._processes[component] = process
        self._reaper.watch(process.pid)

    def watch(self, pid: int) -> None:
        """End this process too when the test run is killed; told a second time: not any more."""
        assert self._reaper is not None
        self._reaper.watch(pid)

    def _answers(self, path: str) -> bool:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        token = next(iter(self.tokens))
        request = urllib.request.Request(self.server + path, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as response:
                return bool(response.status == 200)
        except OSError:
            return False
