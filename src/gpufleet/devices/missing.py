"""Why a reading is missing from a sample, in the words that both backends use.

Anything else that is said there is the driver's own word for an error.
"""

from __future__ import annotations

from typing import Final

UNDER_MIG: Final = "not available while MIG is on"
NEEDS_DCGM: Final = "needs DCGM before Hopper"
NO_SENSOR: Final = "the GPU has no such sensor"
NO_NVLINK: Final = "the GPU has no NVLink"
NO_REMAPPING: Final = "the GPU remaps no rows"
NO_DEVICE: Final = "the GPU instance has no compute instance"
SECOND_LOOK: Final = "needs a second sample"
