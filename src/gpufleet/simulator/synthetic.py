"""A fleet and a load of any size without data, drawn from what public traces say of shapes, times, arrivals.

Two populations of jobs share the fleet:

- small jobs, after openb `default`: one pod without a GPU, with a part of one or with one. The shapes are the
  25 most frequent ones of the trace (four fifths of its pods), each as often as there. Half of the jobs last
  less than 9 minutes, a tenth more than 1.8 hours.
- training, after Philly (the 15 clusters in the form of Gavel): 1 to 32 GPUs; more than a node has are a gang
  of pods with 8 each. How long a job lasts depends on its GPUs: medians and 90th percentiles are those of the
  trace at the speed of a V100.

Durations are log-normal, cut at 30 days. Jobs arrive at random, at hours of the day as often as in openb. How
many there are follows from the load, in GPU-seconds of the whole fleet; the fleet is empty when it begins.
The nodes are those of openb with 8 GPUs, in its proportion of models. That six of ten jobs are small is a
choice and not a measurement: such jobs are most of openb and none of Philly.
Source: Weng et al., USENIX ATC 2023; Jeon et al., USENIX ATC 2019; Narayanan et al., OSDI 2020.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from gpufleet.fleet.demands import MILLI, Demand
from gpufleet.fleet.errors import GpufleetError
from gpufleet.simulator.traces import Job, Load, Request, TraceNode

SMALL_PERCENT = 60
LONGEST_S = 30 * 86_400
NODE_GPUS = 8
_DAY_S = 86_400
_HOUR_S = 3_600


class Duration(NamedTuple):
    """A log-normal duration: its median, and the standard deviation of its logarithm."""

    median_s: int
    sigma: float

    @property
    def mean_s(self) -> float:
        """The mean of what is drawn, cut at LONGEST_S."""
        bound = (math.log(LONGEST_S) - math.log(self.median_s)) / self.sigma
        below = self.median_s * math.exp(self.sigma**2 / 2) * _normal(bound - self.sigma)
        return below + LONGEST_S * (1 - _normal(bound))

    def draw(self, draw: random.Random) -> int:
        """A duration in seconds, at least 1."""
        return max(1, min(LONGEST_S, round(self.median_s * math.exp(self.sigma * draw.gauss(0, 1)))))


class SmallShape(NamedTuple):
    """A shape of openb `default` and how many of its 8,152 pods have it."""

    pods: int
    gpus: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int


class TrainingSize(NamedTuple):
    """GPUs of a training job, how many of Philly's 15,264 jobs have as many, and how long they last."""

    jobs: int
    gpus: int
    duration: Duration


SMALL_SHAPES = (
    SmallShape(1047, 1, 810, 3152, 5600),
    SmallShape(857, 1, 1000, 11300, 49152),
    SmallShape(534, 1, 1000, 11400, 48128),
    SmallShape(470, 1, 1000, 3152, 5600),
    SmallShape(388, 1, 470, 11908, 47104),
    SmallShape(364, 0, 0, 12500, 57344),
    SmallShape(360, 1, 470, 8000, 30517),
    SmallShape(284, 0, 0, 32000, 49152),
    SmallShape(255, 1, 1000, 18708, 64512),
    SmallShape(237, 1, 650, 11908, 47104),
    SmallShape(195, 1, 1000, 9810, 41560),
    SmallShape(163, 0, 0, 8000, 30517),
    SmallShape(158, 1, 1000, 12000, 24576),
    SmallShape(158, 1, 1000, 15700, 58368),
    SmallShape(153, 1, 1000, 11908, 47104),
    SmallShape(120, 0, 0, 15400, 51200),
    SmallShape(111, 1, 320, 4000, 22888),
    SmallShape(108, 1, 1000, 16000, 32768),
    SmallShape(104, 1, 1000, 8000, 16384),
    SmallShape(104, 1, 1000, 4000, 24576),
    SmallShape(99, 1, 1000, 12000, 16384),
    SmallShape(95, 0, 0, 16500, 51200),
    SmallShape(93, 1, 1000, 14200, 58368),
    SmallShape(84, 1, 230, 4000, 30517),
    SmallShape(84, 1, 1000, 24200, 93184),
)

SMALL_DURATION = Duration(540, 1.95)

TRAINING_SIZES = (
    TrainingSize(10480, 1, Duration(7_730, 2.53)),
    TrainingSize(463, 2, Duration(93_234, 1.20)),
    TrainingSize(2044, 4, Duration(34_398, 1.28)),
    TrainingSize(1916, 8, Duration(16_131, 1.56)),
    TrainingSize(255, 16, Duration(16_131, 1.56)),
    TrainingSize(91, 32, Duration(16_131, 1.56)),
)
"""Durations of 16 and 32 GPUs are those of 8: the trace has no speeds for them."""

