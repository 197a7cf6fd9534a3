"""Who owns each part of a GPU node, and what gpufleet does about it.

The kubelet keeps one registrar per resource and takes the last one, and two plugins with different resources
give one GPU away twice. So a part is ours only when nobody has it and nobody may come for it. Evidence is
weighed in this order: what the node's capacity says, what runs or may run on the node, what lies on the host,
whose node it is. What could not be read counts against us.
Source of the rules: docs/concepts/ownership.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import msgspec

from gpufleet.devices.ownership_facts import Component, Facts, Source
from gpufleet.fleet.reasons import Reason

Does = Literal["run", "leave", "label-only"]

COMPONENTS: tuple[Component, ...] = get_args(Component)

STALE_AFTER_S = 300
"""A resource that has been at zero this long has no registrar any more: the kubelet keeps a silent one for
five minutes, and after a reboot a plugin may come back.
"""

UNKNOWN = "unknown"
"""The owner of a part that somebody has, or may have, and nothing tells who."""

HOST_SERVICE = "host-service"
"""The owner of a part that runs on the host outside any pod, where nothing tells whose service it is."""


class Part(msgspec.Struct, frozen=True):
    """One part of the node. `owner` is `ours`, `none` or `external:<who>`; `command` shows or mends it."""

    component: Component
    owner: str
    does: Does
    reasons: tuple[Reason, ...]
    command: str = ""


class Ownership(msgspec.Struct, frozen=True):
    """The parts of a node. `provider` is whose node it is, empty where that tells nothing."""

    node: str
    provider: str
    parts: tuple[Part, ...]

    def part(self, component: Component) -> Part:
        """One part."""
        return next(part for part in self.parts if part.component == component)

    @property
    def registers(self) -> bool:
        """Whether our device plugin may register resources."""
        return self.part("device-plugin").does == "run"


class Provider(msgspec.Struct, frozen=True):
    """Whose node it is, how that shows, and which parts come with it (the others are free)."""

    name: str
    evidence: str
    parts: frozenset[str]


class Claim(msgspec.Struct, frozen=True):
    """Evidence that somebody has a part, or may have it."""

    who: str
    reason: Reason
    command: str = ""


def ownership(facts: Facts) -> Ownership:
    """Who owns each part of a node."""
    provider = provider_of(facts)
    driver = _driver(facts, provider)
    plugin = _plugin(facts, provider, driver)
    parts = (
        driver,
        _toolkit(facts, provider),
        plugin,
        _plain("exporter", facts, provider, driver),
        _plain("labels", facts, provider, driver),
        _following("mig-manager", facts, provider, driver, plugin),
        _following("mps", facts, provider, driver, plugin),
    )
    return Ownership(facts.node, provider.name, parts)


# ------------------------------------------------------------------------------------------------- providers

_GKE_OPT_OUT = "gke-no-default-nvidia-gpu-device-plugin"


def _gke(facts: Facts) -> str:
    found = sorted(key for key in facts.labels if key.startswith("cloud.google.com/gke-"))
    return found[0] if facts.provider_id.startswith("gce://") and found else ""


def _gke_opted_out(facts: Facts) -> str:
    return f"label {_GKE_OPT_OUT}=true" if _gke(facts) and facts.labels.get(_GKE_OPT_OUT) == "true" else ""


def _label(key: str, value: str) -> Callable[[Facts], str]:
    return lambda facts: f"label {key}={value}" if facts.labels.get(key) == value else ""


def _image(start: str, scheme: str = "") -> Callable[[Facts], str]:
    def shows(facts: Facts) -> str:
        found = facts.os_image.startswith(start) and facts.provider_id.startswith(scheme)
        return f"osImage={facts.os_image}" if found else ""

    return shows


def _aks_managed(facts: Facts) -> str:
    if not facts.provider_id.startswith("azure://"):
        return ""
    conditions = facts.conditions & {"UnhealthyNvidiaDevicePlugin", "UnhealthyNvidiaDCGMServices"}
    label = _label("kubernetes.azure.com/dcgm-exporter", "enabled")(facts)
    return f"condition {min(conditions)}" if conditions else label


def _aks(facts: Facts) -> str:
    found = sorted(key for key in facts.labels if key.startswith("kubernetes.azure.com/"))
    return f"label {found[0]}" if facts.provider_id.startswith("azure://") and found else ""


_PROVIDERS: tuple[tuple[str, Callable[[Facts], str], str], ...] = (
    # provider        what shows it                                      what comes with the node
    ("gke-opted-out", _gke_opted_out,                                    ""),
    ("gke",           _gke,                                              "device-plugin mig-manager mps"),
    ("eks-auto",      _label("eks.amazonaws.com/compute-type", "auto"),
     "driver toolkit device-plugin mig-manager mps"),
    ("bottlerocket",  _image("Bottlerocket"),              "driver toolkit device-plugin mig-manager mps"),
    ("aks-managed",   _aks_managed,               "driver toolkit device-plugin exporter mig-manager mps"),
    ("aks",           _aks,                                              "driver toolkit mig-manager"),
    ("eks-al2023",    _image("Amazon Linux 2023", "aws://"),             "driver toolkit"),
)  # fmt: skip
"""Clouds and node images by the first row that shows. The driver of a GKE node stands in a label instead."""


def provider_of(facts: Facts) -> Provider:
    """Whose node it is; an empty name where nothing comes with it."""
    for name, shows, parts in _PROVIDERS:
        evidence = shows(facts)
        if evidence:
            return Provider(name, evidence, frozenset(parts.split()))
    return Provider("", "", frozenset())


# ---------------------------------------------------------------------------------------------------- claims

_NEEDED: dict[str, tuple[Source, ...]] = {
    "exporter": ("node", "pods", "daemonsets", "crds", "operators", "host"),
    "labels": ("node", "pods", "daemonsets", "crds", "operators", "host"),
}
_ALL: tuple[Source, ...] = get_args(Source)
"""What must have been read before a part can be nobody's: for what is not in `_NEEDED`, everything."""

