"""Events of the driver: XIDs, memory errors, recovery actions, GPUs that became unavailable.

One set of events hears of every GPU that answers. A GPU is registered when it is first seen, and again when
it comes back after it was lost. NVML names the GPU of an event by its handle, which may not answer any more,
so the uuids of all handles ever seen are kept. A wait never stays in the driver for longer than `SLICE_S`, so
that the set can be freed when nobody is in it.
Source: NVML API reference (Event Handling Methods).
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

import pynvml

from gpufleet.devices.backend import Event
from gpufleet.devices.nvml_errors import ABSENT, GONE, backend_error
from gpufleet.devices.nvml_handles import Handle, Handles, Listed, instance_id

SLICE_S = 0.5
LARGEST_BATCH = 1000

Kind: TypeAlias = Literal["xid", "ecc-single", "ecc-double", "recovery", "unavailable"]

_KINDS: Mapping[int, Kind] = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeSingleBitEccError: "ecc-single",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc-double",
    pynvml.nvmlEventTypeGpuRecoveryAction: "recovery",
    pynvml.nvmlEventTypeGpuUnavailableError: "unavailable",
}
_WANTED = sum(_KINDS)
_CODED = ("xid", "recovery")


class EventWatch:
    """Waits for events. One thread waits at a time; any thread may close."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._waiting = threading.Lock()
        self._closed = threading.Event()
        self._set: Handle = None
        self._uuids: dict[int, str] = {}
        self._registered: set[str] = set()

    def wait(self, timeout_s: float) -> tuple[Event, ...]:
        """Events since the last call, as soon as there are any, or none after the timeout or when closed.

        Raises BackendError.
        """
        end = time.monotonic() + timeout_s
        with self._waiting:
            while not self._closed.is_set():
                self._register()
                left = end - time.monotonic()
                events = self._next(min(SLICE_S, max(0.0, left)))
                if events or left <= SLICE_S:
                    return events
        return ()

    def close(self) -> bool:
        """Free the set; False when a wait does not come back from the driver, which then keeps it."""
        self._closed.set()
        if not self._waiting.acquire(timeout=2 * SLICE_S):
            return False
        self._free()
        self._waiting.release()
        return True

    def _register(self) -> None:
        for listed in self._handles.all():
            if listed.handle is None:
                self._registered.discard(listed.uuid)
                continue
            self._uuids[_address(listed.handle)] = listed.uuid
            if listed.uuid not in self._registered:
                self._add(listed)

    def _add(self, listed: Listed) -> None:
        """Hear of a GPU; one whose driver has no events counts as heard of."""
        try:
            if self._set is None:
                self._set = pynvml.nvmlEventSetCreate()
            wanted = _WANTED & pynvml.nvmlDeviceGetSupportedEventTypes(listed.handle)
            if wanted:
                pynvml.nvmlDeviceRegisterEvents(listed.handle, wanted, self._set)
        except pynvml.NVMLError as error:
            if error.value in GONE:
                return
            if error.value not in ABSENT:
                raise backend_error(error.value, f"wait for events of {listed.uuid}") from error
        self._registered.add(listed.uuid)

    def _next(self, seconds: float) -> tuple[Event, ...]:
        if self._set is None:
            self._closed.wait(seconds)
            return ()
        events: list[Event] = []
        timeout_ms = math.ceil(1000 * seconds)
        try:
            while len(events) < LARGEST_BATCH:
                data = pynvml.nvmlEventSetWait_v2(self._set, timeout_ms)
                events += self._event(data)
                timeout_ms = 0
        except pynvml.NVMLError_Timeout:
            pass
        except pynvml.NVMLError as error:
            if error.value not in GONE:
                raise backend_error(error.value, "wait for events") from error
            self._free()
            self._closed.wait(0 if events else seconds)
        return tuple(events)

    def _event(self, data: pynvml.c_nvmlEventData_t) -> list[Event]:
        kind, uuid = _KINDS.get(data.eventType), self._uuids.get(_address(data.device))
        if kind is None or uuid is None:
            return []
        code = int(data.eventData) if kind in _CODED else 0
        return [Event(kind, uuid, code, instance_id(data.gpuInstanceId), instance_id(data.computeInstanceId))]

    def _free(self) -> None:
        self._registered.clear()
        if self._set is not None:
            events, self._set = self._set, None
            with suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(events)


def _address(handle: Handle) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
