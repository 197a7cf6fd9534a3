"""Publishing the labels that describe a node's GPUs: on the Node, as a NodeFeature, or as a file for NFD.

On the Node they are applied under a field manager of our own, so that the server knows which keys are ours: a
label that is not published any more goes away with the next write, and no other key is touched. A key that
somebody else has set to another value is left to them and named in the log.
Source: GPU Feature Discovery's outputs; server-side apply.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from gpufleet.devices import agent_metrics as metrics
from gpufleet.devices.plugin_config import FEATURE_FILE
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.kinds import NODES, Kind
from gpufleet.kube.objects import PartialObject

log = logging.getLogger("gpufleet.devices")

FIELD_MANAGER = "gpufleet-agent-labels"
NODE_FEATURES = Kind("nfd.k8s-sigs.io", "v1alpha1", "nodefeatures", "NodeFeature")
RETRY_S = 5.0
REPEAT_S = 300.0
"""How often labels are applied although nothing changed: somebody may have removed one."""

Output = Literal["node", "nodefeature", "file"]
_TAKEN = re.compile(r'conflict with "(?P<who>[^"]+)"[^.]*:? ?\.metadata\.labels\.(?P<key>\S+)')


class LabelWriter:
    """Publishes what `labels` says of a node whenever it is told that they changed."""

    def __init__(
        self,
        client: Client,
        node: str,
        labels: Callable[[], Mapping[str, str]],
        *,
        output: Output = "node",
        namespace: str = "node-feature-discovery",
        file: Callable[[], Path] = lambda: Path(FEATURE_FILE),
        retry_s: float = RETRY_S,
    ) -> None:
        self._client = client
        self._node = node
        self._labels = labels
        self._output = output
        self._namespace = namespace
        self._file = file
        self._retry_s = retry_s
        self._changed = asyncio.Event()
        self.published: Mapping[str, str] = {}
        self.taken: Mapping[str, str] = {}
        """Keys that somebody else has with another value, and who."""

    def changed(self) -> None:
        """The labels may be new."""
        self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            self._changed.clear()
            wait = REPEAT_S
            try:
                await self._publish(self._labels())
            except (GpufleetError, OSError) as error:
                log.warning("cannot publish labels: %s", error, extra={"node": self._node})
                wait = self._retry_s
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def withdraw(self) -> None:
        """Remove every label that we have set, and no other."""
        if self._output == "node":
            await self._apply({})
        elif self._output == "nodefeature":
            await self._client.delete(NODE_FEATURES, self._name, self._namespace, missing_ok=True)
        else:
            await asyncio.to_thread(self._file().unlink, missing_ok=True)

    async def _publish(self, labels: Mapping[str, str]) -> None:
        if self._output == "node":
            await self._to_node(labels)
        elif self._output == "nodefeature":
            await self._to_node_feature(labels)
        else:
            await asyncio.to_thread(write_feature_file, self._file(), labels)
        metrics.LABEL_WRITES.inc()
        self.published = dict(labels)

    async def _to_node(self, labels: Mapping[str, str]) -> None:
        try:
            await self._apply(labels)
            self.taken = {}
        except ApiError as error:
            if not error.conflict:
                raise
            self.taken = {match["key"].strip('"'): match["who"] for match in _TAKEN.finditer(error.message)}
            if not self.taken:
                raise
            log.warning("labels are somebody else's and left to them", extra={"labels": dict(self.taken)})
            await self._apply({key: value for key, value in labels.items() if key not in self.taken})

    async def _apply(self, labels: Mapping[str, str]) -> None:
        body = {"metadata": {"name": self._node, "labels": dict(labels)}}
        await self._client.apply(NODES, body, field_manager=FIELD_MANAGER, force=False, type=PartialObject)

    @property
    def _name(self) -> str:
        return f"nvidia-features-for-{self._node}"

    async def _to_node_feature(self, labels: Mapping[str, str]) -> None:
        metadata = {
            "name": self._name,
            "namespace": self._namespace,
            "labels": {"nfd.node.kubernetes.io/node-name": self._node},
        }
        body = {"metadata": metadata, "spec": {"labels": dict(labels)}}
        await self._client.apply(NODE_FEATURES, body, field_manager=FIELD_MANAGER, type=PartialObject)


def write_feature_file(path: Path, labels: Mapping[str, str]) -> None:
    """Write labels as lines `key=value` for NFD's local source; a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text("".join(f"{key}={value}\n" for key, value in sorted(labels.items())))
    temporary.replace(path)
