"""Kubeconfigs: which cluster, as whom, and what is said when a file is wrong."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.config import ClusterConfig, in_cluster_config, load_config


def kubeconfig(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
    return path


def cluster(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "cluster": {"server": f"https://{name}.example", **fields}}


def user(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "user": fields}


def context(name: str, cluster: str, user: str = "", **fields: Any) -> dict[str, Any]:
    return {"name": name, "context": {"cluster": cluster, "user": user, **fields}}


def simple(path: Path, **fields: Any) -> Path:
    return kubeconfig(
        path,
        **{"current-context": "x"},
        clusters=[cluster("c")],
        users=[user("u", **fields)],
        contexts=[context("x", "c", "u")],
    )


def refusal(path: Path | str, **options: Any) -> GpufleetError:
    with pytest.raises(GpufleetError) as refused:
        load_config(str(path), **options)
    return refused.value


def test_a_context_names_cluster_user_and_namespace(tmp_path: Path) -> None:
    path = kubeconfig(
        tmp_path / "config",
        **{"current-context": "dev"},
        clusters=[
            cluster("a", **{"tls-server-name": "kubernetes", "proxy-url": "http://proxy:3128"}),
            cluster("b"),
        ],
        users=[user("u", token="t"), user("v", username="n", password="p")],
        contexts=[context("dev", "a", "u", namespace="team"), context("prod", "b", "v")],
    )
    dev = load_config(str(path))
    assert (dev.server, dev.token, dev.namespace, dev.context) == ("https://a.example", "t", "team", "dev")
    assert (dev.tls_server_name, dev.proxy_url) == ("kubernetes", "http://proxy:3128")
    prod = load_config(str(path), context="prod")
    assert (prod.server, prod.username, prod.password, prod.namespace) == (
        "https://b.example",
        "n",
        "p",
        "default",
    )


def test_in_a_merge_the_first_file_to_name_a_thing_wins(tmp_path: Path) -> None:
    first = kubeconfig(tmp_path / "1", clusters=[cluster("c")], users=[user("u", token="first")])
    second = kubeconfig(
        tmp_path / "2",
        **{"current-context": "x"},
        clusters=[{"name": "c", "cluster": {"server": "https://other.example"}}],
        users=[user("u", token="second"), user("w", token="only here")],
        contexts=[context("x", "c", "u"), context("y", "c", "w")],
    )
    third = kubeconfig(tmp_path / "3", **{"current-context": "y"})
    environ = {"KUBECONFIG": os.pathsep.join(map(str, (first, tmp_path / "absent", second, third)))}
    config = load_config(environ=environ)
    assert (config.server, config.token) == ("https://c.example", "first")
    assert load_config(context="y", environ=environ).token == "only here"


def test_relative_paths_start_at_the_folder_of_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    path = simple(
        folder / "config",
        tokenFile="secrets/token",
        **{"client-certificate": "me.crt", "client-key": "me.key"},
    )
    (folder / "me.crt").write_bytes(b"certificate")
    (folder / "me.key").write_bytes(b"key")
    config = load_config(environ={"KUBECONFIG": str(path)})
    assert (config.client_certificate, config.client_key) == (b"certificate", b"key")
    assert config.token_file == str(folder / "secrets/token")


def test_inline_data_wins_over_files(tmp_path: Path) -> None:
    path = kubeconfig(
        tmp_path / "config",
        **{"current-context": "x"},
        clusters=[
            cluster(
                "c",
                **{
                    "certificate-authority": "absent.crt",
                    "certificate-authority-data": base64.b64encode(b"authority").decode(),
                },
            )
        ],
        contexts=[context("x", "c")],
    )
    assert load_config(str(path)).ca_data == b"authority"


def test_the_order_is_argument_then_variable_then_home_then_pod(tmp_path: Path) -> None:
    argument = simple(tmp_path / "argument", token="argument")
    variable = simple(tmp_path / "variable", token="variable")
    simple(tmp_path / "home/.kube/config", token="home")
    environ = {"KUBECONFIG": str(variable), "HOME": str(tmp_path / "home")}
    assert load_config(str(argument), environ=environ).token == "argument"
    assert load_config(environ=environ).token == "variable"
    assert load_config(environ={"HOME": str(tmp_path / "home")}).token == "home"
    with pytest.raises(GpufleetError) as missing:
        load_config(environ={"HOME": str(tmp_path)})
    assert missing.value.reason == "NoCluster"
    assert "gpufleet up" in missing.value.hint
    with pytest.raises(GpufleetError) as no_account:
        load_config(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert no_account.value.reason == "NoServiceAccount"


def test_inside_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    for name, content in {"token": "t", "ca.crt": "authority", "namespace": "team\n"}.items():
        (tmp_path / name).write_text(content)
    config = in_cluster_config(
        {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path
    )
    assert config.server == "https://[fd00::1]:6443"
    assert config.ca_data == b"authority"
    assert config.namespace == "team"
    assert config.token == ""
    assert config.token_file == str(tmp_path / "token")


def test_an_exec_plugin_keeps_its_arguments_environment_and_place(tmp_path: Path) -> None:
    entry = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "bin/login",
        "args": ["a"],
        "env": [{"name": "N", "value": "V"}],
        "provideClusterInfo": True,
        "installHint": "install it",
    }
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "me"}}
    path = kubeconfig(
        tmp_path / "config",
        **{"current-context": "x"},
        clusters=[cluster("c", extensions=[extension])],
        users=[
            user("u", exec=entry),
            user("plain", exec={**entry, "command": "login", "args": None, "env": None}),
        ],
        contexts=[context("x", "c", "u"), context("y", "c", "plain")],
    )
    plugin = load_config(str(path)).exec_plugin
    assert plugin is not None
    assert plugin.command == str(tmp_path / "bin/login")
    assert (plugin.args, plugin.env, plugin.install_hint) == (("a",), (("N", "V"),), "install it")
    assert plugin.cluster == {"server": "https://c.example", "config": {"audience": "me"}}
    plain = load_config(str(path), context="y").exec_plugin
    assert plain is not None
    assert (plain.command, plain.args, plain.env) == ("login", (), ())


@pytest.mark.parametrize(
    ("server", "fields", "expected"),
    [
        ("https://a.example/", {}, "https://a.example"),
        ("https://a.example/k8s/clusters/c-1", {}, "https://a.example/k8s/clusters/c-1"),
        ("localhost:8080", {}, "http://localhost:8080"),
        ("localhost:6443", {"insecure-skip-tls-verify": True}, "https://localhost:6443"),
    ],
)
def test_the_server_becomes_a_url(tmp_path: Path, server: str, fields: dict[str, Any], expected: str) -> None:
    path = kubeconfig(
        tmp_path / "config",
        **{"current-context": "x"},
        clusters=[{"name": "c", "cluster": {"server": server, **fields}}],
        contexts=[context("x", "c")],
    )
    assert load_config(str(path)).server == expected


def test_impersonation_becomes_headers(tmp_path: Path) -> None:
    extra = {"as": "a", "as-uid": "1", "as-groups": ["g", "h"], "as-user-extra": {"Acme.com/Why": ["x"]}}
    config = load_config(str(simple(tmp_path / "config", **extra)))
    assert config.impersonate == (
        ("Impersonate-User", "a"),
        ("Impersonate-Uid", "1"),
        ("Impersonate-Group", "g"),
        ("Impersonate-Group", "h"),
        ("Impersonate-Extra-acme.com%2Fwhy", "x"),
    )


def test_the_representation_shows_no_secret() -> None:
    config = ClusterConfig(server="https://a", token="hush", password="hush", client_key=b"hush")
    assert "hush" not in repr(config)
    assert "hush" not in f"{config}"


def test_a_missing_file_names_itself_and_a_remedy(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent")
    assert error.reason == "KubeconfigMissing"
    assert str(tmp_path / "absent") in error.message
    assert "gpufleet up" in error.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("clusters: ]", "not valid YAML at line 1, column 11"),
        (
            "clusters:\n- name: c\n  cluster: {server: 5}",
            "Expected `str`, got `int` - at `$.clusters[0].cluster.server`",
        ),
        ("- a", "Expected `object`, got `array`"),
        ("contexts: []", "it has no contexts"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]",
            "names the cluster 'c', which is not",
        ),
        (
            "current-context: x\nclusters: [{name: c}]\ncontexts: [{name: x, context: {cluster: c}}]",
            "no server",
        ),
    ],
)
def test_a_wrong_file_says_where_and_what(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    error = refusal(path)
    assert error.reason == "KubeconfigInvalid"
    assert str(path) in error.message
    assert problem in error.message


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"client-certificate-data": "???", "client-key-data": "????"},
            "client-certificate-data is not valid base64",
        ),
        ({"client-certificate-data": "YQ=="}, "a client certificate or a key but not both"),
        ({"client-key": "absent.key"}, "client-key cannot be read"),
        ({"auth-provider": {"name": "gcp"}}, "auth-provider 'gcp', which Kubernetes has removed"),
    ],
)
def test_a_wrong_user_says_what_is_wrong(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    error = refusal(simple(tmp_path / "config", **fields))
    assert error.reason == "KubeconfigInvalid"
    assert problem in error.message


def test_a_broken_entry_of_another_cluster_harms_nobody(tmp_path: Path) -> None:
    path = kubeconfig(
        tmp_path / "config",
        **{"current-context": "x"},
        clusters=[cluster("c"), cluster("broken", **{"certificate-authority": "absent"})],
        contexts=[context("x", "c"), context("y", "broken")],
    )
    assert load_config(str(path)).server == "https://c.example"
    assert "certificate-authority cannot be read" in refusal(path, context="y").message


def test_an_unknown_context_lists_the_known_ones(tmp_path: Path) -> None:
    error = refusal(simple(tmp_path / "config"), context="z")
    assert error.reason == "ContextNotFound"
    assert error.hint == "known contexts: x"


def test_what_kubectl_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        "apiVersion: v1\nclusters: null\ncontexts: null\nusers: null\ncurrent-context: ''\nkind: Config\n"
    )
    assert "no contexts" in refusal(path).message
