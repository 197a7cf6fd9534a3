"""The command line's conventions: help, exit codes, errors with a remedy, output for people and for pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.cli import errors
from gpufleet.cli.app import group
from gpufleet.cli.commands import COMMANDS, EXIT_CODES, SECTIONS
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.errors import ApiError, Unreachable
from gpufleet.kube.transport import unreachable
from gpufleet.local.kubeconfig import merge_into, merged_kubeconfig
from gpufleet.local.layout import layout_of, prepare


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in an empty home."""

    def running(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "XDG_STATE_HOME")
        }
        return subprocess.run(
            [sys.executable, "-c", "import sys; from gpufleet.cli import main; sys.exit(main())", *arguments],
            env={**clean, "HOME": str(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return running


# ------------------------------------------------------------------------------------------------------ help


def test_every_command_of_the_table_is_in_the_help_and_answers_help_itself(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    text = run("--help").stdout
    assert [name for names in SECTIONS.values() for name in names] == list(COMMANDS)
    context = click.Context(group)
    for name in COMMANDS:
        assert f"  {name} " in text
        command = group.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(200)


def test_every_option_is_explained() -> None:
    context = click.Context(group)
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"{name} {option.name}"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_is_data_and_succeeds(
    arguments: tuple[str, ...], run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: gpufleet COMMAND")


def test_help_of_a_command_may_be_asked_either_way(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run("help", "logs").stdout == run("logs", "--help").stdout


def test_an_argument_for_a_component_that_does_not_exist_is_refused(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run("up", "--component-arg", "kube-scheduler=--v=4")
    assert done.returncode == 2
    assert "no such component: kube-scheduler" in done.stderr
    assert run("up", "--component-arg", "etcd").returncode == 2


def test_the_plugin_calls_itself_as_it_is_called() -> None:
    code = (
        "import sys; sys.argv = ['kubectl-gpufleet']; from gpufleet.cli import kubectl_main; kubectl_main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Usage: kubectl gpufleet COMMAND")


# ---------------------------------------------------------------------------------------- errors, exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GpufleetError(reason="Whatever", message="m"), 1),
        (click.UsageError("no such option"), 2),
        (GpufleetError(reason="BadFleetName", message="m"), 2),
        (ValueError("a defect"), 3),
        (ApiError(status=403, reason="Forbidden", message="m"), 4),
        (ApiError(status=401, reason="Unauthorized", message="m"), 4),
        (ApiError(status=404, reason="NotFound", message="m"), 5),
        (GpufleetError(reason="FleetNotFound", message="m"), 5),
        (GpufleetError(reason="Timeout", message="m"), 6),
        (Unreachable(reason="ServerTimeout", message="m"), 6),
        (KeyboardInterrupt(), 130),
        (errors.Terminated(), 143),
        (BrokenPipeError(), 141),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert errors.exit_code(error) == code


def test_documented_exit_codes_are_those_that_are_used() -> None:
    used = {1, errors.USAGE, errors.DEFECT, errors.NO_ACCESS, errors.NOT_FOUND, errors.TIMEOUT}
    assert set(EXIT_CODES) == {0, errors.INTERRUPTED, errors.BROKEN_PIPE, errors.TERMINATED} | used


def test_an_error_says_what_happened_and_what_to_type_next(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run("status")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == ("error[FleetNotFound]: there is no local fleet 'default'\n  hint: gpufleet up\n")


def test_an_unknown_command_gets_the_nearest_one(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run("staus")
    assert done.returncode == 2
    assert "no such command: staus; did you mean status?" in done.stderr


def test_an_unknown_option_gets_the_nearest_one(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("logs", "pod", "--folow")
    assert done.returncode == 2
    assert "did you mean --follow?" in done.stderr
    assert "gpufleet logs --help" in done.stderr


def test_a_missing_argument_is_told_in_one_line(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("why")
    assert done.returncode == 2
    assert done.stderr.startswith("error[Usage]: missing argument")


def test_a_defect_is_one_line_and_a_traceback_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 // 0
    assert errors.report(raised.value, "gpufleet", debug=False) == 3
    told = capsys.readouterr().err
    errors.report(raised.value, "gpufleet", debug=True)
    shown = capsys.readouterr().err
    assert "Traceback" not in told
    assert "--debug" in told
    assert "Traceback" in shown


def test_debug_may_stand_before_and_after_the_command(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for arguments in (("--debug", "status"), ("status", "--debug")):
        assert "Traceback" in run(*arguments).stderr
    assert "Traceback" in run("status", GPUFLEET_DEBUG="1").stderr


def test_too_few_open_files_are_told_before_anything_starts(tmp_path: Path) -> None:
    code = "import sys; from gpufleet.cli import main; sys.exit(main())"
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n 256; exec {sys.executable} -c "{code}" up'],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "error[TooFewOpenFiles]" in done.stderr
    assert "ulimit -n 1024" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fleet", ["smal", "/nowhere/fleet.yaml"])
def test_a_fleet_that_is_neither_file_nor_preset_is_told_before_anything_starts(
    fleet: str, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run("up", "--fleet", fleet)
    assert done.returncode == 5
    assert done.stderr.startswith("error[FleetNotFound]")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_silent(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = "import sys; from gpufleet.cli import main; sys.exit(main())"
    for arguments in ("--help", "completion bash", "version"):
        line = f'{sys.executable} -c "{code}" {arguments} | true'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.stderr == ""


def test_sigterm_ends_with_a_word_and_its_code() -> None:
    code = (
        "import sys, os, signal; from gpufleet.cli.app import invoke, group\n"
        "import click\n"
        "@click.command()\n"
        "def hang(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "group.get_command = lambda ctx, name: hang\n"
        "sys.exit(invoke('gpufleet', ['status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" in done.stderr


def test_version_is_told_to_programs_too(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    versions = json.loads(run("version", "-o", "json").stdout)
    assert set(versions) == {"gpufleet", "python", "kubernetes", "platform"}
    assert yaml.safe_load(run("version", "-o", "yaml").stdout) == versions


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_gpufleet(
    shell: str, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_GPUFLEET_COMPLETE" in done.stdout


# ------------------------------------------------------------------------------ which cluster, kubeconfig


def config_of(context: str) -> dict[str, Any]:
    """A kubeconfig with one context."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": {"server": f"https://{context}"}}],
        "users": [{"name": context, "user": {}}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment with a local fleet, a second one, a $KUBECONFIG and a ~/.kube/config, each of its own
    server.
    """
    environ = {"HOME": str(tmp_path)}
    for name in ("default", "two"):
        layout = layout_of(name, environ)
        prepare(layout)
        layout.settings.write_text("{}")
        layout.kubeconfig.write_text(yaml.safe_dump(config_of(f"fleet-{name}")))
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text(yaml.safe_dump(config_of("home")))
    (tmp_path / "named").write_text(yaml.safe_dump(config_of("named")))
    return environ


def server(environ: dict[str, str], **options: str | None) -> str:
    from gpufleet.cli.cluster import choose_cluster

    given = {"kubeconfig": None, "context": None, "name": None, **options}
    return choose_cluster(given["kubeconfig"], given["context"], given["name"], environ).server


def test_the_local_fleet_comes_before_the_users_own_kubeconfig(places: dict[str, str]) -> None:
    assert server(places) == "https://fleet-default"


def test_kubeconfig_of_the_environment_comes_before_the_local_fleet(places: dict[str, str]) -> None:
    named = {**places, "KUBECONFIG": f"{places['HOME']}/named"}
    assert server(named) == "https://named"


def test_what_is_said_on_the_command_line_comes_first(places: dict[str, str]) -> None:
    named = {**places, "KUBECONFIG": f"{places['HOME']}/named"}
    assert server(named, name="two") == "https://fleet-two"
    assert server(named, kubeconfig=f"{places['HOME']}/.kube/config") == "https://home"
    assert server(places, context="home") == "https://home"


@pytest.mark.parametrize("other", ["context", "kubeconfig"])
def test_a_fleet_and_another_cluster_are_not_both_meant(places: dict[str, str], other: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        server(places, name="two", **{other: "home"})
    assert raised.value.reason == "Usage"
    assert f"--{other}" in raised.value.message


def test_a_stopped_fleet_is_named_by_what_starts_it(places: dict[str, str]) -> None:
    from gpufleet.cli.cluster import choose_cluster

    two = str(layout_of("two", places).kubeconfig)
    merge_into(Path(places["HOME"]) / "named", Path(two))
    merged = {**places, "KUBECONFIG": f"{places['HOME']}/named"}
    for config, fleet in (
        (choose_cluster(None, None, "two", places), "two"),
        (choose_cluster(two, None, None, places), "two"),
        (choose_cluster(None, None, None, {**places, "KUBECONFIG": two}), "two"),
        (choose_cluster(None, None, None, places), "default"),
        (choose_cluster(None, "home", None, places), ""),
        (choose_cluster(None, "named", None, merged), ""),
    ):
        assert config.fleet == fleet
        refused = unreachable(config, ConnectionRefusedError())
        assert (f"gpufleet up --name {fleet}" in refused.hint) == bool(fleet)
        silent = unreachable(config, TimeoutError())
        assert (f"gpufleet status --name {fleet} -o wide" in silent.hint) == bool(fleet)


def test_the_context_of_a_fleet_in_another_kubeconfig_is_that_fleet(places: dict[str, str]) -> None:
    from gpufleet.cli.cluster import choose_cluster

    own = Path(places["HOME"]) / "own"
    own.write_text(yaml.safe_dump(config_of("gpufleet-two")))
    assert choose_cluster(str(own), None, None, places).fleet == "two"


def test_a_kubeconfig_without_contexts_says_where_others_come_from(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("{}")
    with pytest.raises(GpufleetError) as raised:
        server({"HOME": str(tmp_path)}, kubeconfig=str(tmp_path / "config"))
    assert "it has no contexts" in raised.value.message
    assert "--kubeconfig" in raised.value.hint


def test_merging_where_nothing_can_be_written_asks_for_another_file(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_text(yaml.safe_dump(config_of("gpufleet-x")))
    with pytest.raises(GpufleetError) as raised:
        merge_into(Path("/proc/foo/x"), ours)
    assert "--into FILE" in raised.value.hint
    assert "XDG_STATE_HOME" not in raised.value.hint


def test_without_local_fleet_the_users_own_kubeconfig_is_used(places: dict[str, str]) -> None:
    layout_of("default", places).settings.unlink()
    assert server(places) == "https://home"


def test_a_fleet_that_does_not_exist_is_told_with_those_that_do(places: dict[str, str]) -> None:
    with pytest.raises(GpufleetError) as raised:
        server(places, name="three")
    assert raised.value.reason == "FleetNotFound"
    assert "gpufleet up --name three" in raised.value.hint
    assert "default, two" in raised.value.hint


def test_kubeconfig_of_a_fleet_names_that_fleet(places: dict[str, str]) -> None:
    from gpufleet.cli.cluster import chosen_fleet

    two = layout_of("two", places)
    assert chosen_fleet(None, {**places, "KUBECONFIG": str(two.kubeconfig)}) == two
    assert chosen_fleet(None, {**places, "KUBECONFIG": f"{places['HOME']}/named"}).name == "default"


names = st.lists(st.sampled_from(["a", "b", "c", "gpufleet-x"]), unique=True)


@given(names)
def test_merging_replaces_only_entries_of_our_name_and_twice_is_once(theirs: list[str]) -> None:
    before: dict[str, Any] = {"clusters": [], "users": [], "contexts": [], "preferences": {"colors": True}}
    for name in theirs:
        before = merged_kubeconfig(before, config_of(name))
    ours = config_of("gpufleet-x")
    merged = merged_kubeconfig(before, ours)
    assert merged_kubeconfig(merged, ours) == merged
    assert {entry["name"] for entry in merged["clusters"]} == {*theirs, "gpufleet-x"}
    kept = [entry for entry in before["clusters"] if entry["name"] != "gpufleet-x"]
    assert [entry for entry in merged["clusters"] if entry["name"] != "gpufleet-x"] == kept
    assert merged["preferences"] == {"colors": True}
    assert merged["current-context"] == "gpufleet-x"


def test_merging_into_nothing_makes_a_private_file(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_text(yaml.safe_dump(config_of("x")))
    target = tmp_path / "new" / "config"
    merge_into(target, ours)
    assert yaml.safe_load(target.read_text()) == config_of("x")
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["- a list", "clusters: 7", "a: [", "clusters: [{}]", "\x00"])
def test_a_kubeconfig_that_is_none_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    ours, target = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text(yaml.safe_dump(config_of("x")))
    target.write_text(content)
    with pytest.raises(GpufleetError) as raised:
        merge_into(target, ours)
    assert raised.value.reason == "KubeconfigInvalid"
    assert target.read_text() == content


def test_a_symbolic_link_to_a_kubeconfig_stays_one(tmp_path: Path) -> None:
    ours, real, link = tmp_path / "ours", tmp_path / "real", tmp_path / "link"
    ours.write_text(yaml.safe_dump(config_of("x")))
    real.write_text(yaml.safe_dump(config_of("y")))
    link.symlink_to(real)
    merge_into(link, ours)
    assert link.is_symlink()
    assert {entry["name"] for entry in yaml.safe_load(real.read_text())["contexts"]} == {"x", "y"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("chat", ("here", "chat")),
        ("pod/chat", ("here", "chat")),
        ("pods/chat", ("here", "chat")),
        ("primer/chat", ("primer", "chat")),
    ],
)
def test_a_pod_is_named_as_kubectl_and_why_name_it(text: str, meant: tuple[str, str]) -> None:
    from gpufleet.cli.cluster import named_pod

    assert named_pod(text, None, "here") == meant
    assert named_pod(text, meant[0], "elsewhere") == meant


def test_a_pod_that_is_named_in_two_namespaces_is_refused() -> None:
    from gpufleet.cli.cluster import named_pod

    with pytest.raises(GpufleetError, match="primer/chat names the namespace primer, and -n default another"):
        named_pod("primer/chat", "default", "default")


def test_without_a_cluster_the_local_fleets_are_named(places: dict[str, str]) -> None:
    layout_of("default", places).settings.unlink()
    (Path(places["HOME"]) / ".kube" / "config").unlink()
    with pytest.raises(GpufleetError) as raised:
        server(places)
    assert raised.value.reason == "NoCluster"
    assert "--name two" in raised.value.hint


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e300", "soon"])
@pytest.mark.parametrize("option", ["status --watch --interval", "top --interval", "up --timeout"])
def test_seconds_are_a_number_that_can_be_waited_for(
    run: Callable[..., subprocess.CompletedProcess[str]], option: str, text: str
) -> None:
    done = run(*option.split(), text)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'{text}' is not a number of seconds from " in done.stderr


def test_a_kubeconfig_that_nests_without_end_is_refused(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[" * 200_000)
    done = run("top", "--kubeconfig", str(tmp_path / "config"))
    assert done.returncode == 1
    assert "nested deeper than 100 levels" in done.stderr
