"""Fleet files: what they say, and that every mistake is named with its line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.fleetfile import Fleet, Group, load_fleet, parse_fleet, presets, schema
from gpufleet.local.simnodes.machines import machines


def _refused(text: str) -> GpufleetError:
    with pytest.raises(GpufleetError) as caught:
        parse_fleet(text, "fleet.yaml")
    return caught.value


def _group(rest: str) -> str:
    return f"groups:\n  - name: a\n    gpu: h100\n    {rest}\n"


def test_a_group_needs_nothing_but_a_name() -> None:
    fleet = parse_fleet("groups:\n  - name: cpu\n", "fleet.yaml")
    group = fleet.groups[0]
    assert (group.count, group.gpus, group.cpu_quantity, group.memory_quantity) == (1, 0, "16", "64Gi")


def test_a_gpu_group_has_eight_gpus_and_cores_and_memory_to_match() -> None:
    group = parse_fleet("groups:\n  - {name: g, gpu: h100}\n", "fleet.yaml").groups[0]
    assert (group.gpus, group.cpu_quantity, group.memory_quantity) == (8, "192", "2048Gi")


def test_small_preset_has_training_mig_and_inference_nodes() -> None:
    fleet, _ = load_fleet("small")
    assert [(g.name, g.count, g.gpus) for g in fleet.groups] == [
        ("train", 4, 8),
        ("shared", 1, 8),
        ("infer", 2, 4),
    ]
    assert [str(t) for t in fleet.groups[0].node_taints] == ["nvidia.com/gpu=present:NoSchedule"]
    assert fleet.groups[1].profiles == ("1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb")
    assert not fleet.groups[2].taints


@pytest.mark.parametrize(
    ("name", "nodes", "gpus"), [("small", 7, 48), ("medium", 64, 400), ("large", 400, 3200)]
)
def test_presets_have_their_documented_size(name: str, nodes: int, gpus: int) -> None:
    fleet, _ = load_fleet(name)
    assert (fleet.nodes, sum(group.count * group.gpus for group in fleet.groups)) == (nodes, gpus)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("groups:\n  - name: a\n    gpusPerNod: 1\n", "fleet.yaml:3:5", "gpusPerNod"),
        (_group("count: 0"), "fleet.yaml:4:5", "groups[0].count"),
        (_group("count: 1001"), "fleet.yaml:4:5", "groups[0].count"),
        (_group("count: four"), "fleet.yaml:4:5", "expected a whole number, got a text"),
        (_group("gpusPerNode: 17"), "fleet.yaml:4:5", "groups[0].gpusPerNode"),
        (_group("cpu: 4x"), "fleet.yaml:4:5", "'4x' is not a Kubernetes quantity"),
        (_group("memory: 0Gi"), "fleet.yaml:4:5", "memory must be more than 0"),
        (_group("taints: [present]"), "fleet.yaml:4:14", "'present' is not a taint"),
        (_group("taints: ['a=b:NoWay']"), "fleet.yaml:4:14", "'a=b:NoWay' is not a taint"),
        (_group("labels: {'bad key': x}"), "fleet.yaml:4:14", "'bad key' is not a label key"),
        (_group("labels: {key: 'bad value'}"), "fleet.yaml:4:14", "'bad value' is not a label value"),
        (_group("labels: {a: b, kubernetes.io/hostname: x}"), "fleet.yaml:4:20", "is set by gpufleet"),
        (_group("memory: 99999999999999999Ei"), "fleet.yaml:4:5", "more than Kubernetes can count"),
        (_group("cpu: 9223372036854776"), "fleet.yaml:4:5", "more than Kubernetes can count"),
        (_group("pool: 'a b'"), "fleet.yaml:4:5", "'a b' is not a label value"),
        (_group("mig: all-6g"), "fleet.yaml:4:5", "no MIG layout 'all-6g'"),
        (_group("mig: [3g.40gb, 3g.40gb, 1g.10gb]"), "fleet.yaml:4:5", "does not fit on one GPU"),
        (
            _group("mig: all-balanced\n    sharing: {timeSlicing: {replicas: 2}}"),
            "fleet.yaml:5:5",
            "time-slicing",
        ),
        (_group("sharing: {timeSlicing: {replicas: 1}}"), "fleet.yaml:4:29", "replicas"),
        (_group("zone: a\n    zones: [b]"), "fleet.yaml:5:5", "exclude each other"),
        ("groups:\n  - {name: a}\n  - {name: a}\n", "fleet.yaml:3:6", "two groups are named 'a'"),
        ("groups:\n  - {name: A_b}\n", "fleet.yaml:2:6", "groups[0].name"),
        ("groups:\n  - {name: l, gpu: l4, mig: all-balanced}\n", "fleet.yaml:2:24", "cannot be cut by MIG"),
        ("groups:\n  - {name: l, gpu: l44}\n", "fleet.yaml:2:15", "no GPU product 'l44'"),
        ("groups:\n  - {name: l, gpu: ''}\n", "fleet.yaml:2:15", "no GPU product ''"),
        ("groups:\n  - {name: l, mig: all-balanced}\n", "fleet.yaml:2:15", "mig needs a gpu"),
        ("groups: []\n", "fleet.yaml:1:1", "groups"),
        ("groups:\n  - {name: a, name: b}\n", "fleet.yaml:2:15", "'name' stands twice"),
        ("groups: [\n", "fleet.yaml:2:1", "expected node content"),
        ("groups:\n  - &x [*x]\n", "fleet.yaml:2:5", "contains itself"),
        ("", "fleet.yaml", "the file is empty"),
        ("groups:\n  - {name: a, count: 600}\n  - {name: b, count: 600}\n", "fleet.yaml:1:1", "1200 nodes"),
        ("simulation: {imagePullSeconds: -1}\ngroups: [{name: a}]\n", "fleet.yaml:1:14", "imagePullSeconds"),
    ],
)
def test_a_mistake_is_named_with_file_line_column_and_field(text: str, where: str, says: str) -> None:
    error = _refused(text)
    assert error.reason in ("InvalidFleetFile", "InvalidYaml")
    assert error.message.startswith(f"{where}: ")
    assert says in error.message
    assert error.hint


def test_a_misspelt_field_and_product_get_a_suggestion() -> None:
    assert _refused("groups:\n  - {name: a, gpusPerNod: 1}\n").hint == "did you mean 'gpusPerNode'?"
    assert "did you mean 'l4'" in _refused("groups:\n  - {name: a, gpu: l44}\n").hint


def test_a_file_is_read_and_a_missing_one_suggests_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("groups:\n  - name: a\n")
    fleet, text = load_fleet(str(path))
    assert isinstance(fleet, Fleet)
    assert text == path.read_text()
    with pytest.raises(GpufleetError) as caught:
        load_fleet("smal")
    assert caught.value.reason == "FleetNotFound"
    assert "did you mean the preset 'small'" in caught.value.hint
    with pytest.raises(GpufleetError, match="FleetNotFound"):
        load_fleet(str(tmp_path))


def test_a_file_that_is_not_utf8_is_there_but_invalid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("groups: [{name: gr\xfcn}]".encode("latin-1"))
    with pytest.raises(GpufleetError, match="byte 18 is not UTF-8") as caught:
        load_fleet(str(path))
    assert caught.value.reason == "InvalidFleetFile"


def test_the_schema_describes_every_field_and_refuses_unknown_ones() -> None:
    for definition in schema()["$defs"].values():
        assert definition["additionalProperties"] is False
        if definition["title"] in ("Group", "Simulation", "Fleet"):
            assert all("description" in _flat(field) for field in definition["properties"].values())
    assert set(presets()) == {"small", "medium", "large"}


def _flat(field: dict[str, object]) -> dict[str, object]:
    for part in field.get("anyOf", ()):  # type: ignore[attr-defined]
        field = {**part, **field}
    return field


@pytest.mark.parametrize("brackets", ["[" * 3000, "[" * 200_000, "- " * 3000, "{a: " * 3000])
def test_a_file_that_nests_without_end_is_refused(brackets: str) -> None:
    error = _refused(brackets)
    assert (error.reason, error.hint[:8]) == ("InvalidYaml", "mend the")
    assert "fleet.yaml:1:" in error.message
    assert "nested deeper than 100 levels" in error.message


def test_no_group_gives_its_nodes_labels_that_the_fleet_sets() -> None:
    group = "{name: g, gpu: h100, gpusPerNode: 1, mig: all-balanced, zone: z, rack: r, purpose: training}"
    (machine,) = machines(parse_fleet(f"groups: [{group}]", "fleet.yaml"), "fleet")
    for key in machine.labels:
        error = _refused(f"groups:\n  - name: g\n    labels:\n      a: b\n      {key}: x\n")
        assert error.message.startswith(f"fleet.yaml:5:7: the label {key} is set by gpufleet")
        assert error.hint.startswith("remove it; it comes from ")


@pytest.mark.parametrize(
    ("text", "says", "example"),
    [
        (_group("count: four"), "expected a whole number, got a text", "count: 1"),
        (_group("gpusPerNode: 0"), "expected a whole number of at least 1", "gpusPerNode: 8"),
        (_group("zones: a"), "expected a list, got a text", 'zones: ["local-a","local-b"]'),
        (_group("mig: 3"), "expected a text or a list or nothing, got a whole number", 'mig: "all-balanced"'),
        ("groups: []", "expected a list of at least 1 item", "fleet-file.md"),
        ("groups: [{count: 2}]", "the field 'name' is missing", "fleet-file.md"),
        ("groups: [{name: A_b}]", "'A_b' cannot begin the names of nodes", "name: train"),
        ("- a", "expected a mapping, got a list", "fleet-file.md"),
    ],
)
def test_a_wrong_value_is_told_in_words_with_an_example(text: str, says: str, example: str) -> None:
    error = _refused(text)
    assert says in error.message
    assert example in error.hint


def test_gpus_that_need_a_reset_to_switch_mig_mode_are_dynamic_in_mig_mode() -> None:
    hopper, ampere = (Group(name="a", count=1, gpu=gpu, mig="dynamic") for gpu in ("h100", "a100"))
    assert (hopper.profiles, hopper.switches_mig) == (None, True)
    assert (ampere.profiles, ampere.switches_mig) == ((), False)