_DEPLOY_LABELS = {
    "driver": "driver",
    "toolkit": "container-toolkit",
    "device-plugin": "device-plugin",
    "exporter": "dcgm-exporter",
    "labels": "gpu-feature-discovery",
    "mig-manager": "mig-manager",
    "mps": "device-plugin",
}
"""The label `nvidia.com/gpu.deploy.*` by which the GPU operator places a part."""

_NOT_PLACED = ("false", "pre-installed")
"""Values of such a label by which the operator keeps away; any other one is a pause."""

_SHARED_SWITCH = {"mps": "device-plugin"}
"""Parts that another part of a ClusterPolicy switches on and off."""


def claims(component: Component, facts: Facts, provider: Provider) -> tuple[Claim, ...]:
    """Everything that says that somebody else has a part or may have it, in the order of evidence."""
    found: list[Claim] = []
    if component == "device-plugin":
        found += [*_registered(facts), *_dynamic(facts)]
    elif component in ("mig-manager", "mps"):
        found += _dynamic(facts)
    found += [*_running(component, facts), *_operated(component, facts), *_on_host(component, facts)]
    if component in provider.parts:
        found.append(_provided(component, facts, provider))
    if not found:
        found += _unread(component, facts)
    return tuple(found)


def _registered(facts: Facts) -> Iterator[Claim]:
    show = f"kubectl get node {facts.node} -o jsonpath='{{.status.capacity}}'"
    for resource, amount in sorted(facts.capacity.items()):
        if resource in facts.ours:
            continue
        evidence: dict[str, int | str] = {"resource": resource, "capacity": amount}
        if amount > 0:
            text = f"capacity {resource}={amount} that we did not register"
            yield Claim(UNKNOWN, Reason("RegisteredByOther", text, facts.node, evidence=evidence), show)
            continue
        seen = int(facts.zero_for_s.get(resource, 0))
        if seen < STALE_AFTER_S:
            text = f"{resource} has been 0 for {seen} s; its registrar may come back until {STALE_AFTER_S} s"
            evidence["zero_for_s"] = seen
            yield Claim(UNKNOWN, Reason("StaleRegistration", text, facts.node, evidence=evidence), show)


def _dynamic(facts: Facts) -> Iterator[Claim]:
    show = "kubectl get deviceclasses,resourceslices"
    for resource, name in sorted(facts.extended_resources.items()):
        text = f"DeviceClass {name} serves {resource} (extendedResourceName)"
        yield Claim("dra", Reason("DynamicResourcesOwnDevices", text, name), show)
    if facts.slices:
        text = f"ResourceSlice {facts.slices[0]} lists the node's GPUs for claims"
        evidence: dict[str, int | str] = {"slices": len(facts.slices)}
        yield Claim("dra", Reason("DynamicResourcesOwnDevices", text, facts.node, evidence=evidence), show)


