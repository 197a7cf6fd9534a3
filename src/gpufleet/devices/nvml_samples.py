"""Readings of GPUs and GPU instances by NVML, by the classic names of DCGM's fields.

A GPU instance shares the clocks, temperatures, power and errors of its GPU; memory and GPM are its own. What
NVML does not tell before Hopper needs DCGM, except traffic on PCIe and NVLink, for which it has counters.
Source: DCGM exporter's default counters and DCGM's NVML sources of them, NVML API reference for the units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pynvml

from gpufleet.devices.backend import BackendError, Sample
from gpufleet.devices.missing import (
    NEEDS_DCGM,
    NO_DEVICE,
    NO_NVLINK,
    NO_REMAPPING,
    NO_SENSOR,
    SECOND_LOOK,
    UNDER_MIG,
)
from gpufleet.devices.nvml_errors import GONE
from gpufleet.devices.nvml_fields import ALL_LINKS, Field, read_fields
from gpufleet.devices.nvml_gpm import Gpm, Key
from gpufleet.devices.nvml_handles import Handle, Handles, Listed
from gpufleet.devices.nvml_inventory import InventoryReader, mig_is_on
from gpufleet.devices.nvml_mig import instance_ids, mig_devices

LastXids = Mapping[Key, int]
"""The last XID of a GPU or GPU instance."""

_ONE, _MILLI, _KILOBYTE = 1, 0.001, 1000
_SINGLE, _DOUBLE = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
_CORE = pynvml.NVML_TEMPERATURE_GPU
_VOLATILE, _EVER = pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC


def _clock_reasons(gpu: Handle) -> int:
    """Why clocks are held down; the call has another name in drivers before R535."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
    except pynvml.NVMLError_FunctionNotFound:
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))


# fmt: off
_BOARD: tuple[tuple[str, float, Callable[..., float], *tuple[int, ...]], ...] = (
    # DCGM field                             factor  NVML call and its arguments
    ("DCGM_FI_DEV_SM_CLOCK",                  _ONE,   pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
    ("DCGM_FI_DEV_MEM_CLOCK",                 _ONE,   pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",    _ONE,   _clock_reasons),
    ("DCGM_FI_DEV_GPU_TEMP",                  _ONE,   pynvml.nvmlDeviceGetTemperature, _CORE),
    ("DCGM_FI_DEV_POWER_USAGE",               _MILLI, pynvml.nvmlDeviceGetPowerUsage),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT",          _MILLI, pynvml.nvmlDeviceGetEnforcedPowerLimit),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",  _ONE,   pynvml.nvmlDeviceGetTotalEnergyConsumption),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER",       _ONE,   pynvml.nvmlDeviceGetPcieReplayCounter),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",         _ONE,   pynvml.nvmlDeviceGetTotalEccErrors, _SINGLE, _VOLATILE),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",         _ONE,   pynvml.nvmlDeviceGetTotalEccErrors, _DOUBLE, _VOLATILE),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",         _ONE,   pynvml.nvmlDeviceGetTotalEccErrors, _SINGLE, _EVER),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",         _ONE,   pynvml.nvmlDeviceGetTotalEccErrors, _DOUBLE, _EVER),
)
_FIELDS = (
    # DCGM field                       NVML field                                reason where the GPU has none
    ("DCGM_FI_DEV_MEMORY_TEMP",        pynvml.NVML_FI_DEV_MEMORY_TEMP,           NO_SENSOR),
    ("DCGM_FI_DEV_THERMAL_VIOLATION",  pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,   ""),
    ("DCGM_FI_DEV_POWER_VIOLATION",    pynvml.NVML_FI_DEV_PERF_POLICY_POWER,     ""),
)
_PCIE = (
    # DCGM field                       NVML counter
    ("DCGM_FI_PROF_PCIE_TX_BYTES",     pynvml.NVML_PCIE_UTIL_TX_BYTES),
    ("DCGM_FI_PROF_PCIE_RX_BYTES",     pynvml.NVML_PCIE_UTIL_RX_BYTES),
)
# fmt: on
_REMAPPED = (
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
)
_UTILISATION = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL")
_ENGINES = (
    ("DCGM_FI_DEV_ENC_UTIL", pynvml.nvmlDeviceGetEncoderUtilization),
    ("DCGM_FI_DEV_DEC_UTIL", pynvml.nvmlDeviceGetDecoderUtilization),
)
_WHOLE_ONLY = (*_UTILISATION, *(name for name, _ in _ENGINES))
_FREE, _USED, _RESERVED = "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_RESERVED"
_LICENSE = "DCGM_FI_DEV_VGPU_LICENSE_STATUS"
_NVLINK_TOTAL = "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"
_NVLINK = ("DCGM_FI_PROF_NVLINK_TX_BYTES", "DCGM_FI_PROF_NVLINK_RX_BYTES")
_TRAFFIC = (
    (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS),
    (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS),
)


