"""From bytes to objects: one typed decoder per type, lists read object by object only when they must be.

The cyclic garbage collector is off while a big answer is decoded: each generation-2 pass would walk all
that was decoded so far, which makes a list of 10,000 pods two to eight times slower.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kinds import Kind, key_of
from gpufleet.kube.objects.meta import PartialObject

if TYPE_CHECKING:
    import typing_extensions

    T = typing_extensions.TypeVar("T", default=dict[str, Any])
else:
    T = TypeVar("T")

log = logging.getLogger("gpufleet.kube.decoding")

_BIG = 65536


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Metadata of a list; `continue_` is the token of the next chunk."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, Generic[T], frozen=True):
    items: list[T] | None
    metadata: ListMeta = ListMeta()


class _BoundSpec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str | None = None


class _Bound(msgspec.Struct, frozen=True):
    spec: _BoundSpec


class Listing(Generic[T]):
    """The objects of a list, and the version of the collection that they are the state of.

    `skipped` has the objects (`namespace/name`) that could not be decoded as the wanted type, each with the
    node that it is bound to: empty for what is no pod or is bound to none.
    """

    __slots__ = ("items", "resource_version", "skipped")

    def __init__(self, items: list[T], resource_version: str, skipped: dict[str, str] | None = None) -> None:
        self.items = items
        self.resource_version = resource_version
        self.skipped = skipped or {}


class Identity(typing.NamedTuple):
    """What every object has: its key, uid and resourceVersion."""

    key: str
    uid: str
    resource_version: str


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    """The decoder for a type; `dict` means any object."""
    found = _decoders.get(wanted)
    if found is None:
        found = _decoders[wanted] = msgspec.json.Decoder(dict[str, Any] if wanted is dict else wanted)
    return found


def decode(body: bytes, wanted: type[T]) -> T:
    """One object. Raises GpufleetError UnexpectedObject when it is not of the wanted type."""
    try:
        return typing.cast("T", decoder(wanted).decode(body))
    except msgspec.DecodeError as error:
        raise GpufleetError(
            reason="UnexpectedObject",
            message=f"the API server sent something that is no {wanted.__name__}: {error}",
        ) from None


def decode_page(body: bytes, wanted: type[T], kind: Kind) -> tuple[Listing[T], str]:
    """One chunk of a list and the token of the next one (empty at the end).

    An object that does not decode is logged and named in `skipped`; the others are kept.
    """
    item = dict[str, Any] if wanted is dict else wanted
    with collector_paused(len(body)):
        try:
            page = decoder(_Page[item]).decode(body)  # type: ignore[valid-type]
        except msgspec.ValidationError:
            return _decode_one_by_one(body, wanted, kind)
        except msgspec.DecodeError as error:
            raise GpufleetError(
                reason="UnexpectedObject", message=f"the list of {kind.plural} is broken: {error}"
            ) from None
    return Listing(page.items or [], page.metadata.resource_version), page.metadata.continue_


def _decode_one_by_one(body: bytes, wanted: type[T], kind: Kind) -> tuple[Listing[T], str]:
    try:
        page = decoder(_Page[msgspec.Raw]).decode(body)
    except msgspec.DecodeError as error:
        raise GpufleetError(
            reason="UnexpectedObject", message=f"the list of {kind.plural} is broken: {error}"
        ) from None
    items: list[T] = []
    skipped: dict[str, str] = {}
    for raw in page.items or ():
        try:
            items.append(decoder(wanted).decode(raw))
        except msgspec.ValidationError as error:
            skipped[report_undecodable(kind, raw, error)] = node_named_in(raw)
    return Listing(items, page.metadata.resource_version, skipped), page.metadata.continue_


def report_undecodable(kind: Kind, raw: bytes | msgspec.Raw, error: Exception) -> str:
    """Log an object that is not of the expected form; its key, or an empty string if unreadable."""
    try:
        key: str = decoder(PartialObject).decode(raw).metadata.key
    except msgspec.DecodeError:
        key = ""
    log.error(
        "left out an object that does not decode: %s",
        error,
        extra={"kind": kind.resource, "object": key, "problem": str(error)},
    )
    return key


def node_named_in(raw: bytes | msgspec.Raw) -> str:
    """`spec.nodeName` of an object whatever else is in it; empty where there is none."""
    try:
        return decoder(_Bound).decode(raw).spec.node_name or ""
    except msgspec.DecodeError:
        return ""


@contextlib.contextmanager
def collector_paused(size: int) -> Iterator[None]:
    """Keep the cyclic collector off while `size` bytes are decoded; small sizes are not worth it."""
    if size < _BIG or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def identity(obj: Any) -> Identity:
    """Key, uid and resourceVersion of a struct with `metadata` or of a dict."""
    if isinstance(obj, dict):
        meta = obj["metadata"]
        return Identity(
            key_of(meta.get("name", ""), meta.get("namespace", "")),
            meta.get("uid", ""),
            meta.get("resourceVersion", ""),
        )
    meta = obj.metadata
    return Identity(key_of(meta.name, meta.namespace), meta.uid, meta.resource_version)
