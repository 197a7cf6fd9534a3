"""The state file of the fake NVML: one line per fact, for people, for C and for Python.

README.md describes the lines. Writers hold a lock (`<file>.lock`) from reading to replacing the file, so that
tests and the library, in any number of processes, never lose each other's changes; readers need no lock.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
from tests.fakenvml.gpu import (
    Fabric,
    FakeCompute,
    FakeGPU,
    FakeInstance,
    FakeProcess,
    FakeProfile,
    Meter,
    ProcessKind,
    RetiredPage,
)
from tests.fakenvml.machine import Crash, EventKind, Failure, FakeEvent, FakeMachine, Hang

_SCALARS = {"str", "int", "bool", "int | None", "bool | None", "Switch"}
_HEX = {"pci_device", "pci_subsystem", "clock_event_reasons"}
_FIELDS = {
    field.name.replace("_", "-"): field.name
    for field in msgspec.structs.fields(FakeGPU)
    if FakeGPU.__annotations__[field.name] in _SCALARS
}
_HEAD = "# A machine for the fake libnvidia-ml.so.1; see tests/fakenvml/README.md\n"


class MachineFile:
    """A state file that may change while processes use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def machine(self) -> FakeMachine:
        """The machine as it is now."""
        return read(self.path)

    def update(self, change: Callable[[FakeMachine], FakeMachine]) -> FakeMachine:
        """Replace the machine by what `change` makes of it, with nothing lost in between; the new machine.

        A file that does not exist yet is an empty machine.
        """
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            machine = change(read(self.path) if self.path.exists() else FakeMachine())
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text(machine))
            Path(name).replace(self.path)
        return machine


def read(path: Path) -> FakeMachine:
    """The machine in a state file; raises ValueError for a line that it cannot read."""
    return parse(path.read_text(encoding="utf-8"))


def text(machine: FakeMachine) -> str:
    """The lines of a machine."""
    lines = [
        f"driver {machine.driver}",
        f"nvml {machine.nvml}",
        f"cuda {machine.cuda[0]}.{machine.cuda[1]}",
        f"root {_word(machine.root)}",
        f"loaded {_word(machine.loaded)}",
        f"births {machine.births}",
        f"rules {machine.rule_count}",
        f"level {machine.level}",
    ]
    if machine.clock_s is not None:
        lines.append(f"clock {machine.clock_s!r}")
    lines += [f"link {a} {b} {level}" for (a, b), level in sorted(machine.levels.items())]
    lines += [f"p2p {a} {b} {index} {status}" for (a, b, index), status in sorted(machine.p2p.items())]
    lines += [f"name {pid} {name}" for pid, name in sorted(machine.names.items())]
    for index, gpu in enumerate(machine.gpus):
        lines += [f"gpu {index} {line}" for line in _gpu_lines(gpu)]
    lines += [_rule_line(rule) for rule in machine.rules]
    lines += [
        f"event {one.number} {one.gpu} {one.kind} {one.data} {_id(one.instance)} {_id(one.compute)}"
        for one in machine.events
    ]
    return _HEAD + "".join(f"{line}\n" for line in lines)


