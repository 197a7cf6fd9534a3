"""The exporter: pages of metrics over HTTP, one for each node that this process serves.

A page is written when something new was seen, by whoever saw it, and kept ready; a scrape sends it with the
ages of its parts behind it, and waits for neither driver nor kubelet. An agent serves its own node at
`/metrics`; a process with many (simulated) nodes serves each at `/nodes/<name>/metrics` and lists them for
Prometheus at `/sd` (`http_sd_configs`, with `honor_labels: true`). `/health` says that the process answers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from urllib.parse import quote

import msgspec
from aiohttp import web

from gpufleet.devices.attribution import Key
from gpufleet.devices.backend import Event, Sample
from gpufleet.devices.exporter_pages import Page, make_page
from gpufleet.devices.exporter_text import CONTENT_TYPE, Layout, Options, layout, render, tail
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.sampling import Answers, Sampled
from gpufleet.kube import process
from gpufleet.kube.gpunode import GPUAllocation

PORT = 9400
XID = "DCGM_FI_DEV_XID_ERRORS"


class ExportedNode:
    """The page of one node. What was seen may be told from any thread, and a reader never waits for it."""

    def __init__(
        self, name: str, options: Options | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.driver = Answers("driver", clock)
        self.kubelet = Answers("kubelet", clock)
        self._options = options or Options()
        self._writing = threading.Lock()
        self._inventory = Inventory()
        self._allocated: tuple[GPUAllocation, ...] = ()
        self._sampled = Sampled(())
        self._xids: dict[Key, float] = {}
        self._layout = self._laid()
        self._page = Page()
        self._write()

    def observed(self, inventory: Inventory) -> None:
        """These are the GPUs now."""
        with self._writing:
            if inventory != self._inventory:
                self._inventory = inventory
                self._layout = self._laid()
                self._write()

    def held(self, allocated: Sequence[GPUAllocation], duration_s: float = 0.0) -> None:
        """The kubelet has answered, after `duration_s`: this is what containers hold."""
        self.kubelet.answered(duration_s)
        with self._writing:
            if tuple(allocated) != self._allocated:
                self._allocated = tuple(allocated)
                self._layout = self._laid()
                self._write()

    def sampled(self, sampled: Sampled) -> None:
        """This is what the sensors say."""
        with self._writing:
            self._sampled = sampled
            for one in sampled.samples:
                if XID in one.values:
                    self._xids[one.uuid, one.instance] = one.values[XID]
            self._write()

    def noticed(self, event: Event) -> None:
        """The driver has reported this. An XID is shown at once, and stays when the GPU answers no more."""
        if event.kind == "xid":
            with self._writing:
                self._xids[event.uuid, event.instance] = event.code
                self._write()

    def shared_gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that several containers share."""
        return self._layout.shared_gpus()

    def body(self, *, gzipped: bool = False) -> bytes:
        """The page as of now."""
        end = tail(self.name, (self.driver.now(), self.kubelet.now())).encode()
        return self._page.gzipped(end) if gzipped else self._page.plain(end)

    def _laid(self) -> Layout:
        return layout(self.name, self._inventory, self._allocated, self._options)

    def _write(self) -> None:
        samples = (self._with_xid(one) for one in self._sampled.samples)
        text = render(self._layout, samples, self._sampled.memory)
        self._page = make_page(text.encode())

    def _with_xid(self, sample: Sample) -> Sample:
        last = self._xids.get((sample.uuid, sample.instance))
        if last is None or last == sample.values.get(XID):
            return sample
        return msgspec.structs.replace(sample, values={**sample.values, XID: last})


class Exporter:
    """The nodes that this process serves, by name."""

    def __init__(self, options: Options | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options or Options()
        self._clock = clock
        self._nodes: dict[str, ExportedNode] = {}

    def add(self, name: str) -> ExportedNode:
        """A page for one more node."""
        self._nodes[name] = ExportedNode(name, self._options, self._clock)
        return self._nodes[name]

    def remove(self, name: str) -> None:
        """The node is gone, and so is its page."""
        self._nodes.pop(name, None)

    def application(self) -> web.Application:
        """The HTTP side."""
        application = web.Application()
        application.router.add_get("/metrics", self._only)
        application.router.add_get("/nodes/{name}/metrics", self._named)
        application.router.add_get("/sd", self._discovery)
        application.router.add_get("/health", process.alive)
        return application

    @contextlib.asynccontextmanager
    async def serving(self, port: int = PORT, host: str = "") -> AsyncIterator[int]:
        """Serve on `port` (0: a free one) of `host` (empty: every address) and yield the port.

        Raises OSError when the port is taken.
        """
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host or None, port).start()
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()

    async def _only(self, request: web.Request) -> web.Response:
        if len(self._nodes) == 1:
            return _answer(request, next(iter(self._nodes.values())))
        text = f"{len(self._nodes)} nodes are served here, each at its own path; /sd lists them\n"
        return web.Response(text=text, status=404)

    async def _named(self, request: web.Request) -> web.Response:
        node = self._nodes.get(request.match_info["name"])
        return web.Response(text="no such node\n", status=404) if node is None else _answer(request, node)

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(targets(self._nodes, request.host))


def targets(nodes: Iterable[str], address: str) -> list[dict[str, object]]:
    """What Prometheus (`http_sd_configs`, or a file for `file_sd_configs`) is to scrape at `address`, the
    host and port under which it reaches the exporter.
    """
    return [
        {
            "targets": [address],
            "labels": {
                "__metrics_path__": f"/nodes/{quote(name, safe='')}/metrics",
                "instance": name,
                "node": name,
            },
        }
        for name in sorted(nodes)
    ]


def _answer(request: web.Request, node: ExportedNode) -> web.Response:
    headers = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
    accepted = request.headers.get("Accept-Encoding", "").lower()
    if "gzip" not in {part.strip() for one in accepted.split(",") for part in one.split(";")[:1]}:
        return web.Response(body=node.body(), headers=headers)
    return web.Response(body=node.body(gzipped=True), headers={**headers, "Content-Encoding": "gzip"})
