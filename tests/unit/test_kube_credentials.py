"""Tokens that rotate in a file, by a clock of the test's own."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path

import msgspec
import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.config import ClusterConfig, ExecPlugin
from gpufleet.kube.credentials import (
    TOKEN_MAX_AGE,
    ExecCredentials,
    FixedCredentials,
    TokenFile,
    credentials_for,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def token_of(source: TokenFile) -> str:
    return asyncio.run(source.current()).headers["Authorization"].removeprefix("Bearer ")


def test_a_token_file_is_read_again_after_a_minute_and_not_before(tmp_path: Path) -> None:
    path, clock = tmp_path / "token", Clock()
    path.write_text("one\n")
    source = TokenFile(path, clock=clock)
    assert token_of(source) == "one"
    path.write_text("two\n")
    clock.now += TOKEN_MAX_AGE - 1
    assert token_of(source) == "one"
    clock.now += 1
    assert token_of(source) == "two"


def test_a_refused_token_is_read_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    source = TokenFile(path, clock=Clock())
    generation = asyncio.run(source.current()).generation
    assert not asyncio.run(source.refused(generation)), "the file holds nothing newer"
    path.write_text("two")
    assert asyncio.run(source.refused(generation))
    assert token_of(source) == "two"
    assert asyncio.run(source.refused(generation)), "an old refusal is no news about the new token"


def test_a_file_that_is_being_replaced_does_not_lose_the_last_token(tmp_path: Path) -> None:
    path, clock = tmp_path / "token", Clock()
    path.write_text("one")
    source = TokenFile(path, clock=clock)
    assert token_of(source) == "one"
    for broken in (path.unlink, lambda: path.write_text("")):
        broken()
        clock.now += TOKEN_MAX_AGE
        assert token_of(source) == "one"


def test_a_file_that_never_was_is_an_error_unless_a_token_is_given_too(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError) as missing:
        token_of(TokenFile(tmp_path / "absent"))
    assert missing.value.reason == "TokenUnreadable"
    assert token_of(TokenFile(tmp_path / "absent", "inline")) == "inline"


def test_fixed_credentials_are_headers(tmp_path: Path) -> None:
    async def headers(config: ClusterConfig) -> dict[str, str]:
        source = credentials_for(config)
        assert isinstance(source, FixedCredentials)
        return dict((await source.current()).headers)

    assert asyncio.run(headers(ClusterConfig(server="s", token="t"))) == {"Authorization": "Bearer t"}
    basic = base64.b64encode(b"u:p").decode()
    assert asyncio.run(headers(ClusterConfig(server="s", username="u", password="p"))) == {
        "Authorization": f"Basic {basic}"
    }
    assert asyncio.run(headers(ClusterConfig(server="s"))) == {}


def printing(*output: object) -> ExecPlugin:
    code = f"import sys; sys.stdout.write({msgspec.json.encode(output[0]).decode()!r})" if output else "pass"
    return ExecPlugin(
        "client.authentication.k8s.io/v1", sys.executable, ("-c", code), interactive_mode="Never"
    )


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        (ExecPlugin("client.authentication.k8s.io/v1", "no-such-program-here"), "cannot be started"),
        (printing(), "did not print an ExecCredential"),
        (
            printing({"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential"}),
            "instead of",
        ),
        (
            printing({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}),
            "neither a token",
        ),
        (
            printing(
                {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "kind": "ExecCredential",
                    "status": {"clientCertificateData": "c"},
                }
            ),
            "but not both",
        ),
    ],
)
def test_a_plugin_that_does_not_keep_the_protocol_is_named_with_its_fault(
    plugin: ExecPlugin, problem: str
) -> None:
    with pytest.raises(GpufleetError) as failed:
        asyncio.run(ExecCredentials(plugin).current())
    assert failed.value.reason == "ExecPluginFailed"
    assert problem in failed.value.message


def test_a_plugin_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(GpufleetError, match="v1alpha1"):
        ExecCredentials(ExecPlugin("client.authentication.k8s.io/v1alpha1", "x"))