def _gpu_lines(gpu: FakeGPU) -> list[str]:
    lines = []
    for key, field in _FIELDS.items():
        value = getattr(gpu, field)
        if value is not None and value != "":
            lines.append(f"{key} {hex(value) if field in _HEX else _word(value)}")
    lines.append(f"capability {gpu.capability[0]}.{gpu.capability[1]}")
    meters = {"power": gpu.power, "nvlink-tx": gpu.nvlink_tx, "nvlink-rx": gpu.nvlink_rx}
    lines += [f"{name} {_meter(meter)}" for name, meter in meters.items() if meter is not None]
    lines += [f"nvlink {link} {bus or '-'}" for link, bus in enumerate(gpu.links)]
    if gpu.fabric is not None:
        lines.append(f"fabric {' '.join(str(value) for value in msgspec.structs.astuple(gpu.fabric))}")
    for profile in gpu.profiles:
        *counts, starts = msgspec.structs.astuple(profile)
        words = " ".join(_word(value) for value in counts)
        lines.append(f"profile {words} {','.join(map(str, starts))}")
    for instance in gpu.instances:
        lines.append(f"instance {instance.id} {instance.profile} {instance.start} {instance.birth}")
        lines += [
            f"compute {instance.id} {one.id} {one.slices} {one.start} {one.birth} {one.uuid}"
            for one in instance.compute
        ]
    lines += [
        f"process {p.pid} {p.kind} {_id(p.memory_mib)} {_id(p.instance)} {_id(p.compute)}"
        f" {p.sm} {p.memory} {p.encoder} {p.decoder}"
        for p in gpu.processes
    ]
    if gpu.retired is not None:
        lines.append("retires yes")
        lines += [f"retired {page.cause} {page.address:#x} {page.time_us}" for page in gpu.retired]
    lines += [f"violation {policy} {nanoseconds}" for policy, nanoseconds in gpu.violations.items()]
    lines += [
        f"gpm-rate {_id(instance)} {metric} {_meter(meter)}"
        for (instance, metric), meter in gpu.gpm_rates.items()
    ]
    lines += [f"field {ident} {scope} {value!r}" for (ident, scope), value in gpu.fields.items()]
    return lines


def _rule_line(rule: Hang | Failure | Crash) -> str:
    match rule:
        case Hang(number, pattern, seconds, gpu):
            return f"hang {number} {pattern} {_id(gpu)} {seconds!r}"
        case Failure(number, pattern, code, gpu, after, times):
            return f"fail {number} {pattern} {_id(gpu)} {code} {after} {_id(times)}"
        case Crash(number, call, when):
            return f"crash {number} {call} {when}"


def parse(lines: str) -> FakeMachine:
    """The machine of the lines of a state file; raises ValueError."""
    head: dict[str, Any] = {}
    gpus: dict[int, list[list[str]]] = {}
    levels: dict[tuple[int, int], int] = {}
    p2p: dict[tuple[int, int, int], int] = {}
    names: dict[int, str] = {}
    events: list[FakeEvent] = []
    rules: list[Hang | Failure | Crash] = []
    for line in lines.splitlines():
        words = line.split()
        match words:
            case [] | ["#", *_]:
                continue
            case ["gpu", index, *rest]:
                gpus.setdefault(int(index), []).append(rest)
            case ["link", a, b, level]:
                levels[int(a), int(b)] = int(level)
            case ["p2p", a, b, index, status]:
                p2p[int(a), int(b), int(index)] = int(status)
            case ["name", pid, *name]:
                names[int(pid)] = " ".join(name)
            case ["event", number, gpu, kind, data, instance, compute] if kind in get_args(EventKind):
                event = (int(number), int(gpu), cast(EventKind, kind), int(data))
                events.append(FakeEvent(*event, _opt(instance), _opt(compute)))
            case ["hang" | "fail" | "crash", *_]:
                rules.append(_rule(words))
            case [key, value] if key in _HEADERS:
                field, decode = _HEADERS[key]
                head[field] = decode(value)
            case _:
                raise ValueError(f"not a line of a fake NVML machine: {line!r}")
    return FakeMachine(
        gpus=tuple(_gpu(gpus[index]) for index in sorted(gpus)),
        levels=levels,
        p2p=p2p,
        names=names,
        events=tuple(events),
        rules=tuple(rules),
        **head,
    )


def _pair(word: str) -> tuple[int, int]:
    major, minor = word.split(".")
    return int(major), int(minor)


def _flag(word: str) -> bool:
    return word == "yes"


_HEADERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "driver": ("driver", str),
    "nvml": ("nvml", str),
    "cuda": ("cuda", _pair),
    "root": ("root", _flag),
    "loaded": ("loaded", _flag),
    "births": ("births", int),
    "rules": ("rule_count", int),
    "level": ("level", int),
    "clock": ("clock_s", float),
}


def _rule(words: list[str]) -> Hang | Failure | Crash:
    match words:
        case ["hang", number, pattern, gpu, seconds]:
            return Hang(int(number), pattern, float(seconds), _opt(gpu))
        case ["fail", number, pattern, gpu, code, after, times]:
            return Failure(int(number), pattern, int(code), _opt(gpu), int(after), _opt(times))
        case ["crash", number, call, "before" | "after" as when]:
            return Crash(int(number), int(call), when)
        case _:
            raise ValueError(f"not a rule: {' '.join(words)!r}")


