"""Credentials that change while a client runs, refused and accepted by a real API server."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tests.contract.servers import ControlPlane

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.config import load_config
from gpufleet.kube.kinds import NAMESPACES

WHO_AM_I = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEW = b'{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'


async def user_of(client: Client) -> str:
    answer = msgspec.json.decode(await client.request("POST", WHO_AM_I, body=REVIEW))
    return str(answer["status"]["userInfo"]["username"])


def plugin(folder: Path, *outputs: Mapping[str, object], version: str = "v1") -> dict[str, object]:
    """A credential plugin that prints one output per run, the last one for ever, and notes each run."""
    program = folder / "plugin.py"
    wrapped = [
        {"apiVersion": f"client.authentication.k8s.io/{version}", "kind": "ExecCredential", "status": output}
        for output in outputs
    ]
    (folder / "outputs.json").write_bytes(msgspec.json.encode(wrapped))
    program.write_text(
        "import json, os, pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "with (here / 'runs').open('a') as runs:\n"
        "    runs.write(json.dumps({'args': sys.argv[1:], 'region': os.environ['REGION'],\n"
        "                           'told': json.loads(os.environ['KUBERNETES_EXEC_INFO'])}) + '\\n')\n"
        "outputs = json.loads((here / 'outputs.json').read_text())\n"
        "number = len((here / 'runs').read_text().splitlines())\n"
        "print(json.dumps(outputs[min(number, len(outputs)) - 1]))\n"
    )
    return {
        "exec": {
            "apiVersion": f"client.authentication.k8s.io/{version}",
            "command": sys.executable,
            "args": [str(program), "get-token"],
            "env": [{"name": "REGION", "value": "north"}],
            "provideClusterInfo": True,
            "interactiveMode": "Never",
        }
    }


def runs(folder: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in (folder / "runs").read_text().splitlines()]


async def test_a_rotated_token_file_is_read_again_when_the_old_token_is_refused(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first-token\n")
    rotating = load_config(str(control_plane.write_kubeconfig(tmp_path / "a", {"tokenFile": "token"})))
    fixed = load_config(str(control_plane.write_kubeconfig(tmp_path / "b", {"token": "first-token"})))
    async with Client(rotating) as client, Client(fixed) as old:
        assert await user_of(client) == await user_of(old) == "contract-user"

        control_plane.tokens = {"second-token": "rotated-user"}
        token.write_text("second-token\n")
        try:
            await asyncio.to_thread(control_plane.kill_server)
            await asyncio.to_thread(control_plane.start_server)
            assert await user_of(client) == "rotated-user"
            with pytest.raises(ApiError) as refused:
                await user_of(old)
            assert refused.value.status == 401
            assert refused.value.hint
        finally:
            control_plane.tokens = {"first-token": "contract-user"}
            await asyncio.to_thread(control_plane.kill_server)
            await asyncio.to_thread(control_plane.start_server)


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
async def test_an_exec_plugin_runs_once_and_is_told_what_it_asked_for(
    control_plane: ControlPlane, tmp_path: Path, version: str
) -> None:
    user = plugin(tmp_path, {"token": "first-token"}, version=version)
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
    async with Client(config) as client:
        assert await asyncio.gather(*(user_of(client) for _ in range(8))) == ["contract-user"] * 8
    (run,) = runs(tmp_path)
    assert run["args"] == ["get-token"]
    assert run["region"] == "north"
    told = run["told"]
    assert isinstance(told, dict)
    assert told["spec"]["interactive"] is False
    assert told["spec"]["cluster"]["server"] == control_plane.server
    assert (
        base64.b64decode(told["spec"]["cluster"]["certificate-authority-data"]) == control_plane.authority.pem
    )


async def test_an_exec_plugin_runs_again_once_when_its_token_is_refused(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    user = plugin(tmp_path, {"token": "wrong"}, {"token": "first-token"})
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
    async with Client(config) as client:
        assert await asyncio.gather(*(user_of(client) for _ in range(16))) == ["contract-user"] * 16
    assert len(runs(tmp_path)) == 2


async def test_an_exec_plugin_runs_again_when_its_credential_has_expired(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    expired = {"token": "first-token", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    lasting = {"token": "first-token", "expirationTimestamp": "2999-01-01T00:00:00Z"}
    user = plugin(tmp_path, expired, lasting)
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
    async with Client(config) as client:
        for _ in range(4):
            assert await user_of(client) == "contract-user"
    assert len(runs(tmp_path)) == 2


async def test_an_exec_plugin_may_give_a_client_certificate(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    certificate, key = control_plane.authority.issue("certified-user")
    pair = {"clientCertificateData": certificate.decode(), "clientKeyData": key.decode()}
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", plugin(tmp_path, pair))))
    async with Client(config) as client:
        assert await user_of(client) == "certified-user"


async def test_a_plugin_that_fails_is_named_with_what_it_said(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-c", "import sys; sys.exit('please log in first')"],
            "installHint": "get it from the cloud",
            "interactiveMode": "Never",
        }
    }
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
    async with Client(config) as client:
        with pytest.raises(GpufleetError) as failed:
            await client.list(NAMESPACES)
    assert failed.value.reason == "ExecPluginFailed"
    assert "please log in first" in failed.value.message
    assert failed.value.hint == "get it from the cloud"


async def test_client_certificates_of_a_kubeconfig_may_be_inline_or_files(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    certificate, key = control_plane.authority.issue("file-user")
    (tmp_path / "user.crt").write_bytes(certificate)
    (tmp_path / "user.key").write_bytes(key)
    by_file = {"client-certificate": "user.crt", "client-key": "user.key"}
    inline = {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    for user in (by_file, inline):
        config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
        async with Client(config) as client:
            assert await user_of(client) == "file-user"


async def test_impersonation_of_a_kubeconfig_reaches_the_server(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    user: dict[str, object] = {"token": "first-token", "as": "somebody", "as-groups": ["a", "b"]}
    config = load_config(str(control_plane.write_kubeconfig(tmp_path / "config", user)))
    async with Client(config) as client:
        answer = msgspec.json.decode(await client.request("POST", WHO_AM_I, body=REVIEW))
    assert answer["status"]["userInfo"]["username"] == "somebody"
    assert {"a", "b"} <= set(answer["status"]["userInfo"]["groups"])
