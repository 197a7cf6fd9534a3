"""What Prometheus and Grafana are told of the exporter: a ServiceMonitor and a dashboard, as plain objects.

Queries name metrics by the table of the exporter, under the names and host label that it is set to. Two rules
keep sums right: of a GPU under MIG the row of the whole GPU is taken (its instances repeat its temperature,
clocks and power), and what is not divided among the containers of a shared GPU is joined to them by
`gpufleet_gpu_info`, or by `gpufleet_gpu_share_ratio` where it is an amount.
Source: Prometheus operator's API reference (ServiceMonitor), Grafana's dashboard JSON model, PromQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gpufleet.devices.exporter_fields import FIELDS, Unit
from gpufleet.devices.exporter_text import HOSTNAMES, Options

LABELS = {"app.kubernetes.io/part-of": "gpufleet", "app.kubernetes.io/component": "agent"}
"""Labels of the Service in front of the agents, whose port is named `metrics`."""

INTERVAL = "15s"

_GRAFANA_UNITS: dict[Unit, str] = {
    "%": "percent",
    "ratio": "percentunit",
    "C": "celsius",
    "W": "watt",
    "MiB": "mbytes",
}
_WIDTH, _HEIGHT, _STAT_HEIGHT = 24, 8, 4
_REASONS = {
    "software power cap": 0x04,
    "hardware slowdown": 0x08,
    "software thermal": 0x20,
    "hardware thermal": 0x40,
    "power brake": 0x80,
}
"""Bits of the clock event reasons that hold a GPU down."""

_OWN = 'node=~"$node"'
_HELD = 'namespace=~"$namespace",pod=~"$pod"'
_INFO = f"gpufleet_gpu_info{{{_OWN},{_HELD}}}"
_SHARE = f"gpufleet_gpu_share_ratio{{{_OWN},{_HELD}}}"


class Subject(msgspec.Struct, frozen=True):
    """One thing to look at: as a value per node, and as one per container, which `fold` makes one of a pod or
    a namespace.
    """

    title: str
    unit: str
    per_node: str
    per_container: str
    fold: str


def service_monitor() -> dict[str, Any]:
    """The object by which Prometheus operator finds the agents.

    The labels of the exporter's own pod are dropped, because a GPU that nobody holds would have them else.
    """
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "gpufleet-exporter", "labels": dict(LABELS)},
        "spec": {
            "selector": {"matchLabels": dict(LABELS)},
            "endpoints": [
                {
                    "port": "metrics",
                    "path": "/metrics",
                    "interval": INTERVAL,
                    "scrapeTimeout": "10s",
                    "honorLabels": True,
                    "relabelings": [
                        {
                            "action": "replace",
                            "sourceLabels": ["__meta_kubernetes_pod_node_name"],
                            "targetLabel": "instance",
                        },
                        {"action": "labeldrop", "regex": "namespace|pod|container|service|endpoint"},
                    ],
                }
            ],
        },
    }


def subjects(options: Options) -> tuple[Subject, ...]:
    """What the dashboard shows by node, by namespace and by pod."""
    host = HOSTNAMES[options.hostname][0]
    node = f'{host}=~"$node"'

    def name(classic: str) -> str:
        return FIELDS[classic].names(options.names)[0]

    def gpus(classic: str) -> str:
        """A value per GPU, whoever shares it."""
        return f'sum by ({host}, UUID) ({name(classic)}{{{node},GPU_I_ID=""}})'

    def held(classic: str) -> str:
        """A value per container and GPU or GPU instance."""
        return f"{name(classic)}{{{node},{_HELD}}}"

    def joined(per_device: str) -> str:
        """Values of GPUs and GPU instances, for each of their holders."""
        return f"max by (UUID, GPU_I_ID) ({per_device}) * on (UUID, GPU_I_ID) group_right () {_INFO}"

    def state(classic: str) -> tuple[str, str, str]:
        metric = f"{name(classic)}{{{node}}}"
        return f"max by ({host}) ({metric})", joined(metric), "max"

    def unit(classic: str) -> str:
        return _GRAFANA_UNITS.get(FIELDS[classic].unit, "short")

    util, engine = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
    used, power, occupancy = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_PROF_SM_OCCUPANCY"
    temperature, xid = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_XID_ERRORS"
    violations = "DCGM_FI_DEV_THERMAL_VIOLATION", "DCGM_FI_DEV_POWER_VIOLATION"
    throttled = " + ".join(f"rate({name(one)}{{{node}}}[$__rate_interval])" for one in violations)
    throttled = f"({throttled}) / 1e9"
    watts = f'sum by (UUID) ({name(power)}{{{node},GPU_I_ID=""}})'
    return (
        Subject(
            "Utilisation",
            unit(util),
            f"avg by ({host}) ({gpus(util)} or 100 * {gpus(engine)})",
            f"({held(util)} or 100 * {held(engine)})",
            "avg",
        ),
        Subject("GPU memory in use", unit(used), f"sum by ({host}) ({gpus(used)})", held(used), "sum"),
        Subject("Temperature", unit(temperature), *state(temperature)),
        Subject(
            "SM occupancy", unit(occupancy), f"avg by ({host}) ({gpus(occupancy)})", held(occupancy), "avg"
        ),
        Subject(
            "Power",
            unit(power),
            f"sum by ({host}) ({gpus(power)})",
            f"({watts} * on (UUID) group_right () {_SHARE})",
            "sum",
        ),
        Subject("Last XID", unit(xid), *state(xid)),
        Subject("Time throttled", "percentunit", f"max by ({host}) ({throttled})", joined(throttled), "max"),
    )


def dashboard(options: Options | None = None) -> dict[str, Any]:
    """The Grafana dashboard for an exporter with these options."""
    options = options or Options()
    host = HOSTNAMES[options.hostname][0]
    shown = subjects(options)
    rows = (
        ("Fleet", _STAT_HEIGHT, _fleet(options)),
        (
            "By node",
            _HEIGHT,
            [
                *(
                    _series(f"{one.title} by node", one.unit, [(one.per_node, f"{{{{{host}}}}}")])
                    for one in shown
                ),
                *_profiles(options, host),
                _throttle_reasons(options, host),
            ],
        ),
        ("By namespace", _HEIGHT, [_folded(one, ("namespace",)) for one in shown]),
        ("By pod", _HEIGHT, [_folded(one, ("namespace", "pod")) for one in shown]),
        ("What is not known", _HEIGHT, _unknown()),
    )
    return {
        "uid": "gpufleet-gpus",
        "title": "gpufleet / GPUs",
        "tags": ["gpufleet", "gpu"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_placed(rows)),
    }


def queries(board: dict[str, Any]) -> list[str]:
    """Every query of a dashboard's panels."""
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def _folded(one: Subject, labels: tuple[str, ...]) -> dict[str, Any]:
    query = f"{one.fold} by ({', '.join(labels)}) ({one.per_container})"
    legend = "/".join(f"{{{{{label}}}}}" for label in labels)
    return _series(f"{one.title} by {labels[-1]}", one.unit, [(query, legend)])


