"""What a pool asks of the devices of a node, and where they are not like that.

A named layout or a list of profiles becomes one wish for each GPU, checked against the geometry of its
product before anybody acts on it. While `disruption` is `advise` no GPU is asked to be cut anew: the wish is
held back and told as a reason instead. Where MIG is dynamic the scheduler writes the wishes, and here they
are only compared with what is.
Source of the names of layouts: NVIDIA MIG manager; of resource names: NVIDIA device plugin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from gpufleet.devices.plugin_config import GPU_RESOURCE
from gpufleet.fleet import mig
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.products import find_product
from gpufleet.fleet.reasons import Reason
from gpufleet.kube.gpunode import GPUDevice, GPUNode, MigWish, SharingWish
from gpufleet.kube.gpupool import GPUPoolSpec, PoolMig, PoolSharing

ALL_DISABLED = "all-disabled"
SHARED_SUFFIX = ".shared"
STRATEGY_LABEL = "nvidia.com/gpu.sharing-strategy"
STRATEGIES = {"none": "none", "timeSlicing": "time-slicing", "mps": "mps"}
"""The values of that label (GPU Feature Discovery) by mode."""


class Wish(msgspec.Struct, frozen=True):
    """What `spec.desired` of a GPUNode is to say for a pool; `mig` is None where the scheduler writes it."""

    pool: str = ""
    dynamic: bool = False
    allow_mode_switch: bool = False
    sharing: SharingWish | None = None
    mig: tuple[MigWish, ...] | None = ()

    @property
    def body(self) -> dict[str, object]:
        """`spec.desired` as our field manager applies it: what is left out is not ours any more.

        Without a pool that is everything but `mig`, which also clears what the scheduler asked for.
        """
        body: dict[str, object] = {}
        if self.pool:
            body = {"pool": self.pool, "dynamic": self.dynamic, "allowModeSwitch": self.allow_mode_switch}
        if self.sharing is not None:
            body["sharing"] = msgspec.to_builtins(self.sharing)
        if self.mig is not None:
            body["mig"] = msgspec.to_builtins(self.mig)
        return body


def wish_of(pool: str, spec: GPUPoolSpec, node: GPUNode) -> Wish:
    """What a pool asks of a node."""
    acts = spec.disruption == "act"
    cut = spec.mig or PoolMig()
    wishes, _ = _cuts(spec.mig, node.status.devices)
    return Wish(
        pool,
        dynamic=cut.dynamic and acts,
        allow_mode_switch=cut.allow_mode_switch,
        sharing=_sharing(spec.sharing),
        mig=None if cut.dynamic else wishes if acts else (),
    )


def asks_already(node: GPUNode, wish: Wish) -> bool:
    """Whether the GPUNode asks exactly this of its agent; whatever the scheduler asks is right."""
    have = node.spec.desired
    mig = None if wish.mig is None else have.mig
    return wish == Wish(have.pool, have.dynamic, have.allow_mode_switch, have.sharing, mig)


def device_drift(spec: GPUPoolSpec, node: GPUNode | None, labels: Mapping[str, str]) -> tuple[Reason, ...]:
    """Why the devices of a node are not as the pool asks; nothing when they are, or when it asks nothing."""
    if spec.mig is None and spec.sharing is None:
        return ()
    if node is None or not node.status.devices:
        return (Reason("PoolNodeUnreported", "no agent has reported the GPUs of the node yet"),)
    return (*_mig_drift(spec, node), *_sharing_drift(spec.sharing, node, labels))


def _sharing(sharing: PoolSharing | None) -> SharingWish | None:
    if sharing is None:
        return None
    fails = sharing.fail_requests_greater_than_one
    return SharingWish(
        mode=sharing.mode,
        replicas=sharing.replicas or 1,
        rename=sharing.rename,
        fail_requests_greater_than_one=sharing.mode == "mps" if fails is None else fails,
    )


def _cuts(
    asked: PoolMig | None, devices: Sequence[GPUDevice]
) -> tuple[tuple[MigWish, ...], tuple[Reason, ...]]:
    """A wish for each GPU that can be cut as asked, and why the others cannot."""
    if asked is None or asked.dynamic:
        return (), ()
    wishes: list[MigWish] = []
    problems: list[str] = []
    for device in devices:
        try:
            enabled, profiles = _cut(device.product, asked)
        except GpufleetError as error:
            problems.append(f"GPU {device.index}: {error.message}")
        else:
            wishes.append(MigWish(uuid=device.uuid, enabled=enabled, profiles=profiles))
    return tuple(wishes), _told("PoolMigImpossible", problems, len(devices), "cannot be cut as asked")


@lru_cache(maxsize=1024)
def _cut(product: str, asked: PoolMig) -> tuple[bool, tuple[str, ...]]:
    """MIG mode and the profiles of a GPU; raises GpufleetError when the product cannot be cut like that."""
    if asked.layout == ALL_DISABLED:
        return False, ()
    geometry = mig.geometry_of(find_product(product))
    names = mig.layout(geometry, asked.layout) if asked.layout else asked.profiles
    return True, tuple(sorted(placement.profile for placement in mig.cut(geometry, names)))


def _mig_drift(spec: GPUPoolSpec, node: GPUNode) -> Iterator[Reason]:
    asked, devices, desired = spec.mig, node.status.devices, node.spec.desired
    if asked is None:
        return
    acts = spec.disruption == "act"
    if asked.dynamic and not acts:
        yield Reason("PoolMigAdvised", "GPUs are not cut as pods need it before spec.disruption is act")
        return
    wishes, impossible = _cuts(asked, devices)
    yield from impossible
    targets = {wish.uuid: wish for wish in (desired.mig if asked.dynamic else wishes)}
    wrong = [
        (device, targets[device.uuid])
        for device in devices
        if device.uuid in targets and not _is_cut(device, targets[device.uuid])
    ]
    switches = any(device.mig_enabled != wish.enabled for device, wish in wrong)
    if not acts:
        code, what = "PoolMigAdvised", "would be cut anew if spec.disruption were act"
    elif switches and not asked.allow_mode_switch:
        code, what = (
            "PoolMigModeSwitch",
            "need a switch of MIG mode, which mig.allowModeSwitch does not allow",
        )
    else:
        code, what = "PoolMigDrift", "are not cut as asked"
    texts = [f"GPU {device.index} has {_has(device)}, asked for is {_asks(wish)}" for device, wish in wrong]
    yield from _told(code, texts, len(devices), what)


def _is_cut(device: GPUDevice, wish: MigWish) -> bool:
    if device.mig_enabled != wish.enabled:
        return False
    if wish.instances:
        places = sorted((one.profile, one.start) for one in wish.instances)
        return sorted((one.profile, one.start) for one in device.instances) == places
    return sorted(one.profile for one in device.instances) == sorted(wish.profiles)


def _has(device: GPUDevice) -> str:
    return _layout(device.mig_enabled, [one.profile for one in device.instances])


def _asks(wish: MigWish) -> str:
    return _layout(wish.enabled, [one.profile for one in wish.instances] or wish.profiles)


def _layout(enabled: bool, profiles: Sequence[str]) -> str:
    return mig.summary(profiles) or "no instance" if enabled else "MIG off"


def _sharing_drift(sharing: PoolSharing | None, node: GPUNode, labels: Mapping[str, str]) -> Iterator[Reason]:
    wish = _sharing(sharing)
    if wish is None:
        return
    offered = {resource.name: resource.capacity for resource in node.status.resources}
    suffix = SHARED_SUFFIX if wish.rename else ""
    whole, counts = 0, Counter[str]()
    for device in node.status.devices:
        whole += not device.mig_enabled
        counts.update(mig.mig_resource(one.profile) for one in device.instances)
    for resource, count in ((GPU_RESOURCE, whole), *sorted(counts.items())):
        name, wanted = resource + suffix, count * wish.replicas
        if count and offered.get(name, 0) != wanted:
            text = f"{name} is offered {offered.get(name, 0)} times, asked for is {wanted}"
            yield Reason("PoolSharingDrift", f"{text} ({count} devices, {wish.replicas} replicas each)")
            return
    strategy, known = STRATEGIES[wish.mode], labels.get(STRATEGY_LABEL, "")
    if whole and known and known != strategy:
        yield Reason("PoolSharingDrift", f"GPUs are shared by {known}, asked for is {strategy}")


def _told(code: str, texts: Sequence[str], total: int, what: str) -> tuple[Reason, ...]:
    """One reason for all GPUs that something is the matter with: how many, and the first of them."""
    if not texts:
        return ()
    message = f"{len(texts)} of {total} GPUs {what}: {texts[0]}"
    return (Reason(code, message, evidence={"gpus": len(texts), "of": total}),)
