"""The nodes of a snapshot: what their objects, their GPUNodes and the wishes that are being written say.

A wish is assumed from the moment it is decided, until the informer shows a change of the node's wishes or the
write fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from gpufleet.fleet.devices import NodeDevices
from gpufleet.fleet.nodes import Node
from gpufleet.kube import objects
from gpufleet.kube.cuts import merged
from gpufleet.kube.device_values import node_devices
from gpufleet.kube.gpunode import GPUNode, MigWish
from gpufleet.kube.informers import Change
from gpufleet.kube.values import node_value


class NodeTable:
    """Nodes and their devices by name, for `SnapshotBuilder`. `on_change` is called after every change that a
    decision could care about.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._raw_nodes: dict[str, objects.Node] = {}
        self._gpu_nodes: dict[str, GPUNode] = {}
        self._wished: dict[str, int] = {}
        self._unread: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        self.devices: Mapping[str, NodeDevices] = {}
        """Never changed in place: the same object says that no devices have changed."""

    def node_changed(self, change: Change[objects.Node]) -> None:
        """A node came, changed or went."""
        if change.new is None:
            self._raw_nodes.pop(change.key, None)
        else:
            self._raw_nodes[change.key] = change.new
        self._refresh_node(change.key)

    def gpu_node_changed(self, change: Change[GPUNode]) -> None:
        """The devices of a node changed."""
        if change.new is None:
            self._gpu_nodes.pop(change.key, None)
            self._wished.pop(change.key, None)
        else:
            self._gpu_nodes[change.key] = self._with_wishes(change.new)
        self._refresh_node(change.key)
        self._refresh_devices(change.key)

    def assume_wish(self, node: str, wish: MigWish) -> tuple[MigWish, ...]:
        """Count a GPU of a node as asked to be cut so; all wishes of the node. A change of the node's wishes
        that the informer shows replaces it.
        """
        known = self._gpu_nodes.get(node)
        if known is None:
            return (wish,)
        wishes = merged(known.spec.desired.mig, wish)
        desired = msgspec.structs.replace(known.spec.desired, mig=wishes)
        spec = msgspec.structs.replace(known.spec, desired=desired)
        self._gpu_nodes[node] = msgspec.structs.replace(known, spec=spec)
        self._wished[node] = known.metadata.generation
        self._refresh_node(node)
        self._refresh_devices(node)
        return wishes

    def forget_wishes(self, node: str) -> None:
        """What was asked of a node's GPUs was not written: the informer's next word counts."""
        self._wished.pop(node, None)

    def note_unread(self, key: str, node: str) -> None:
        """Note on which node a pod is that cannot be read; an empty name when it is on none, or can be."""
        before = self._unread.pop(key, "")
        if node:
            self._unread[key] = node
        if before != node:
            self._refresh_node(before)
            self._refresh_node(node)

    def last_unread_on(self, key: str) -> str:
        """The node on which a pod is that cannot be read; empty without."""
        return self._unread.get(key, "")

    def _with_wishes(self, node: GPUNode) -> GPUNode:
        """The node with wishes that are being written: a status may arrive before the spec shows them."""
        name = node.metadata.name
        known = self._gpu_nodes.get(name)
        if known is None or self._wished.get(name) != node.metadata.generation:
            self._wished.pop(name, None)
            return node
        desired = msgspec.structs.replace(node.spec.desired, mig=known.spec.desired.mig)
        return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, desired=desired))

    def _refresh_node(self, name: str) -> None:
        raw = self._raw_nodes.get(name)
        if raw is None:
            if self.nodes.pop(name, None) is None:
                return
        else:
            value = node_value(raw, self._gpu_nodes.get(name))
            if name in self._unread.values():
                unread = tuple(sorted(key for key, node in self._unread.items() if node == name))
                value = msgspec.structs.replace(value, unread_pods=unread)
            if self.nodes.get(name) == value:
                return
            self.nodes[name] = value
        self._on_change()

    def _refresh_devices(self, name: str) -> None:
        gpu_node = self._gpu_nodes.get(name)
        value = node_devices(gpu_node) if gpu_node is not None else None
        if self.devices.get(name) == value:
            return
        rest = {other: devices for other, devices in self.devices.items() if other != name}
        self.devices = rest if value is None else {**rest, name: value}
        if name in self._raw_nodes:
            self._on_change()
