"""Fleet files: a local fleet as groups of identical nodes, in YAML.

A file says what machines there are (`groups`) and how long things take on them (`simulation`). It is checked
completely before anything starts: unknown fields, wrong types and impossible values are one GpufleetError
that names file, line, column and field. Presets are fleet files in the package.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gpufleet.fleet import mig
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.products import Product, find_product
from gpufleet.fleet.quantities import resource_amount
from gpufleet.fleet.selectors import Taint
from gpufleet.local.names import label_problem, object_problem, parse_taint
from gpufleet.local.yamlfile import YamlDocument

REASON = "InvalidFleetFile"
MAX_NODES = 1000
DYNAMIC = "dynamic"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_LARGEST = 2**63 - 1
"""What Kubernetes can count of a resource; for CPU in millicores."""

_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Pause = Annotated[float, Meta(ge=0.1, le=300)]
_GpuCount = Annotated[int, Meta(ge=1, le=16)]


_SET_BY = {
    "kubernetes.io/hostname":        "the name of the node",
    "kubernetes.io/os":              "the kind of node",
    "kubernetes.io/arch":            "the kind of node",
    "gpufleet.dev/fleet":            "the name of the fleet",
    "gpufleet.dev/pool":             "pool",
    "gpufleet.dev/purpose":          "purpose",
    "gpufleet.dev/rack":             "rack or nodesPerRack",
    "topology.kubernetes.io/region": "region",
    "topology.kubernetes.io/zone":   "zone or zones",
}  # fmt: skip
"""Node labels that a group does not state itself, and what they come from."""

_OF_DEVICES = tuple(
    f"nvidia.com/{name}"
    for name in (
        "cuda.", "gpu.compute.", "gpu.count", "gpu.family", "gpu.machine", "gpu.memory", "gpu.mode",
        "gpu.present", "gpu.product", "gpu.replicas", "gpu.sharing", "mig", "mps.", "vgpu.",
    )
)  # fmt: skip
"""How labels begin that describe the GPUs of a node."""


class TimeSlicing(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Each GPU is offered several times, without isolation, as the NVIDIA device plugin does it."""

    replicas: Annotated[
        int, Meta(ge=2, le=64, description="How many pods may use one GPU at once.", examples=[4])
    ]
    rename_by_default: Annotated[
        bool, Meta(description="Offer nvidia.com/gpu.shared instead of nvidia.com/gpu.")
    ] = False


