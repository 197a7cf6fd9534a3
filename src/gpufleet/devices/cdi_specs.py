"""The CDI specs of a node, made anew before devices are offered that they do not describe yet.

`update` says what is offered; what no spec describes is `withheld` at once, and `run` has the host's own
`nvidia-ctk` make the spec again. It is bounded in time, and after a failure it is tried again after a pause
that doubles. The specs on the host are read every so often, so that one which somebody else replaced, or a
toolkit that was installed later, is noticed.

The toolkit writes into a folder of its own first, and only what can be read as a spec with devices gets its
place: beside it under another name, and then renamed. For runtimes before containerd 2.4 look at a folder
again when a file in it was renamed, and not when one came from elsewhere.
Source: tags.cncf.io/container-device-interface pkg/cdi, of which 1.0 ignores files that are created.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gpufleet.devices import cdi
from gpufleet.devices.allocation import CDI_KIND
from gpufleet.devices.cdi import CdiDevice, Command, Refresh, SpecFile
from gpufleet.devices.go_yaml import load_yaml
from gpufleet.devices.host_facts import spec_generator
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.resources import Offer
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.reasons import Reason

log = logging.getLogger("gpufleet.devices")

TIMEOUT_S = 60.0
LOOK_S = 30.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_LAST_WORDS = 300
_STAGED = ".gpufleet-"


_Identity = tuple[int, int, int]


class CdiSpecs:
    """The specs of the host whose file system is at `root`.

    `enter` stands before every program of the host; without it they are run as they are on our own host, and
    with chroot below another root. `changed` is called in the event loop whenever `withheld`, `reasons` or
    what `settled` answers may have changed.
    """

    def __init__(
        self,
        root: Path,
        *,
        enter: Sequence[str] | None = None,
        folders: Sequence[str] = cdi.SPEC_FOLDERS,
        changed: Callable[[], None] = lambda: None,
        timeout_s: float = TIMEOUT_S,
        look_s: float = LOOK_S,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        own = root == Path("/")
        self._root = root
        self._enter = tuple(enter) if enter is not None else () if own else ("chroot", str(root))
        self._folders = tuple(folders)
        self._changed = changed
        self._timeout_s, self._look_s = timeout_s, look_s
        self._first_pause_s = self._pause_s = pause_s
        self._toolkit = ""
        self._specs: tuple[SpecFile, ...] = ()
        self._known: dict[Path, tuple[_Identity, SpecFile | None]] = {}
        self._config = PluginConfig()
        self._wanted: frozenset[CdiDevice] = frozenset()
        self._described: frozenset[CdiDevice] = frozenset()
        self._made_by: PluginConfig | None = None
        self._problems: tuple[Reason, ...] = ()
        self._updated = asyncio.Event()

    @property
    def withheld(self) -> frozenset[str]:
        """UUIDs of GPUs and MIG instances that no container may get now, for no spec describes them."""
        return frozenset(one.uuid for one in self._missing()) if self._toolkit else frozenset()

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """What is amiss; empty when nothing is."""
        return cdi.settled(self._config, self._toolkit)[1] or self._problems

    def settled(self, config: PluginConfig) -> PluginConfig:
        """The config to allocate by: without CDI where the host has no toolkit."""
        return cdi.settled(config, self._toolkit)[0]

    def update(self, offer: Offer, inventory: Inventory, config: PluginConfig) -> None:
        """Aim at specs for these devices from now on; `config` is what was asked for, not what is settled."""
        wanted = cdi.cdi_devices(offer, inventory, config)
        if (wanted, config) != (self._wanted, self._config):
            self._wanted, self._config = wanted, config
            self._updated.set()
            self._updated = asyncio.Event()

    async def look(self) -> None:
        """Read what is on the host. Await it once before devices are offered for the first time, so that
        those which a spec describes already are never withheld.
        """
        self._toolkit, self._specs = await asyncio.to_thread(self._read)

    async def run(self) -> None:
        """Keep the specs as they should be until cancelled."""
        while True:
            updated, before = self._updated, self._told()
            await self.look()
            pause = self._look_s
            if self._due():
                pause = await self._refresh()
            else:
                self._problems = ()
            if self._told() != before:
                self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await updated.wait()

    def _told(self) -> tuple[object, ...]:
        return self._toolkit, self.withheld, self.reasons

    def _missing(self) -> frozenset[CdiDevice]:
        return cdi.missing(self._wanted, self._described, self._specs)

    def _due(self) -> bool:
        """Whether the spec must be made anew: made for other devices or in another way, or it lacks some."""
        fresh = (self._described, self._made_by) == (self._wanted, self._config)
        return bool(self._toolkit and self._wanted) and not (fresh and not self._missing())

    async def _refresh(self) -> float:
        """Make the spec anew; how long to wait before the next look."""
        wanted, config = self._wanted, self._config
        try:
            await self._make(config)
        except GpufleetError as error:
            problems: tuple[Reason, ...] = (Reason(error.reason, error.message),)
        else:
            self._described, self._made_by = wanted, config
            await self.look()
            problems = cdi.why_missing(cdi.missing(wanted, wanted, self._specs), self._specs)
        if problems != self._problems:
            for one in problems:
                log.warning("%s", one.message, extra={"reason": one.code})
        self._problems = problems
        pause = self._pause_s if problems else self._look_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if problems else self._first_pause_s
        return pause

    async def _make(self, config: PluginConfig) -> None:
        """Have the spec made and put it into its place. Raises GpufleetError (CdiSpecFailed)."""
        folder = self._folders[-1]
        here = self._here(folder)
        try:
            here.mkdir(parents=True, exist_ok=True)
            for left in here.glob(f"{_STAGED}*"):  # by an agent that was killed
                shutil.rmtree(left)
            staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=here))
        except OSError as error:
            raise _failed(f"cannot write into {folder}: {error.strerror}") from error
        try:
            output = cdi.output_path(self._specs, folder)
            plan = cdi.plan_refresh(config, self._toolkit, output, f"{folder}/{staged.name}")
            for command in plan.commands:
                await self._run(command)
            await asyncio.to_thread(self._publish, plan, staged)
        finally:
            await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)

    async def _run(self, command: Command) -> None:
        """Run a program of the host. Raises GpufleetError (CdiSpecFailed) for a required one that fails."""
        said = f"{Path(command.argv[0]).name} {' '.join(command.argv[1:3])}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._enter,
                *command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            if command.required:
                raise _failed(f"cannot run {said}: {error.strerror}") from error
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                output, _ = await process.communicate()
        except TimeoutError:
            if command.required:
                raise _failed(f"{said} did not end in {self._timeout_s:g} s") from None
            return
        finally:
            await _end(process)
        if process.returncode and command.required:
            words = " ".join(output.decode(errors="replace").split())[-_LAST_WORDS:]
            raise _failed(f"{said} ended with {process.returncode}: {words or 'it said nothing'}")

    def _publish(self, plan: Refresh, staged: Path) -> None:
        """Put what the toolkit made into its place, the main spec last."""
        name = Path(plan.output).name
        made = _spec_at(staged / name, plan.output)
        if made is None or made.kind != CDI_KIND or not made.names:
            raise _failed(f"nvidia-ctk made no spec of {CDI_KIND} with devices")
        folder = staged.parent
        try:
            for path in sorted(staged.iterdir(), key=lambda path: path.name == name):
                beside = folder / f"{path.name}.gpufleet"
                path.chmod(0o644)
                path.replace(beside)
                beside.replace(folder / path.name)
        except OSError as error:
            raise _failed(f"cannot replace {plan.output}: {error.strerror}") from error

    def _read(self) -> tuple[str, tuple[SpecFile, ...]]:
        found = []
        for folder in self._folders:
            for path in _files(self._here(folder)):
                spec = self._spec(path, f"{folder}/{path.name}")
                if spec is not None:
                    found.append(spec)
        return spec_generator(self._root), tuple(found)

    def _spec(self, path: Path, named: str) -> SpecFile | None:
        """The spec in a file, which is read again only when it is another: specs have thousands of lines."""
        try:
            stat = path.stat()
        except OSError:
            return None
        identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._known.get(path)
        if known is None or known[0] != identity:
            known = self._known[path] = identity, _spec_at(path, named)
        return known[1]

    def _here(self, folder: str) -> Path:
        """A folder of the host as we see it; the usual link of /var/run would lead into our own /run."""
        if folder.startswith("/var/run/") and (self._root / "var/run").is_symlink():
            folder = folder.removeprefix("/var")
        return self._root / folder.lstrip("/")


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".json"))
    except OSError:
        return []


def _spec_at(path: Path, named: str) -> SpecFile | None:
    """The spec in a file; None when it cannot be read as YAML or JSON, and then by no runtime either."""
    try:
        return cdi.parse_spec(named, load_yaml(path.read_text(), named, "CdiSpecFailed"))
    except (OSError, UnicodeDecodeError, GpufleetError):
        return None


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program with all that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _failed(message: str) -> GpufleetError:
    hint = "run `nvidia-ctk cdi generate` on the node and see what it says"
    return GpufleetError(reason="CdiSpecFailed", message=message, hint=hint)