TRAINING_CPU_MILLI, TRAINING_MEMORY_MIB = 11_400, 48_128
"""What a training job takes for each GPU: that of a frequent shape of openb with one GPU, of which 8 fit."""

HOURS = (
    495, 436, 351, 411, 409, 302, 278, 316, 225, 140, 203, 197,
    146, 145, 129, 250, 286, 414, 517, 445, 329, 415, 398, 515,
)  # fmt: skip
"""Arrivals of openb `default` by hour of the day, without the first 400, which were there before."""

NODE_MODELS = (
    (549, "G2", 96_000, 393_216),
    (39, "G3", 128_000, 786_432),
    (21, "V100M32", 96_000, 786_432),
)
"""Nodes of openb with 8 GPUs: how many, their model, milli-CPU, MiB."""


def synthetic_load(nodes: int, days: int, seed: int, load_percent: int = 90) -> Load:
    """A fleet of so many nodes, and jobs for so many days that ask for `load_percent` of its GPU-seconds on
    average. The same for the same arguments. Raises GpufleetError for numbers below 1.
    """
    for name, value in (("nodes", nodes), ("days", days), ("load", load_percent)):
        if value < 1:
            raise GpufleetError(
                reason="Usage", message=f"{name} must be at least 1, not {value}", hint="give a larger number"
            )
    draw = random.Random(f"synthetic/{nodes}/{days}/{seed}/{load_percent}")
    daily = nodes * NODE_GPUS * _DAY_S * load_percent / 100 / mean_gpu_seconds()
    jobs = tuple(
        _job(f"job-{number:06}", arrival_s, draw)
        for number, arrival_s in enumerate(_arrivals(daily, days, draw))
    )
    return Load(tuple(_nodes(nodes)), jobs)


def mean_gpu_seconds() -> float:
    """GPU-seconds of a job on average."""
    pods = sum(shape.pods for shape in SMALL_SHAPES)
    small = sum(shape.pods * shape.gpu_milli for shape in SMALL_SHAPES) / pods / MILLI * SMALL_DURATION.mean_s
    jobs = sum(size.jobs for size in TRAINING_SIZES)
    training = sum(size.jobs * size.gpus * size.duration.mean_s for size in TRAINING_SIZES) / jobs
    return (SMALL_PERCENT * small + (100 - SMALL_PERCENT) * training) / 100


def _arrivals(daily: float, days: int, draw: random.Random) -> Iterator[int]:
    """Seconds at which jobs arrive: a Poisson process whose rate is that of HOURS."""
    until = list(accumulate(HOURS))
    now = draw.expovariate(daily)
    while now < days:
        day, share = divmod(now, 1)
        passed = share * until[-1]
        hour = bisect_left(until, passed)
        within = 1 - (until[hour] - passed) / HOURS[hour]
        yield int(day * _DAY_S + (hour + within) * _HOUR_S)
        now += draw.expovariate(daily)


def _job(name: str, arrival_s: int, draw: random.Random) -> Job:
    if draw.random() * 100 < SMALL_PERCENT:
        (small,) = draw.choices(SMALL_SHAPES, _SMALL_WEIGHTS)
        request = Request(Demand(small.cpu_milli, small.gpus, small.gpu_milli), small.memory_mib)
        return Job(name, arrival_s, SMALL_DURATION.draw(draw), 1, request)
    (size,) = draw.choices(TRAINING_SIZES, _TRAINING_WEIGHTS)
    gpus = min(size.gpus, NODE_GPUS)
    shape = Demand(gpus * TRAINING_CPU_MILLI, gpus, MILLI)
    request = Request(shape, gpus * TRAINING_MEMORY_MIB)
    return Job(name, arrival_s, size.duration.draw(draw), size.gpus // gpus, request)


def _nodes(count: int) -> Iterator[TraceNode]:
    """Nodes in the proportion of NODE_MODELS: each next one is of the model that lacks most."""
    total = sum(weight for weight, *_ in NODE_MODELS)
    made = [0] * len(NODE_MODELS)
    for number in range(count):
        lacking = [
            weight * (number + 1) / total - have for (weight, *_), have in zip(NODE_MODELS, made, strict=True)
        ]
        which = lacking.index(max(lacking))
        made[which] += 1
        _, model, cpu_milli, memory_mib = NODE_MODELS[which]
        yield TraceNode(f"node-{number:05}", cpu_milli, memory_mib, NODE_GPUS, model)


def _normal(bound: float) -> float:
    """The share of a standard normal distribution below a bound."""
    return (1 + math.erf(bound / math.sqrt(2))) / 2


_SMALL_WEIGHTS = [shape.pods for shape in SMALL_SHAPES]
_TRAINING_WEIGHTS = [size.jobs for size in TRAINING_SIZES]
