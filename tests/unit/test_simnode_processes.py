"""The pure parts of process containers: environment, command lines, verdicts of probes, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.simnode_pods import container, pod

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.objects import Probe
from gpufleet.local.simnodes.environment import (
    Source,
    command_line,
    container_environment,
    expand,
    sources_of,
)
from gpufleet.local.simnodes.podlogs import (
    ContainerFolder,
    LogOptions,
    clock_of,
    lines_of,
    rendered,
    select,
)
from gpufleet.local.simnodes.probing import Result, Verdict
from gpufleet.local.simnodes.processes import Mark, base_environment

ALLOCATABLE = {"cpu": "8", "memory": "16Gi"}


def _environment(
    sources: dict[Source, dict[str, str] | None] | None = None, devices: tuple[str, ...] = (), **rest: Any
) -> dict[str, str]:
    subject = pod(containers=[container("main", **rest)], labels={"app": "x"})
    return container_environment(subject, subject.spec.containers[0], sources or {}, devices, ALLOCATABLE)


def test_references_are_expanded_in_order_and_dollars_can_be_escaped() -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)2 $(LATER) $$(A) $A $(A"},
        {"name": "LATER", "value": "x"},
    ]
    assert _environment(env=env)["B"] == "12 $(LATER) $(A) $A $(A"
    assert expand("$$$$(A)", {"A": "1"}) == "$$(A)"


def test_fields_labels_and_resources_of_the_pod_become_variables() -> None:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def resource(name: str, what: str, divisor: str = "0") -> dict[str, Any]:
        return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": what, "divisor": divisor}}}

    env = [
        field("NS", "metadata.namespace"),
        field("LABEL", "metadata.labels['app']"),
        field("NONE", "metadata.annotations['none']"),
        field("IP", "status.podIP"),
        resource("CPU", "limits.cpu"),
        resource("MILLIS", "requests.cpu", "1m"),
        resource("MIB", "limits.memory", "1Mi"),
    ]
    found = _environment(env=env, resources={"requests": {"cpu": "1500m"}, "limits": {"memory": "1Gi"}})
    names = ("NS", "LABEL", "NONE", "IP", "CPU", "MILLIS", "MIB")
    assert [found[name] for name in names] == ["default", "x", "", "127.0.0.1", "8", "1500", "1024"]


def test_gpus_are_shown_unless_the_container_says_otherwise() -> None:
    assert _environment(devices=("GPU-a", "GPU-b"))["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    nothing = _environment()
    assert (nothing["CUDA_VISIBLE_DEVICES"], nothing["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")
    env = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]
    assert _environment(devices=("GPU-a",), env=env)["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_config_maps_and_secrets_are_needed_read_and_missed_by_name() -> None:
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "a"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "b", "optional": True}}},
    ]
    rest: dict[str, Any] = {"env": env, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "all"}}]}
    subject = pod(containers=[container("main", **rest)]).spec.containers[0]
    config, every, secret = Source("ConfigMap", "m"), Source("ConfigMap", "all"), Source("Secret", "s")
    assert sources_of(subject) == {config, every, secret}
    found = _environment({config: {"a": "1"}, every: {"x": "2", "not valid!": "3"}, secret: None}, **rest)
    assert (found["A"], found["P_x"], "B" in found) == ("1", "2", False)
    assert not any("valid" in name for name in found)
    missing: list[dict[Source, dict[str, str] | None]] = [
        {config: None, every: {}},
        {config: {}, every: {}},
        {config: {"a": "1"}, every: None},
    ]
    for sources in missing:
        with pytest.raises(GpufleetError, match="CreateContainerConfigError"):
            _environment(sources, **rest)


def test_command_and_arguments_are_expanded_and_a_missing_command_is_noticed() -> None:
    subject = pod(containers=[container(command=["run", "$(A)"], args=["--x=$(A)"])]).spec.containers[0]
    assert command_line(subject, {"A": "1"}) == ["run", "1", "--x=1"]
    assert command_line(pod(containers=[container(args=["x"])]).spec.containers[0], {}) == []


def test_a_process_inherits_nothing_but_the_surroundings() -> None:
    base = base_environment({"PATH": "/bin", "HOME": "/h", "SECRET_TOKEN": "x", "KUBECONFIG": "y"})
    assert base == {"PATH": "/bin", "HOME": "/h"}
    assert base_environment({})["PATH"]


def test_marks_read_back() -> None:
    mark = Mark("uid", "main", 3)
    assert Mark.parse(str(mark)) == mark
    assert Mark.parse("a/b") is None
    assert Mark.parse("a/b/c") is None


def _verdicts(probe: Probe, current: bool | None, results: str) -> str:
    verdict = Verdict(probe, current)
    return "".join(r if verdict.changes(Result(r == "+")) else "." for r in results)


def test_verdicts_change_after_enough_results_in_a_row() -> None:
    probe = Probe(success_threshold=2, failure_threshold=3)
    assert _verdicts(probe, False, "-+-++++") == "....+.."
    assert _verdicts(probe, True, "--+---+-++-") == ".....-...+."
    assert _verdicts(Probe(failure_threshold=2), None, "--") == ".-"
    assert _verdicts(Probe(), None, "+") == "+"


def test_lines_are_dated_by_how_long_the_log_was_when() -> None:
    clock = [(4, 10.0), (8, 20.0)]
    lines = list(lines_of(b"one\ntwo\nsix\n", 0, clock))
    assert [line.time for line in lines] == [10.0, 20.0, 20.0]
    assert [line.text for line in select(lines, LogOptions(since=15.0))] == [b"two\n", b"six\n"]
    assert rendered(lines[:1], LogOptions(timestamps=True)) == b"1970-01-01T00:00:10.000000Z one\n"


@given(st.lists(st.binary(max_size=5), max_size=8), st.integers(0, 10))
def test_selected_lines_are_the_last_ones_and_whole(parts: list[bytes], tail: int) -> None:
    data = b"\n".join(parts)
    lines = list(lines_of(data, 0, []))
    assert rendered(lines, LogOptions()) == data
    chosen = select(lines, LogOptions(tail_lines=tail))
    assert chosen == lines[max(0, len(lines) - tail) :]


def test_a_container_folder_remembers_lengths_and_exit_codes(tmp_path: Path) -> None:
    folder = ContainerFolder(tmp_path)
    assert folder.note_length(0, 1.0, 0) == 0
    folder.log(0).write_bytes(b"x\n")
    assert folder.note_length(0, 5.0, 0) == 2
    assert folder.note_length(0, 6.0, 2) == 2
    assert clock_of(folder, 0) == [(2, 5.0)]
    assert folder.exit_code(0) is None
    folder.exit(0).write_text("7\n")
    assert folder.exit_code(0) == 7