def _gpu(lines: list[list[str]]) -> FakeGPU:
    absent = {name: None for name in FakeGPU.__struct_fields__ if _optional(name)}
    values: dict[str, Any] = {**absent, "power": None}
    many: dict[str, list[list[str]]] = {}
    for key, *words in lines:
        if key in _FIELDS:
            values[_FIELDS[key]] = _scalar(_FIELDS[key], " ".join(words))
        elif key == "capability":
            values[key] = _pair(words[0])
        elif key in ("power", "nvlink-tx", "nvlink-rx"):
            values[key.replace("-", "_")] = Meter(*map(float, words))
        elif key == "fabric":
            values[key] = Fabric(words[0], *map(int, words[1:]))
        else:
            many.setdefault(key, []).append(words)
    return FakeGPU(**values, **_lists(many))


def _lists(many: dict[str, list[list[str]]]) -> dict[str, Any]:
    compute: dict[int, list[FakeCompute]] = {}
    for instance, ident, slices, start, birth, uuid in many.pop("compute", []):
        one = FakeCompute(int(ident), int(slices), int(start), int(birth), uuid)
        compute.setdefault(int(instance), []).append(one)
    pages = tuple(
        RetiredPage(int(cause), int(page, 0), int(at)) for cause, page, at in many.pop("retired", [])
    )
    lists = {
        "links": tuple("" if bus == "-" else bus for _, bus in many.pop("nvlink", [])),
        "profiles": tuple(_profile(words) for words in many.pop("profile", [])),
        "instances": tuple(
            FakeInstance(int(ident), int(profile), int(start), int(birth), tuple(compute.get(int(ident), ())))
            for ident, profile, start, birth in many.pop("instance", [])
        ),
        "processes": tuple(_process(words) for words in many.pop("process", [])),
        "retired": pages if many.pop("retires", None) else None,
        "violations": {int(policy): int(time) for policy, time in many.pop("violation", [])},
        "gpm_rates": {
            (_opt(instance), int(metric)): Meter(*map(float, words))
            for instance, metric, *words in many.pop("gpm-rate", [])
        },
        "fields": {
            (int(ident), int(scope)): float(value) if "." in value else int(value)
            for ident, scope, value in many.pop("field", [])
        },
    }
    if many:
        raise ValueError(f"not a line of a GPU: {next(iter(many))!r}")
    return lists


def _profile(words: list[str]) -> FakeProfile:
    enum, ident, name, compute, size, limit, media, *counts, starts = words
    memory, multiprocessors, copy, decoder, encoder, jpeg, ofa = map(int, counts)
    return FakeProfile(
        enum=int(enum),
        id=int(ident),
        name=name,
        compute=int(compute),
        size=int(size),
        limit=int(limit),
        media=_flag(media),
        memory_mib=memory,
        multiprocessors=multiprocessors,
        copy=copy,
        decoder=decoder,
        encoder=encoder,
        jpeg=jpeg,
        ofa=ofa,
        starts=tuple(int(start) for start in starts.split(",")),
    )


def _process(words: list[str]) -> FakeProcess:
    pid, kind, memory, instance, compute, *percents = words
    if kind not in get_args(ProcessKind):
        raise ValueError(f"not a kind of process: {kind!r}")
    ids = (_opt(memory), _opt(instance), _opt(compute))
    return FakeProcess(int(pid), *ids, cast(ProcessKind, kind), *map(int, percents))


def _optional(name: str) -> bool:
    return FakeGPU.__annotations__[name] in ("int | None", "bool | None")


def _scalar(name: str, word: str) -> object:
    kind = FakeGPU.__annotations__[name].removesuffix(" | None")
    if kind == "int":
        return int(word, 0)
    return _flag(word) if kind == "bool" else word


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _meter(meter: Meter) -> str:
    return f"{meter.rate!r} {meter.total!r} {meter.since_s!r}"


def _id(value: int | None) -> str:
    return "-" if value is None else str(value)


def _opt(word: str) -> int | None:
    return None if word == "-" else int(word)
