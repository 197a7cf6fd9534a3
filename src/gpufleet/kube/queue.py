"""`Queue`: what a team is guaranteed, what it may hold at most, and how it borrows.

Amounts are quantities as people write them; `queue_value` makes integers of them. A pod names its queue by
the label `gpufleet.dev/queue`, or its namespace does.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from gpufleet.fleet import queues
from gpufleet.fleet.quantities import parse_quantity
from gpufleet.kube.crds import Column, CustomResource, Rule
from gpufleet.kube.kinds import QUEUES
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta
from gpufleet.kube.times import parse_time

RULE = "gpufleet Queue"
MAX_WEIGHT = 1_000_000
MAX_PRIORITY = 1_000_000_000
_COUNT = r"^([0-9]{1,9}(\.[0-9]{1,3})?|[0-9]{1,12}m)$"
_BYTES = r"^[0-9]{1,18}(\.[0-9]{1,9})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_LONGEST = 32


def _quantity(pattern: str, description: str) -> Any:
    extra = {"pattern": pattern, "maxLength": _LONGEST, "minimum": 0}
    return Meta(description=description, extra_json_schema=extra)


class QueueAmounts(APIStruct, frozen=True, kw_only=True):
    """Amounts of what queues divide; what is absent is not stated."""

    gpu: Annotated[
        int | str,
        _quantity(_COUNT, "GPUs, to a thousandth: 4, 2.5 or 500m. MIG instances count by compute slices."),
    ] = ""
    cpu: Annotated[int | str, _quantity(_COUNT, "Cores: 10, 0.5 or 500m.")] = ""
    memory: Annotated[int | str, _quantity(_BYTES, "Bytes: 64Gi.")] = ""


def _at_most(lower: str, upper: str, message: str) -> tuple[Rule, ...]:
    """Rules that each amount of `lower` is at most that of `upper`, where both are stated."""
    return tuple(
        Rule(
            rule=f"!has(self.{lower}) || !has(self.{lower}.{name}) || !has(self.{upper}) || "
            f"!has(self.{upper}.{name}) || !isQuantity(string(self.{lower}.{name})) || "
            f"!isQuantity(string(self.{upper}.{name})) || "
            f"quantity(string(self.{lower}.{name})).compareTo(quantity(string(self.{upper}.{name}))) <= 0",
            message=f"{name}: {message}",
            field_path=f".{lower}.{name}",
        )
        for name in queues.RESOURCES
    )


class QueueSpec(APIStruct, frozen=True, kw_only=True):
    """What is asked for a queue."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        *_at_most("guarantee", "limit", "the guarantee is more than the limit"),
        *_at_most("lendingLimit", "guarantee", "only what is guaranteed can be lent"),
    )

    parent: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            description="The queue above this one; absent for a top queue.",
        ),
    ] = ""
    guarantee: Annotated[
        QueueAmounts,
        Meta(
            description="What the queue gets before anybody borrows. What is not stated is nothing for a "
            "queue of pods, and for one with queues below it what those are guaranteed together."
        ),
    ] = QueueAmounts()
    limit: Annotated[
        QueueAmounts, Meta(description="What the queue may hold at most; what is not stated has no limit.")
    ] = QueueAmounts()
    lending_limit: Annotated[
        QueueAmounts,
        Meta(
            description="How much of its guarantee others may use while the queue does not; what is not "
            "stated is lent as a whole."
        ),
    ] = QueueAmounts()
    weight: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_WEIGHT,
            description="The part of what nobody is guaranteed, beside the weights of the other queues of "
            "the same parent; 0 borrows nothing.",
            extra_json_schema={"default": 1},
        ),
    ] = 1
    priority: Annotated[
        int,
        Meta(
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description="Queues of a higher priority borrow first.",
            extra_json_schema={"default": 0},
        ),
    ] = 0


class Queue(APIStruct, frozen=True, kw_only=True):
    """What a team, or a group of teams, is guaranteed, may hold at most and may borrow. Pods wait in queues
    without other queues below.
    """

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="size(self.metadata.name) <= 63",
            message="the name is the value of a label, so it has at most 63 characters",
        ),
        Rule(
            rule="!has(self.spec.parent) || self.spec.parent != self.metadata.name",
            message="a queue is not its own parent",
        ),
    )

    metadata: ObjectMeta
    spec: Annotated[QueueSpec, Meta(description="What is asked.")]


def queue_value(queue: Queue) -> queues.Queue:
    """The queue as decisions read it. Raises GpufleetError (BadQuantity)."""
    spec = queue.spec
    gpu, cpu, memory = (_quota(spec, name) for name in queues.RESOURCES)
    return queues.Queue(
        name=queue.metadata.name,
        rule=RULE,
        parent=spec.parent,
        gpu=gpu,
        cpu=cpu,
        memory=memory,
        priority=spec.priority,
        created=parse_time(queue.metadata.creation_timestamp),
    )


def _quota(spec: QueueSpec, name: str) -> queues.Quota:
    guarantee = _amount(spec.guarantee, name)
    return queues.Quota(
        guarantee or 0,
        _amount(spec.limit, name),
        _amount(spec.lending_limit, name),
        spec.weight * queues.UNIT_WEIGHT,
        includes_children=guarantee is None,
    )


def _amount(amounts: QueueAmounts, name: str) -> int | None:
    """An amount in the unit of `fleet.queues.Amounts`; a part of a unit is cut off."""
    text = str(getattr(amounts, name))
    return int(parse_quantity(text) * (1 if name == "memory" else 1000)) if text else None


QUEUE = CustomResource(
    kind=QUEUES,
    type=Queue,
    short_names=("gpuq",),
    columns=(
        Column("Parent", "string", ".spec.parent", "The queue above."),
        Column("Guarantee", "string", ".spec.guarantee.gpu", "GPUs before anybody borrows."),
        Column("Limit", "string", ".spec.limit.gpu", "GPUs at most."),
        Column("Weight", "integer", ".spec.weight", "The part of what nobody is guaranteed."),
        Column("Priority", "integer", ".spec.priority", "Who borrows first.", 1),
    ),
)