def _running(component: Component, facts: Facts) -> Iterator[Claim]:
    parts = (component, "dra") if component in ("device-plugin", "mig-manager", "mps") else (component,)
    for runner in facts.runners:
        if runner.part in parts:
            kind, _, key = runner.subject.partition(" ")
            namespace, _, name = key.rpartition("/")
            show = f"kubectl -n {namespace} get {kind.lower()} {name}"
            text = f"{runner.subject} runs it on the node or may start there"
            yield Claim(runner.who, Reason("WorkloadOwnsPart", text, runner.subject), show)


def _operated(component: Component, facts: Facts) -> Iterator[Claim]:
    label = f"nvidia.com/gpu.deploy.{_DEPLOY_LABELS[component]}"
    value, kind = facts.labels.get(label, ""), facts.labels.get("nvidia.com/gpu.workload.config", "")
    off = facts.labels.get("nvidia.com/gpu.deploy.operands") == "false" or value in _NOT_PLACED
    for operator in facts.operators:
        switch = _SHARED_SWITCH.get(component, component)
        if off or switch in operator.disabled:
            continue
        name = f"{operator.kind} {operator.name}".rstrip()
        text = f"{name} covers the node: {label}={value}" if value else f"{name} covers GPU nodes"
        if kind.startswith("vm-"):
            text += f", for virtual machines ({kind})"
        yield Claim(
            "nvidia-operator",
            Reason("OperatorOwnsPart", text, name),
            f"kubectl label node {facts.node} {label}=false --overwrite",
        )


def _on_host(component: Component, facts: Facts) -> Iterator[Claim]:
    if component == "device-plugin":
        found = (*facts.host.sockets, *facts.host.services)
    else:
        found = facts.host.mps if component == "mps" else ()
    for one in found:
        text = f"{one} on the host serves it"
        yield Claim(HOST_SERVICE, Reason("HostServiceOwnsPart", text, one), f"ls -l {one}")


_SETTINGS = {
    "gke": "gcloud container node-pools describe POOL --format='value(config.accelerators)'",
    "bottlerocket": "apiclient get settings.kubelet-device-plugins.nvidia",
    "eks-auto": "kubectl get nodepools.karpenter.sh",
    "aks-managed": "az aks nodepool show --query gpuProfile",
    "aks": "az aks nodepool show --query gpuInstanceProfile",
}
"""How the settings of a provider's part are shown."""


def _provided(component: Component, facts: Facts, provider: Provider) -> Claim:
    text = f"{component} comes with the node ({provider.evidence})"
    show = _SETTINGS.get(provider.name, "")
    return Claim(provider.name, Reason("ProviderOwnsPart", text, facts.node), show)


def _unread(component: Component, facts: Facts) -> Iterator[Claim]:
    missing = [source for source in _NEEDED.get(component, _ALL) if source not in facts.read]
    if missing:
        text = f"not read: {', '.join(missing)}; somebody may have it"
        yield Claim(UNKNOWN, Reason("OwnershipUnknown", text, facts.node))


def _external(component: Component, found: tuple[Claim, ...], does: Does = "leave") -> Part:
    named = [claim.who for claim in found if claim.who != UNKNOWN]
    who = next((one for one in named if one != HOST_SERVICE), named[0] if named else UNKNOWN)
    command = next((claim.command for claim in found if claim.who == who), "")
    return Part(component, f"external:{who}", does, tuple(claim.reason for claim in found), command)


# ----------------------------------------------------------------------------------------------------- parts


def _driver(facts: Facts, provider: Provider) -> Part:
    """The driver: gpufleet never installs one."""
    found = list(claims("driver", facts, provider))
    version = facts.labels.get("cloud.google.com/gke-gpu-driver-version", "")
    if provider.name == "gke" and version:
        text = f"GKE installs it (label cloud.google.com/gke-gpu-driver-version={version})"
        found.append(Claim("gke", Reason("ProviderOwnsPart", text, facts.node)))
    if facts.host.driver:
        place = facts.host.library or "nowhere that we looked"
        text = f"driver {facts.host.driver} is loaded, its NVML library is in {place}"
        found.append(Claim("host", Reason("FoundOnHost", text, facts.node)))
    elif "host" in facts.read:
        found = [claim for claim in found if claim.reason.code in ("OperatorOwnsPart", "WorkloadOwnsPart")]
        if not found:
            return _no_driver(facts, provider)
    return _external("driver", tuple(_known(found)))


