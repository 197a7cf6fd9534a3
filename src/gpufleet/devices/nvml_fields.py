"""NVML's field values: many readings in one call, each with a return code of its own.

Source: NVML API reference (Field Value Queries).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pynvml

from gpufleet.devices.nvml_errors import GONE
from gpufleet.devices.nvml_handles import Handle

ALL_LINKS = 0xFFFFFFFF
"""The scope of an NVLink field that means all links together."""

_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


class Field(msgspec.Struct, frozen=True):
    """The value of a field at a time (microseconds since 1970), or the NVML code that says why not."""

    value: float
    at_us: int
    code: int = 0


def read_fields(handle: Handle, fields: Sequence[int | tuple[int, int]]) -> tuple[Field, ...]:
    """The values of fields, each an id or an id and its scope; raises NVMLError for a GPU that is gone."""
    answers = pynvml.nvmlDeviceGetFieldValues(handle, list(fields))
    for answer in answers:
        if answer.nvmlReturn in GONE:
            raise pynvml.NVMLError(answer.nvmlReturn)
    return tuple(_field(answer) for answer in answers)


def _field(answer: pynvml.c_nvmlFieldValue_t) -> Field:
    member = _MEMBERS.get(answer.valueType)
    if answer.nvmlReturn != pynvml.NVML_SUCCESS or member is None:
        return Field(0, answer.timestamp, answer.nvmlReturn or pynvml.NVML_ERROR_NOT_SUPPORTED)
    return Field(getattr(answer.value, member), answer.timestamp)
