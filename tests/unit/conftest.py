"""Property tests are judged by what they find, never by how long an example takes on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gpufleet", deadline=None)
settings.load_profile("gpufleet")