def _fleet(options: Options) -> list[dict[str, Any]]:
    """Numbers of everything that is selected."""
    by_title = {one.title: one for one in subjects(options)}
    utilisation, power = by_title["Utilisation"], by_title["Power"]
    rows = (
        ("GPUs", "short", f"count(count by (UUID) (gpufleet_gpu_info{{{_OWN}}}))"),
        ("GPUs held", "short", f"sum({_SHARE})"),
        ("Utilisation", utilisation.unit, f"avg({utilisation.per_node})"),
        ("Power", power.unit, f"sum({power.per_node})"),
        ("Oldest sample", "s", f"max(gpufleet_sample_age_seconds{{{_OWN}}})"),
        ("Unmapped devices", "short", f"sum(gpufleet_unmapped_devices{{{_OWN}}})"),
    )
    return [_panel("stat", title, unit, [(query, "")]) for title, unit, query in rows]


def _profiles(options: Options, host: str) -> Iterable[dict[str, Any]]:
    rows = (
        ("SM activity", "DCGM_FI_PROF_SM_ACTIVE"),
        ("Tensor activity", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
        ("Memory bandwidth", "DCGM_FI_PROF_DRAM_ACTIVE"),
    )
    for title, classic in rows:
        name = FIELDS[classic].names(options.names)[0]
        query = f'avg by ({host}) (sum by ({host}, UUID) ({name}{{{host}=~"$node",GPU_I_ID=""}}))'
        yield _series(f"{title} by node", "percentunit", [(query, f"{{{{{host}}}}}")])


def _throttle_reasons(options: Options, host: str) -> dict[str, Any]:
    name = FIELDS["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"].names(options.names)[0]
    metric = f'{name}{{{host}=~"$node",GPU_I_ID=""}}'
    return _series(
        "GPUs throttled, by reason",
        "short",
        [
            (f"sum by ({host}) (floor({metric} / {bit}) % 2) > 0", f"{{{{{host}}}}} {reason}")
            for reason, bit in _REASONS.items()
        ],
    )


def _unknown() -> list[dict[str, Any]]:
    gaps = f"sum by (field, reason) (gpufleet_metric_unavailable{{{_OWN}}})"
    return [
        _series(
            "Age of samples by node",
            "s",
            [(f"max by (node, source) (gpufleet_sample_age_seconds{{{_OWN}}})", "{{node}} {{source}}")],
        ),
        _series(
            "Unmapped devices by node",
            "short",
            [(f"sum by (node) (gpufleet_unmapped_devices{{{_OWN}}})", "{{node}}")],
        ),
        _panel("table", "GPUs that lack a metric", "short", [(gaps, "")], instant=True),
    ]


def _series(title: str, unit: str, targets: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return _panel("timeseries", title, unit, targets)


def _panel(
    kind: str, title: str, unit: str, targets: Iterable[tuple[str, str]], *, instant: bool = False
) -> dict[str, Any]:
    """A panel of queries with their legends; its place follows."""
    source = {"type": "prometheus", "uid": "$datasource"}
    panel: dict[str, Any] = {
        "type": kind,
        "title": title,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": source,
                "expr": query,
                "legendFormat": legend,
                **({"instant": True, "format": "table"} if instant else {}),
            }
            for number, (query, legend) in enumerate(targets)
        ],
    }
    if kind == "timeseries":
        panel["options"] = {"tooltip": {"mode": "multi"}, "legend": {"placement": "bottom"}}
    return panel


def _placed(rows: Iterable[tuple[str, int, list[dict[str, Any]]]]) -> Iterable[dict[str, Any]]:
    """Panels with ids and places, each row under its title; four panels side by side, six numbers."""
    number, top = 0, 0
    for title, height, panels in rows:
        number += 1
        place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        width = _WIDTH // (6 if height == _STAT_HEIGHT else 4)
        for position, panel in enumerate(panels):
            number += 1
            down, across = divmod(position, _WIDTH // width)
            place = {"x": across * width, "y": top + down * height, "w": width, "h": height}
            yield {"id": number, **panel, "gridPos": place}
        top += -(-len(panels) * width // _WIDTH) * height


def _variables() -> list[dict[str, Any]]:
    """What a reader can choose: the data source, nodes, namespaces and pods."""
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    rows = (
        ("node", "Node", "label_values(gpufleet_gpu_info, node)"),
        ("namespace", "Namespace", f"label_values(gpufleet_gpu_info{{{_OWN}}}, namespace)"),
        ("pod", "Pod", f'label_values(gpufleet_gpu_info{{{_OWN},namespace=~"$namespace"}}, pod)'),
    )
    return [source] + [
        {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "$datasource"},
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        }
        for name, label, query in rows
    ]
