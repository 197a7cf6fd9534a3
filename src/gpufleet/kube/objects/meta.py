"""What every object carries: metadata, owners, references, conditions and label selectors."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.kube.kinds import key_of


class APIStruct(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """The base of all decoded structs: camelCase in JSON, immutable, defaults left out when encoded."""


class OwnerReference(APIStruct, frozen=True, kw_only=True):
    """The owner of an object; `controller` marks the one that manages it."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(APIStruct, frozen=True, kw_only=True):
    """Metadata of an object. Times are RFC 3339 strings; `deletion_timestamp` is None while it lives."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`, or `name` for cluster scope."""
        return key_of(self.name, self.namespace)

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that manages this object, if any."""
        return next((owner for owner in self.owner_references if owner.controller), None)


class PartialObject(APIStruct, frozen=True, kw_only=True):
    """Any object read for its metadata alone."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta


class ObjectReference(APIStruct, frozen=True, kw_only=True):
    """A reference to an object, as in events and claimRef."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class LocalObjectReference(APIStruct, frozen=True, kw_only=True):
    """A reference to an object of the same namespace."""

    name: str = ""


class Condition(APIStruct, frozen=True, kw_only=True):
    """A condition of any object; `status` is True, False or Unknown."""

    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    last_probe_time: str | None = None
    last_heartbeat_time: str | None = None
    observed_generation: int = 0


class LabelSelectorRequirement(APIStruct, frozen=True, kw_only=True):
    """One expression; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(APIStruct, frozen=True, kw_only=True):
    """A conjunction of labels and expressions; empty matches everything, absent (None) nothing."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()