def _known(found: list[Claim]) -> list[Claim]:
    """Without doubts, once something is sure."""
    return [claim for claim in found if claim.who != UNKNOWN] or found


def _no_driver(facts: Facts, provider: Provider) -> Part:
    if not facts.host.gpus:
        reason = Reason("NoGpu", "the host has no NVIDIA GPU on PCI and no driver", facts.node)
        return Part("driver", "none", "leave", (reason,), "lspci -d 10de:")
    if provider.name == "gke-opted-out":
        text = f"{provider.evidence} also keeps away what finishes GKE's driver installation"
        command = f"kubectl label node {facts.node} {_GKE_OPT_OUT}-"
    else:
        text, command = "the host has a GPU and no driver is loaded", "modprobe nvidia; dmesg | grep -i nvrm"
    return Part("driver", "none", "leave", (Reason("DriverMissing", text, facts.node),), command)


def _toolkit(facts: Facts, provider: Provider) -> Part:
    """What makes devices appear in containers: gpufleet uses it and never installs it."""
    found = list(claims("toolkit", facts, provider))
    paths = [path for path in (facts.host.toolkit, *facts.host.cdi[:1]) if path]
    if paths:
        text = f"{' and '.join(paths)} found"
        found.append(Claim("host", Reason("FoundOnHost", text, facts.node)))
    elif "host" in facts.read:
        found = [claim for claim in found if claim.reason.code in ("OperatorOwnsPart", "WorkloadOwnsPart")]
        if provider.name == "gke" and not found:
            text = "GKE's plugin mounts the driver itself (/usr/local/nvidia)"
            return Part("toolkit", "none", "leave", (Reason("NotNeeded", text, facts.node),))
        if not found:
            text = "no container toolkit and no CDI spec on the host"
            reason = Reason("NobodyOwnsPart", text, facts.node)
            return Part("toolkit", "none", "leave", (reason,), "nvidia-ctk cdi generate")
    return _external("toolkit", tuple(_known(found)))


def _plugin(facts: Facts, provider: Provider, driver: Part) -> Part:
    found = claims("device-plugin", facts, provider)
    if found:
        return _external("device-plugin", found, "label-only" if provider.name == "gke" else "leave")
    return _ours("device-plugin", facts, driver)


def _plain(component: Component, facts: Facts, provider: Provider, driver: Part) -> Part:
    found = claims(component, facts, provider)
    return _external(component, found) if found else _ours(component, facts, driver)


def _following(component: Component, facts: Facts, provider: Provider, driver: Part, plugin: Part) -> Part:
    """A part that changes devices under the plugin: ours only with our plugin."""
    found = claims(component, facts, provider)
    if found:
        return _external(component, found)
    if component == "mig-manager" and facts.mig_capable is False:
        reason = Reason("MigUnsupported", "no GPU of the node can be cut", facts.node)
        return Part(component, "none", "leave", (reason,))
    part = _ours(component, facts, driver)
    if part.does == "run" and plugin.does != "run":
        text = f"the device plugin is {plugin.owner}, which would not notice what changes"
        return Part(component, "none", "leave", (Reason("FollowsPlugin", text, facts.node),))
    return part


def _ours(component: Component, facts: Facts, driver: Part) -> Part:
    """A part that nobody has and nobody may come for: ours, once there is a driver to ask."""
    if driver.owner == "none":
        return Part(component, "none", "leave", driver.reasons, driver.command)
    if not facts.host.driver:
        reason = Reason("DriverMissing", f"the driver is {driver.owner} and not loaded yet", facts.node)
        return Part(component, "none", "leave", (reason,), driver.command)
    if component == "device-plugin" and facts.ours:
        text = f"we registered {', '.join(sorted(facts.ours))}"
        return Part(component, "ours", "run", (Reason("RegisteredByUs", text, facts.node),))
    text = "nobody has it and nobody may come for it"
    return Part(component, "ours", "run", (Reason("NobodyOwnsPart", text, facts.node),))