class Sharing(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How whole GPUs are shared."""

    time_slicing: TimeSlicing | None = None


class Group(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A group of identical nodes, named `<group>-<number>`."""

    name: Annotated[
        str,
        Meta(
            description="Prefix of the nodes' names.",
            examples=["train"],
            extra_json_schema={"pattern": f"^{_NAME.pattern}$"},
        ),
    ]
    count: Annotated[int, Meta(ge=1, le=MAX_NODES, description="Number of nodes.")] = 1
    gpu: Annotated[
        str | None,
        Meta(
            description="GPU product: the value of nvidia.com/gpu.product or an alias as h100.",
            examples=["h100"],
        ),
    ] = None
    gpus_per_node: Annotated[
        _GpuCount | None, Meta(description="GPUs of each node; 8 by default.", examples=[8])
    ] = None
    cpu: Annotated[int | str, Meta(description="CPU of each node as a quantity.", examples=["96"])] = ""
    memory: Annotated[str, Meta(description="Memory of each node as a quantity.", examples=["384Gi"])] = ""
    ephemeral_storage: Annotated[str, Meta(description="Local disk of each node as a quantity.")] = "1Ti"
    pods: Annotated[int, Meta(ge=1, le=1000, description="How many pods a node may run.")] = 110
    pool: Annotated[
        str,
        Meta(description="GPUPool of the nodes, and label gpufleet.dev/pool; the group's name by default."),
    ] = ""
    purpose: Annotated[str, Meta(description="Label gpufleet.dev/purpose, as training or inference.")] = ""
    region: Annotated[str, Meta(description="Label topology.kubernetes.io/region.")] = "local"
    zone: Annotated[str, Meta(description="Zone of all nodes.", examples=["local-a"])] = ""
    zones: Annotated[
        tuple[str, ...], Meta(description="Zones; whole racks take turns.", examples=[["local-a", "local-b"]])
    ] = ()
    rack: Annotated[str, Meta(description="Rack of all nodes (label gpufleet.dev/rack).")] = ""
    nodes_per_rack: Annotated[
        int, Meta(ge=0, le=MAX_NODES, description="Fill racks named <group>-r<number> with so many nodes.")
    ] = 0
    labels: Annotated[
        dict[str, str],
        Meta(
            description="More node labels, but for those that the other fields set.",
            examples=[{"team": "vision"}],
        ),
    ] = {}
    taints: Annotated[
        tuple[str, ...],
        Meta(description="Taints as key=value:Effect.", examples=[["nvidia.com/gpu=present:NoSchedule"]]),
    ] = ()
    mig: Annotated[
        str | tuple[str, ...] | None,
        Meta(
            description="MIG layout of every GPU: a name as all-balanced, a list of profiles, or dynamic "
            "(GPUs are cut as pods need it).",
            examples=["all-balanced"],
        ),
    ] = None
    sharing: Annotated[Sharing, Meta(description="Sharing of whole GPUs.")] = Sharing()

    @property
    def product(self) -> Product | None:
        """The GPU product, None for nodes without GPUs."""
        return None if self.gpu is None else find_product(self.gpu)

    def node_name(self, number: int) -> str:
        """The name of one of the group's nodes."""
        return f"{self.name}-{number}"

    @property
    def pool_label(self) -> str:
        """The value of the label gpufleet.dev/pool."""
        return self.pool or self.name

    @property
    def dynamic(self) -> bool:
        """Whether GPUs are cut as pods need it."""
        return self.mig == DYNAMIC

    @property
    def switches_mig(self) -> bool:
        """Whether GPUs that are cut as pods need it become whole again: others are in MIG mode for good."""
        return self.dynamic and self.product is not None and self.product.compute >= mig.SWITCHES_AT_ONCE

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        if self.gpu is None:
            return 0
        return 8 if self.gpus_per_node is None else self.gpus_per_node

    @property
    def profiles(self) -> tuple[str, ...] | None:
        """MIG profiles of every GPU at first, None while MIG mode is off."""
        product = self.product
        if self.mig is None or product is None:
            return None
        if self.dynamic:
            return None if self.switches_mig else ()
        geometry = mig.geometry_of(product)
        return mig.layout(geometry, self.mig) if isinstance(self.mig, str) else self.mig

    @property
    def cpu_quantity(self) -> str:
        """CPU of each node; 24 cores per GPU by default, at least 16."""
        return str(self.cpu) if self.cpu != "" else str(max(16, 24 * self.gpus))

    @property
    def memory_quantity(self) -> str:
        """Memory of each node; 256 GiB per GPU by default, at least 64 GiB."""
        return self.memory or f"{max(64, 256 * self.gpus)}Gi"

    @property
    def node_taints(self) -> tuple[Taint, ...]:
        """The taints that the nodes register with."""
        return tuple(parse_taint(text) for text in self.taints)


class Simulation(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How long things take on simulated nodes, in seconds."""

    image_pull_seconds: Annotated[_Seconds, Meta(description="Pull of an image new to the node.")] = 0.4
    start_seconds: Annotated[_Seconds, Meta(description="Start of one container.")] = 0.2
    weight_load_seconds: Annotated[
        _Seconds,
        Meta(description="Time that a probed container with GPUs loads weights before its probes pass."),
    ] = 0.3
    init_seconds: Annotated[_Seconds, Meta(description="Run time of an init container.")] = 0.2
    job_seconds: Annotated[
        _Seconds,
        Meta(
            description="Run time of pods that end (restartPolicy Never or OnFailure) without sim-duration."
        ),
    ] = 30.0
    termination_seconds: Annotated[_Seconds, Meta(description="End of a container after SIGTERM.")] = 0.5
    mig_seconds: Annotated[_Seconds, Meta(description="Cut of GPUs by MIG.")] = 0.3
    backoff_seconds: Annotated[
        _Seconds,
        Meta(description="First pause before a failed container starts again; it doubles up to 300."),
    ] = 10.0


class Fleet(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A local fleet."""

    groups: Annotated[tuple[Group, ...], Meta(min_length=1, description="The machines.")]
    simulation: Annotated[Simulation, Meta(description="How long things take.")] = Simulation()

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(group.count for group in self.groups)

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names of all nodes, in the order of the file."""
        return tuple(group.node_name(number) for group in self.groups for number in range(group.count))


def parse_fleet(text: str, source: str) -> Fleet:
    """The fleet described by YAML `text`; raises GpufleetError with `source`, line and column."""
    document = YamlDocument(text, source)
    fleet = document.decode(Fleet, REASON, "docs/reference/fleet-file.md explains every field")
    _check(fleet, document)
    return fleet


def presets() -> dict[str, str]:
    """The text of every preset by name."""
    folder = resources.files("gpufleet.local") / "presets"
    files = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda e: e.name
    )
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in files}


def load_fleet(name_or_path: str) -> tuple[Fleet, str]:
    """The fleet of a preset's name or of a file, with its text; raises GpufleetError."""
    known = presets()
    if name_or_path in known:
        text = known[name_or_path]
        return parse_fleet(text, f"preset {name_or_path}"), text
    path = Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GpufleetError(
            reason=REASON,
            message=f"{name_or_path}: byte {error.start} is not UTF-8",
            hint="save the file as UTF-8 text",
        ) from None
    except OSError as error:
        near = difflib.get_close_matches(name_or_path, known, n=1)
        raise GpufleetError(
            reason="FleetNotFound",
            message=f"cannot read the fleet file {name_or_path}: {error.strerror}",
            hint=(f"did you mean the preset {near[0]!r}? " if near else "")
            + f"presets: {', '.join(known)}; or the path of a fleet file",
        ) from None
    return parse_fleet(text, name_or_path), text


def schema() -> dict[str, Any]:
    """The JSON schema of fleet files."""
    body = msgspec.json.schema(Fleet)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gpufleet fleet file", **body}


def _check(fleet: Fleet, document: YamlDocument) -> None:
    if fleet.nodes > MAX_NODES:
        raise document.error(
            "$.groups", REASON, f"{fleet.nodes} nodes are more than {MAX_NODES}", "lower the counts"
        )
    seen: set[str] = set()
    for number, group in enumerate(fleet.groups):
        path = f"$.groups[{number}]"
        if group.name in seen:
            raise document.error(
                f"{path}.name", REASON, f"two groups are named {group.name!r}", "names are unique"
            )
        seen.add(group.name)
        for field, problem, hint in _problems(group):
            raise document.error(f"{path}.{field}", REASON, problem, hint)


def _problems(group: Group) -> list[tuple[str, str, str]]:
    """Field, problem and remedy of everything that is wrong with a group, in the order of its fields."""
    return [
        *_name_problems(group),
        *_gpu_problems(group),
        *_quantity_problems(group),
        *_topology_problems(group),
        *_label_problems(group),
    ]


def _name_problems(group: Group) -> list[tuple[str, str, str]]:
    if _NAME.fullmatch(group.name):
        return []
    problem = f"{group.name!r} cannot begin the names of nodes"
    return [("name", problem, "use at most 40 of a-z, 0-9 and inner -, for example name: train")]


def _gpu_problems(group: Group) -> list[tuple[str, str, str]]:
    if group.gpu is None:
        fields = {"gpusPerNode": group.gpus_per_node is not None, "mig": group.mig is not None}
        fields["sharing"] = group.sharing.time_slicing is not None
        return [(name, f"{name} needs a gpu", "add gpu: h100") for name, given in fields.items() if given]
    try:
        group.product  # noqa: B018 - raises for an unknown product
    except GpufleetError as error:
        return [("gpu", error.message, error.hint)]
    if group.mig is not None and group.sharing.time_slicing is not None:
        return [("sharing", "time-slicing of MIG instances is not simulated", "remove mig or sharing")]
    return _mig_problems(group)


def _mig_problems(group: Group) -> list[tuple[str, str, str]]:
    product = group.product
    if group.mig is None or product is None:
        return []
    try:
        mig.cut(mig.geometry_of(product), group.profiles or ())
    except GpufleetError as error:
        return [("mig", error.message, error.hint)]
    return []


def _quantity_problems(group: Group) -> list[tuple[str, str, str]]:
    problems = []
    amounts = {"cpu": group.cpu_quantity, "memory": group.memory_quantity}
    amounts["ephemeralStorage"] = group.ephemeral_storage
    for field, quantity in amounts.items():
        try:
            amount = resource_amount(field, quantity)
        except GpufleetError as error:
            problems.append((field, error.message, error.hint))
            continue
        if amount <= 0:
            problems.append((field, f"{field} must be more than 0", "write for example 96, 384Gi or 1Ti"))
        elif amount > _LARGEST:
            problem = f"{field} of {quantity} is more than Kubernetes can count"
            problems.append((field, problem, "write for example 96, 384Gi or 1Ti"))
    return problems


def _topology_problems(group: Group) -> list[tuple[str, str, str]]:
    problems = []
    if group.zone and group.zones:
        problems.append(("zones", "zone and zones exclude each other", "keep one of them"))
    if group.rack and group.nodes_per_rack:
        problems.append(("nodesPerRack", "rack and nodesPerRack exclude each other", "keep one of them"))
    values = {"pool": group.pool, "purpose": group.purpose, "region": group.region}
    values |= {"zone": group.zone, "rack": group.rack}
    values |= {f"zones[{number}]": zone for number, zone in enumerate(group.zones)}
    for field, value in values.items():
        problem = label_problem("gpufleet.dev/x", value)
        if problem:
            problems.append((field, problem, "use letters, digits, '-', '_' and '.'"))
    if group.gpu is not None and group.pool and (problem := object_problem(group.pool)):
        problems.append(("pool", problem, "a GPUPool gets this name: use a-z, 0-9, '-' and '.'"))
    return problems


def _label_problems(group: Group) -> list[tuple[str, str, str]]:
    problems = []
    for key, value in group.labels.items():
        problem, hint = label_problem(key, value), "see kubernetes.io/docs, labels and selectors"
        setter = _SET_BY.get(key) or ("gpu, mig and sharing" if key.startswith(_OF_DEVICES) else "")
        if setter:
            problem, hint = f"the label {key} is set by gpufleet", f"remove it; it comes from {setter}"
        if problem:
            problems.append((f'labels["{key}"]', problem, hint))
    for number, text in enumerate(group.taints):
        try:
            parse_taint(text)
        except GpufleetError as error:
            problems.append((f"taints[{number}]", error.message, error.hint))
    return problems
