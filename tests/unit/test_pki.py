"""Certificates of a local fleet: what they say, who accepts whom, and when they are made anew."""

import asyncio
import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from gpufleet.local import pki

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pki")
    pki.ensure(made)
    return made


def certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.pair(folder, name).cert.read_bytes())


def names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


async def handshake(folder: Path, server: str, client: str, authority: str) -> bool:
    """Whether `client` and `server` accept each other when both trust `authority`."""
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.pair(folder, authority).cert)
    ours.verify_mode = ssl.CERT_REQUIRED
    ours.load_cert_chain(*_files(folder, server))
    theirs = ssl.create_default_context(cafile=pki.pair(folder, authority).cert)
    theirs.load_cert_chain(*_files(folder, client))
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        await writer.drain()
        writer.close()
        served.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours) as listener:
        port = listener.sockets[0].getsockname()[1]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=theirs)
            writer.write(b"x")
            answer = await asyncio.wait_for(reader.read(1), 5)
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return False
        return answer == b"x"


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    pair = pki.pair(folder, name)
    return pair.cert, pair.key


@pytest.mark.parametrize(
    ("server", "client", "authority"),
    [
        ("apiserver", "admin", "ca"),
        ("apiserver", "controller", "ca"),
        ("kubelet", "apiserver-kubelet-client", "ca"),
        ("controller-manager-server", "admin", "ca"),
        ("etcd-server", "etcd-client", "etcd-ca"),
        ("etcd-server", "etcd-server", "etcd-ca"),
    ],
)
def test_servers_and_clients_of_one_authority_accept_each_other(
    folder: Path, server: str, client: str, authority: str
) -> None:
    assert asyncio.run(handshake(folder, server, client, authority))


def test_no_client_of_the_cluster_can_open_etcd(folder: Path) -> None:
    assert not asyncio.run(handshake(folder, "etcd-server", "admin", "etcd-ca"))


def test_a_servers_certificate_is_no_client(folder: Path) -> None:
    assert not asyncio.run(handshake(folder, "apiserver", "kubelet", "ca"))


def test_the_api_server_bears_every_name_it_is_reached_by(folder: Path) -> None:
    expected = {"127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
    assert names(certificate(folder, "apiserver")) >= expected | {pki.SERVICE_ADDRESS}


def test_the_admin_is_in_the_group_that_rbac_lets_do_everything(folder: Path) -> None:
    subject = certificate(folder, "admin").subject
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:masters"


def test_the_controller_manager_has_the_name_that_rbac_knows(folder: Path) -> None:
    subject = certificate(folder, "controller-manager").subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:kube-controller-manager"


def test_keys_are_private(folder: Path) -> None:
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_look_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert pki.ensure(folder) == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_leaves_are_renewed_before_they_expire_and_authorities_stay(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    authority = certificate(tmp_path, "ca")
    later = NOW + dt.timedelta(days=pki.LEAF_DAYS - pki.RENEW_DAYS + 1)
    written = pki.ensure(tmp_path, now=later)
    assert set(written) == {leaf.name for leaf in pki.leaves()}
    assert certificate(tmp_path, "ca") == authority
    assert certificate(tmp_path, "admin").not_valid_after_utc > later + dt.timedelta(days=pki.RENEW_DAYS)


def test_a_new_authority_signs_everything_anew(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    pki.pair(tmp_path, "ca").cert.unlink()
    written = pki.ensure(tmp_path)
    below = {leaf.name for leaf in pki.leaves() if leaf.authority == "ca"}
    assert set(written) == {"ca"} | below
    assert asyncio.run(handshake(tmp_path, "apiserver", "admin", "ca"))


def test_an_authority_never_expires_before_what_it_signs(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    old = NOW + dt.timedelta(days=365 * pki.AUTHORITY_YEARS - 300)
    assert "ca" in pki.ensure(tmp_path, now=old)


def test_service_account_keys_outlive_every_renewal(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    key = (tmp_path / "sa.key").read_bytes()
    pki.ensure(tmp_path, now=NOW + dt.timedelta(days=4000))
    assert (tmp_path / "sa.key").read_bytes() == key


def test_a_bridge_address_makes_only_the_api_servers_certificate_anew(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    assert pki.ensure(tmp_path, bridge="172.17.0.1") == ["apiserver"]
    assert "172.17.0.1" in names(certificate(tmp_path, "apiserver"))


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_replaced(tmp_path: Path, content: bytes) -> None:
    pki.ensure(tmp_path)
    pki.pair(tmp_path, "admin").cert.write_bytes(content)
    assert pki.ensure(tmp_path) == ["admin"]


def test_a_key_of_another_certificate_is_replaced(tmp_path: Path) -> None:
    pki.ensure(tmp_path)
    pki.pair(tmp_path, "admin").key.write_bytes(pki.pair(tmp_path, "controller").key.read_bytes())
    assert pki.ensure(tmp_path) == ["admin"]
