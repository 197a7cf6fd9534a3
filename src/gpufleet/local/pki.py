"""Keys and certificates of a local fleet: three authorities, and one certificate per role.

The cluster's authority signs servers and clients of the API, the front proxy's authority signs what the API
server shows to aggregated APIs, and etcd has its own, so that no client of the cluster can open etcd (the
separation that kubeadm makes). Everything is reused as long as it is valid, fits what is asked for
(names, addresses) and does not expire soon; the key pair that signs service account tokens is never replaced,
because tokens outlive it.

Authorities have RSA keys, everybody else P-256: the API server checks the authority's signature under a
client's certificate at each request, and Go checks an RSA signature several times faster (it was 15 % of the
API server's time).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gpufleet.local.layout import write_atomic

AUTHORITY_YEARS = 10
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

LEAF_DAYS = 365
RENEW_DAYS = 30
SERVICE_ADDRESS = "10.96.0.1"
"""The first address of the service range: where pods reach the API server."""

_LOOPBACK = ("127.0.0.1", "localhost")
_API_SERVER_NAMES = (
    *_LOOPBACK,
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    SERVICE_ADDRESS,
)
_ADMINS = "system:masters"


class Leaf(msgspec.Struct, frozen=True):
    """What a certificate must say. `hosts` are DNS names and IP addresses and make it a server's; `client`
    allows the holder to connect as `common_name` in `organization` (the user and group that Kubernetes sees).
    """

    name: str
    authority: str
    common_name: str
    organization: str = ""
    hosts: tuple[str, ...] = ()
    client: bool = True


class Pair(msgspec.Struct, frozen=True):
    """Paths of a certificate and its key, both PEM."""

    cert: Path
    key: Path


AUTHORITIES = ("ca", "front-proxy-ca", "etcd-ca")


def leaves(bridge: str = "") -> tuple[Leaf, ...]:
    """Every certificate of a fleet; `bridge` is one more address of the API server."""
    api_names = (*_API_SERVER_NAMES, bridge) if bridge else _API_SERVER_NAMES
    return (
        Leaf("apiserver", "ca", "kube-apiserver", hosts=api_names, client=False),
        Leaf("kubelet", "ca", "gpufleet-simulated-nodes", hosts=_LOOPBACK, client=False),
        Leaf("controller-manager-server", "ca", "kube-controller-manager", hosts=_LOOPBACK, client=False),
        Leaf("admin", "ca", "gpufleet-admin", _ADMINS),
        Leaf("controller-manager", "ca", "system:kube-controller-manager", _ADMINS),
        Leaf("simulated-nodes", "ca", "gpufleet-simulated-nodes", _ADMINS),
        Leaf("controller", "ca", "gpufleet-controller", _ADMINS),
        Leaf("devices", "ca", "gpufleet-devices", _ADMINS),
        Leaf("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", _ADMINS),
        Leaf("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Leaf("etcd-server", "etcd-ca", "etcd", hosts=_LOOPBACK),
        Leaf("etcd-client", "etcd-ca", "kube-apiserver-etcd-client"),
    )


def pair(folder: Path, name: str) -> Pair:
    """Where the certificate and key called `name` lie."""
    return Pair(folder / f"{name}.crt", folder / f"{name}.key")


def ensure(folder: Path, *, bridge: str = "", now: dt.datetime | None = None) -> list[str]:
    """Make or renew what is missing, wrong or close to expiry in `folder`; the names of what was written."""
    now = now or dt.datetime.now(dt.UTC)
    written = [name for name in AUTHORITIES if _ensure_authority(folder, name, now)]
    written += [leaf.name for leaf in leaves(bridge) if _ensure_leaf(folder, leaf, now)]
    if _ensure_service_account_keys(folder):
        written.append("sa")
    return written


def _ensure_authority(folder: Path, name: str, now: dt.datetime) -> bool:
    paths = pair(folder, name)
    known = _load(paths)
    # An authority must outlive every certificate that it will sign before the next check.
    if known and known[0].not_valid_after_utc - now > dt.timedelta(days=LEAF_DAYS + RENEW_DAYS):
        return False
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gpufleet {name}")])
    lifetime = dt.timedelta(days=365 * AUTHORITY_YEARS)
    builder = _builder(subject, subject, key.public_key(), now, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _store(paths, builder.sign(key, hashes.SHA256()), key)
    return True


def _ensure_leaf(folder: Path, leaf: Leaf, now: dt.datetime) -> bool:
    authority = _load(pair(folder, leaf.authority))
    if authority is None:
        raise ValueError(f"no authority {leaf.authority} in {folder}")
    issuer, issuer_key = authority
    paths = pair(folder, leaf.name)
    known = _load(paths)
    if known and _fits(known[0], leaf, issuer, now):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(leaf), issuer.subject, key.public_key(), now, dt.timedelta(days=LEAF_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(_purposes(leaf)), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    if leaf.hosts:
        builder = builder.add_extension(_alternative_names(leaf.hosts), critical=False)
    _store(paths, builder.sign(issuer_key, hashes.SHA256()), key)
    return True


def _fits(cert: x509.Certificate, leaf: Leaf, issuer: x509.Certificate, now: dt.datetime) -> bool:
    """Whether a certificate still says what `leaf` asks for, comes from `issuer` and does not expire soon."""
    if cert.not_valid_after_utc - now < dt.timedelta(days=RENEW_DAYS) or cert.subject != _subject(leaf):
        return False
    try:
        cert.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    if not leaf.hosts:
        return True
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names == _alternative_names(leaf.hosts)


def _subject(leaf: Leaf) -> x509.Name:
    organization = (
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, leaf.organization)] if leaf.organization else []
    )
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name)])


def _purposes(leaf: Leaf) -> list[x509.ObjectIdentifier]:
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if leaf.hosts else []
    return server + ([ExtendedKeyUsageOID.CLIENT_AUTH] if leaf.client else [])


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in hosts])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    now: dt.datetime,
    lifetime: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _ensure_service_account_keys(folder: Path) -> bool:
    private, public = folder / "sa.key", folder / "sa.pub"
    if private.exists() and public.exists():
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomic(private, _pem(key))
    write_atomic(public, encoded)
    return True


def _load(paths: Pair) -> tuple[x509.Certificate, PrivateKey] | None:
    """A certificate with its key, or None when one is missing, unreadable, or they do not belong together."""
    try:
        cert = x509.load_pem_x509_certificate(paths.cert.read_bytes())
        key = serialization.load_pem_private_key(paths.key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, PrivateKey) or cert.public_key() != key.public_key():
        return None
    return cert, key


def _store(paths: Pair, cert: x509.Certificate, key: PrivateKey) -> None:
    write_atomic(paths.key, _pem(key))
    write_atomic(paths.cert, cert.public_bytes(serialization.Encoding.PEM))


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
