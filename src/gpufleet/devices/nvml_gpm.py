"""GPM: what the parts of a GPU or GPU instance did between two samples, on Hopper and newer.

A sample is a buffer of the driver. Each GPU and GPU instance has two, which take turns: the older one is
overwritten, so what is read covers the time since the last reading. Buffers of something that is gone serve
the next newcomer. NVML wants 100 ms between the two; whoever asks sooner gets the last answer.
Source: NVML API reference (GPM), DCGM's field list for the names and units.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import pynvml

from gpufleet.devices.missing import NEEDS_DCGM, SECOND_LOOK
from gpufleet.devices.nvml_errors import ABSENT
from gpufleet.devices.nvml_handles import Handle

_PERCENT, _MEBIBYTE = 0.01, 2**20

_METRICS = (
    # DCGM field                        GPM metric                                    factor to DCGM's unit
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE",   pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,            _PERCENT),
    ("DCGM_FI_PROF_SM_ACTIVE",          pynvml.NVML_GPM_METRIC_SM_UTIL,                  _PERCENT),
    ("DCGM_FI_PROF_SM_OCCUPANCY",       pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,             _PERCENT),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,          _PERCENT),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE",   pynvml.NVML_GPM_METRIC_FP64_UTIL,                _PERCENT),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE",   pynvml.NVML_GPM_METRIC_FP32_UTIL,                _PERCENT),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE",   pynvml.NVML_GPM_METRIC_FP16_UTIL,                _PERCENT),
    ("DCGM_FI_PROF_DRAM_ACTIVE",        pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,             _PERCENT),
    ("DCGM_FI_PROF_PCIE_TX_BYTES",      pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,          _MEBIBYTE),
    ("DCGM_FI_PROF_PCIE_RX_BYTES",      pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,          _MEBIBYTE),
    ("DCGM_FI_PROF_NVLINK_TX_BYTES",    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,  _MEBIBYTE),
    ("DCGM_FI_PROF_NVLINK_RX_BYTES",    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,  _MEBIBYTE),
)  # fmt: skip

FIELDS = tuple(name for name, _, _ in _METRICS)

SHORTEST_S = 0.1
"""Time between two samples that NVML can compute anything from."""

Key = tuple[str, int | None]
"""A GPU's uuid, and the id of a GPU instance or None."""

Readings = tuple[Mapping[str, float], Mapping[str, str]]
"""Values by field, and why a field has none."""


class _Pair:
    """The two buffers of one GPU or GPU instance; `newer` was filled at `at`."""

    def __init__(self, newer: Handle, older: Handle) -> None:
        self.newer = newer
        self.older = older
        self.at = -math.inf
        self.last: Readings = ({}, dict.fromkeys(FIELDS, SECOND_LOOK))


class Gpm:
    """Reads GPM metrics. For one thread at a time."""

    def __init__(self) -> None:
        self._pairs: dict[Key, _Pair] = {}
        self._spare: list[Handle] = []
        self._absent: dict[Key, str] = {}
        self._supported: dict[str, str] = {}
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(_METRICS)
        self._answers = [self._request.metrics[place] for place in range(len(_METRICS))]
        for answer, (_, metric, _) in zip(self._answers, _METRICS, strict=True):
            answer.metricId = metric

    def read(self, gpu: Handle, key: Key, now: float) -> Readings:
        """The metrics of a GPU or GPU instance since the last call; `now` in seconds of one clock."""
        uuid, instance = key
        absent = self._absent.get(key) or self._unsupported(uuid, gpu)
        if absent:
            return {}, dict.fromkeys(FIELDS, absent)
        pair = self._pairs.get(key)
        if pair is not None and now - pair.at < SHORTEST_S:
            return pair.last
        try:
            if pair is None:
                pair = self._pairs[key] = _Pair(self._buffer(), self._buffer())
            _take(gpu, instance, pair.older)
            pair.newer, pair.older = pair.older, pair.newer
            if pair.at > -math.inf:
                pair.last = self._metrics(pair)
            pair.at = now
        except pynvml.NVMLError as error:
            if error.value in ABSENT:
                self._absent[key] = str(error)
            return {}, dict.fromkeys(FIELDS, str(error))
        return pair.last

    def keep(self, keys: Collection[Key]) -> None:
        """Forget what is not among `keys`."""
        for key in self._pairs.keys() - keys:
            pair = self._pairs.pop(key)
            self._spare += (pair.newer, pair.older)
        self._absent = {key: why for key, why in self._absent.items() if key in keys}

    def close(self) -> None:
        """Give the buffers back."""
        self.keep(())
        while self._spare:
            pynvml.nvmlGpmSampleFree(self._spare.pop())

    def _unsupported(self, uuid: str, gpu: Handle) -> str:
        if uuid not in self._supported:
            try:
                supported = pynvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice
            except pynvml.NVMLError as error:
                if error.value not in ABSENT:
                    return str(error)
                supported = False
            self._supported[uuid] = "" if supported else NEEDS_DCGM
        return self._supported[uuid]

    def _buffer(self) -> Handle:
        return self._spare.pop() if self._spare else pynvml.nvmlGpmSampleAlloc()

    def _metrics(self, pair: _Pair) -> Readings:
        self._request.sample1, self._request.sample2 = pair.older, pair.newer
        pynvml.nvmlGpmMetricsGet(self._request)
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        for answer, (name, _, factor) in zip(self._answers, _METRICS, strict=True):
            code, value = answer.nvmlReturn, answer.value
            if code == pynvml.NVML_SUCCESS and math.isfinite(value):
                values[name] = value * factor
            else:
                missing[name] = str(pynvml.NVMLError(code)) if code else "not a number"
        return values, missing


def _take(gpu: Handle, instance: int | None, buffer: Handle) -> None:
    if instance is None:
        pynvml.nvmlGpmSampleGet(gpu, buffer)
    else:
        pynvml.nvmlGpmMigSampleGet(gpu, instance, buffer)
