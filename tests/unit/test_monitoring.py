"""The dashboard asks only for what the exporter says, answers for each thing by node, namespace and pod."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.samples import Sample
from tests.unit.exported import SimulatedNode, allocation, of, parsed, pod_each
from tools import monitoring as generator

from gpufleet.devices.exporter_text import HOSTNAMES, Options, Source, layout, render, tail
from gpufleet.devices.monitoring import LABELS, dashboard, queries, service_monitor

ASKED = (
    "Utilisation", "GPU memory in use", "Temperature", "SM occupancy", "Power", "Last XID", "Time throttled",
)  # fmt: skip
OPTIONS = [Options(names="classic", hostname="upper"), Options(names="new", hostname="lower")]
METRIC = re.compile(r"\b(?:DCGM_FI|gpufleet)_\w+")
LABEL_USES = re.compile(r"\{([^}]*)\}|(?:by|on) \(([^)]*)\)")


@pytest.fixture(scope="module")
def pages() -> Mapping[str, str]:
    """The pages of a node whose only GPU is cut in seven, and of one whose first GPU four pods share."""
    cut = SimulatedNode("cut", profiles=dict.fromkeys(range(7), "1g.10gb"))
    shared = SimulatedNode("shared", gpus=3)
    shares = [allocation(f"share-{number}", f"{shared.devices[0]}::{number}") for number in range(4)]
    held = {"cut": pod_each(cut.devices), "shared": shares}
    found = {}
    for node in (cut, shared):
        node.work()
        laid = layout(node.name, node.inventory, held[node.name])
        found[node.name] = render(laid, node.backend.sample()) + tail(node.name, (Source("driver", 1),))
    return found


def emitted(options: Options) -> dict[str, set[str]]:
    """Every metric of a page with the labels that any of its series has."""
    node = SimulatedNode("node", profiles={0: "3g.40gb"})
    whole = SimulatedNode("node", gpus=2)
    labels: dict[str, set[str]] = {}
    for one in (node, whole):
        text = render(layout("node", one.inventory, pod_each(one.devices), options), one.backend.sample())
        for series in parsed(text + tail("node", (Source("driver", 1, 1, {"Timeout": 1}),))):
            labels.setdefault(series.name, set()).update(series.labels)
    return labels


@pytest.mark.parametrize("options", OPTIONS, ids=["classic", "new"])
def test_every_query_names_metrics_and_labels_that_the_exporter_writes(options: Options) -> None:
    written = emitted(options)
    board = dashboard(options)
    asked = queries(board) + [one["definition"] for one in board["templating"]["list"] if "definition" in one]
    known = set().union(*written.values())
    for query in asked:
        names = METRIC.findall(query)
        assert names, query
        assert set(names) <= written.keys(), query
        for selector, grouping in LABEL_USES.findall(query):
            labels = {one.split("=")[0].strip() for one in (selector or grouping).split(",")}
            assert labels <= known, query


@pytest.mark.parametrize("thing", ASKED)
@pytest.mark.parametrize("what", ["node", "namespace", "pod"])
def test_each_thing_is_shown_by_node_namespace_and_pod(thing: str, what: str) -> None:
    [panel] = [one for one in dashboard()["panels"] if one["title"] == f"{thing} by {what}"]
    groups = {"node": "by (Hostname)", "namespace": "by (namespace)", "pod": "by (namespace, pod)"}
    assert groups[what] in panel["targets"][0]["expr"]


def test_the_host_label_of_the_dashboard_is_the_exporters() -> None:
    for options in (Options(hostname="upper"), Options(hostname="lower"), Options(hostname="both")):
        assert all(
            HOSTNAMES[options.hostname][0] in query
            for query in queries(dashboard(options))
            if "DCGM" in query
        )


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_service_monitor_keeps_the_labels_of_pods_and_drops_the_exporters_own() -> None:
    monitor = service_monitor()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["path"] == "/metrics"
    assert monitor["spec"]["selector"]["matchLabels"] == LABELS
    [drop] = [one for one in endpoint["relabelings"] if one["action"] == "labeldrop"]
    for label in ("pod", "namespace", "container"):
        assert re.fullmatch(drop["regex"], label)


def test_the_files_of_deploy_are_those_of_the_code() -> None:
    assert generator.stale(generator.render(), generator.FOLDER) == []
    assert json.loads((generator.FOLDER / "grafana-dashboard.json").read_text()) == dashboard()
    assert yaml.safe_load((generator.FOLDER / "servicemonitor.yaml").read_text()) == service_monitor()


def test_a_file_that_differs_or_that_nothing_writes_is_stale(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / "old.yaml").write_text("")
    problems = generator.stale({"a.yaml": "a: 2\n", "b.yaml": ""}, tmp_path)
    assert [problem.split()[0].rsplit("/", 1)[1] for problem in problems] == ["old.yaml", "a.yaml", "b.yaml"]


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on the PATH (Debian has it in the package prometheus)")
    return found


def concrete(query: str) -> str:
    """A query with everything selected."""
    for variable in ("$node", "$namespace", "$pod"):
        query = query.replace(f'"{variable}"', '".+"')
    return query.replace("$__rate_interval", "1m")


def expected(expression: str, number: float) -> dict[str, Any]:
    """A test of promtool: one number without labels."""
    samples = [{"labels": "{}", "value": number}]
    return {"expr": expression, "eval_time": "5m", "exp_samples": samples}


def within(expression: str, number: float) -> dict[str, Any]:
    """A test of promtool: a number within 1 %."""
    return expected(f"abs({expression} - {number}) < bool {0.01 * number}", 1)


def total(series: Iterable[Sample]) -> float:
    """The sum of series."""
    return sum(one.value for one in series)


def evaluated(pages: Mapping[str, str], tests: list[dict[str, Any]], folder: Path) -> str:
    """What promtool says of expressions over the series of pages, each standing still for five minutes."""
    series = [
        {"series": line.rsplit(" ", 1)[0], "values": f"{line.rsplit(' ', 1)[1]}+0x20"}
        for page in pages.values()
        for line in page.splitlines()
        if not line.startswith("#")
    ]
    case = {"interval": "15s", "input_series": series, "promql_expr_test": tests}
    (folder / "rules.yaml").write_text("groups: []\n")
    file = folder / "queries.yaml"
    file.write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [case]}))
    checked = subprocess.run(
        [promtool(), "test", "rules", str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def test_every_query_returns_data_in_prometheus(pages: Mapping[str, str], tmp_path: Path) -> None:
    """But for the queries of throttled GPUs, of which there are none."""
    tests = [
        expected(f"count({concrete(query)}) > bool 0", 1)
        for query in queries(dashboard())
        if not query.endswith("> 0")
    ]
    assert evaluated(pages, tests, tmp_path) == ""


def test_no_query_counts_a_gpu_twice(pages: Mapping[str, str], tmp_path: Path) -> None:
    panels = {
        panel["title"]: concrete(panel["targets"][0]["expr"])
        for panel in dashboard()["panels"]
        if "targets" in panel
    }
    cut, shared = parsed(pages["cut"]), parsed(pages["shared"])
    power, used = "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED"
    everything = total(of(cut, power, GPU_I_ID="") + of(shared, power))
    held = total(of(cut, power, GPU_I_ID="") + of(shared, power, gpu="0"))
    instances = [one for one in of(cut, used) if "pod" in one.labels]
    tests = [
        within(f"sum({panels['Power by node']})", everything),
        within(f"sum({panels['Power by pod']})", held),
        within(f"sum({panels['Power by namespace']})", held),
        within(f"sum({panels['GPU memory in use by pod']})", total(instances + of(shared, used, gpu="0"))),
        within(panels["GPUs"], 4),
        within(panels["GPUs held"], 2),
        expected(f"count({panels['Temperature by pod']})", 7 + 4),
    ]
    assert evaluated(pages, tests, tmp_path) == ""


def test_a_wrong_expectation_is_noticed(pages: Mapping[str, str], tmp_path: Path) -> None:
    assert "FAILED" in evaluated(pages, [expected("count(gpufleet_gpu_info)", 1)], tmp_path)


def test_metrics_of_ours_are_what_promtool_accepts(pages: Mapping[str, str]) -> None:
    for page in pages.values():
        ours = page[page.index("# HELP gpufleet_") :]
        checked = subprocess.run(
            [promtool(), "check", "metrics"],
            input=ours,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