class _Traffic(NamedTuple):
    """NVLink data since the driver was loaded, in KiB, at a time in microseconds; and the rates since the
    reading before, in bytes per second.
    """

    at_us: int
    sent: float
    received: float
    rates: tuple[float, float] | None = None


class _Readings:
    """Values of one GPU or instance, and why others are missing."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.missing: dict[str, str] = {}

    def take(self, name: str, factor: float, call: Callable[..., float], *args: object) -> None:
        """A value that one call gives; raises NVMLError for a GPU that is gone."""
        try:
            self.have({name: call(*args) * factor})
        except pynvml.NVMLError as error:
            self.fail((name,), error.value)

    def field(self, name: str, field: Field, without: str = "") -> None:
        """A value of a field; `without` is the reason where the GPU does not have it."""
        if field.code:
            self.fail((name,), field.code, without)
        else:
            self.values[name] = field.value

    def fail(self, names: tuple[str, ...], code: int, without: str = "") -> None:
        """Why values are missing, by the NVML code; raises NVMLError for a GPU that is gone."""
        error = pynvml.NVMLError(code)
        if code in GONE:
            raise error
        absent = without and code == pynvml.NVML_ERROR_NOT_SUPPORTED
        self.lack(names, without if absent else str(error))

    def lack(self, names: tuple[str, ...], why: str) -> None:
        """Values that are missing for a reason."""
        for name in names:
            self.values.pop(name, None)
            self.missing[name] = why

    def have(self, values: Mapping[str, float]) -> None:
        """Values that are not missing, whatever was said of them before."""
        for name, value in values.items():
            self.missing.pop(name, None)
            self.values[name] = value


class SampleReader:
    """Reads samples. For one thread at a time."""

    def __init__(self, handles: Handles, inventory: InventoryReader, clock: Callable[[], float]) -> None:
        self._handles = handles
        self._inventory = inventory
        self._clock = clock
        self._gpm = Gpm()
        self._traffic: dict[str, _Traffic] = {}

    def read(self, xids: LastXids) -> tuple[Sample, ...]:
        """The readings of every GPU and of its instances by place; raises BackendError without a driver."""
        samples = [sample for gpu in self._handles.all() for sample in self._samples(gpu, xids)]
        self._gpm.keep({(sample.uuid, sample.instance) for sample in samples})
        return tuple(samples)

    def close(self) -> None:
        """Give buffers of the driver back."""
        self._gpm.close()

    def _samples(self, gpu: Listed, xids: LastXids) -> list[Sample]:
        if gpu.handle is None:
            return [Sample(gpu.uuid, None, {}, {"*": gpu.error})]
        try:
            return list(self._answering(gpu, xids))
        except pynvml.NVMLError as error:
            return [Sample(gpu.uuid, None, {}, {"*": str(error)})]
        except BackendError as error:
            return [Sample(gpu.uuid, None, {}, {"*": error.message})]

    def _answering(self, gpu: Listed, xids: LastXids) -> Iterator[Sample]:
        under_mig = mig_is_on(gpu.handle)
        shared = _board(gpu.handle)
        if self._inventory.identity(gpu).vgpu is None:
            shared.values[_LICENSE] = 0
        else:
            shared.take(_LICENSE, _ONE, _licensed, gpu.handle)
        if under_mig:
            shared.lack((*_WHOLE_ONLY, _NVLINK_TOTAL, *_NVLINK), UNDER_MIG)
        yield self._sample(gpu, None, shared, gpu.handle, under_mig, xids)
        if under_mig:
            devices: dict[int, Handle] = {}
            for (instance, _), device in mig_devices(gpu.handle):
                devices.setdefault(instance, device)
            cuts = self._inventory.cuts(gpu.uuid, gpu.handle)
            for instance in instance_ids(gpu.handle, cuts):
                yield self._sample(gpu, instance, shared, devices.get(instance), under_mig, xids)

    def _sample(
        self,
        gpu: Listed,
        instance: int | None,
        shared: _Readings,
        device: Handle,
        under_mig: bool,
        xids: LastXids,
    ) -> Sample:
        """One sample; `device` is the GPU or a MIG device of the instance, None where there is none."""
        own = _Readings()
        own.values |= shared.values
        own.missing |= shared.missing
        own.values["DCGM_FI_DEV_XID_ERRORS"] = xids.get((gpu.uuid, instance), 0)
        _memory(own, device)
        values, missing = self._gpm.read(gpu.handle, (gpu.uuid, instance), self._clock())
        own.values |= values
        own.missing |= missing
        if under_mig:
            own.lack(_NVLINK, UNDER_MIG)
        else:
            _utilisation(own, gpu.handle)
            self._nvlink(own, gpu)
        if instance is None:
            _pcie(own, gpu.handle)
        return Sample(gpu.uuid, instance, own.values, own.missing)

    def _nvlink(self, own: _Readings, gpu: Listed) -> None:
        """Traffic of all NVLinks together; GPM tells of each direction, before Hopper the counters do."""
        sent, received = read_fields(gpu.handle, _TRAFFIC)
        counted = (_NVLINK_TOTAL, *(name for name in _NVLINK if own.missing.get(name) == NEEDS_DCGM))
        if code := sent.code or received.code:
            own.fail((_NVLINK_TOTAL, *_NVLINK), code, NO_NVLINK)
            return
        rates = self._rates(gpu.uuid, sent, received)
        if rates is None:
            own.lack(counted, SECOND_LOOK)
            return
        traffic = zip((_NVLINK_TOTAL, *_NVLINK), (sum(rates) / 1e6, *rates), strict=True)
        own.have({name: rate for name, rate in traffic if name in counted})

    def _rates(self, uuid: str, sent: Field, received: Field) -> tuple[float, float] | None:
        """Bytes per second since the last reading; None when there is none, or the counters began anew."""
        before, now = self._traffic.get(uuid), _Traffic(sent.at_us, sent.value, received.value)
        if before is not None and now.at_us <= before.at_us:
            return before.rates
        if before is not None and now.sent >= before.sent and now.received >= before.received:
            seconds = (now.at_us - before.at_us) / 1e6
            rates = ((now.sent - before.sent) / seconds, (now.received - before.received) / seconds)
            now = now._replace(rates=(1024 * rates[0], 1024 * rates[1]))
        self._traffic[uuid] = now
        return now.rates


def _board(gpu: Handle) -> _Readings:
    """What a GPU and its instances share."""
    own = _Readings()
    for name, factor, call, *args in _BOARD:
        own.take(name, factor, call, gpu, *args)
    fields = read_fields(gpu, [field for _, field, _ in _FIELDS])
    for (name, _, without), field in zip(_FIELDS, fields, strict=True):
        own.field(name, field, without)
    try:
        correctable, uncorrectable, _, failed = pynvml.nvmlDeviceGetRemappedRows(gpu)
        own.values.update(zip(_REMAPPED, (correctable, uncorrectable, failed), strict=True))
    except pynvml.NVMLError as error:
        own.fail(_REMAPPED, error.value, NO_REMAPPING)
    return own


def _licensed(gpu: Handle) -> int:
    """Whether a virtual GPU has a licence."""
    found = pynvml.nvmlDeviceGetGridLicensableFeatures_v4(gpu)
    features = found.gridLicensableFeatures[: found.licensableFeaturesCount]
    return int(any(feature.featureState for feature in features))


def _utilisation(own: _Readings, gpu: Handle) -> None:
    try:
        rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
        own.values.update(zip(_UTILISATION, (rates.gpu, rates.memory), strict=True))
    except pynvml.NVMLError as error:
        own.fail(_UTILISATION, error.value)
    for name, call in _ENGINES:
        own.take(name, _ONE, lambda handle, call=call: call(handle)[0], gpu)


def _memory(own: _Readings, device: Handle) -> None:
    """Memory of a GPU or MIG device; drivers before R510 count what is reserved as used."""
    if device is None:
        own.lack((_FREE, _USED, _RESERVED), NO_DEVICE)
        return
    try:
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
            own.values[_RESERVED] = int(memory.reserved) >> 20
        except pynvml.NVMLError_FunctionNotFound as error:
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            own.fail((_RESERVED,), error.value)
        own.values[_FREE] = int(memory.free) >> 20
        own.values[_USED] = int(memory.used) >> 20
    except pynvml.NVMLError as error:
        own.fail((_FREE, _USED, _RESERVED), error.value)


def _pcie(own: _Readings, gpu: Handle) -> None:
    """Traffic on PCIe where GPM cannot tell of it; each of these calls watches it for 20 ms."""
    for name, counter in _PCIE:
        if own.missing.get(name, SECOND_LOOK) != SECOND_LOOK:
            own.take(name, _KILOBYTE, pynvml.nvmlDeviceGetPcieThroughput, gpu, counter)
