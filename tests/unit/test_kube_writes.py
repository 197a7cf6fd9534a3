"""The writes of scheduling, towards a server that says no."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.fleets import pod

from gpufleet.kube import writes
from gpufleet.kube.errors import ApiError, Status, StatusCause, StatusDetails, status_error

GONE = ApiError(status=404, reason="NotFound", message="no such pod")
REPLACED = ApiError(status=409, reason="Conflict", message="precondition failed: UID in precondition")
IMMUTABLE = StatusDetails(causes=(StatusCause(field="metadata.uid"),))
ANOTHER = status_error(Status(reason="Invalid", message="field is immutable", details=IMMUTABLE), 422)
INVALID = ApiError(status=422, reason="Invalid", message="no such condition")
REFUSED = ApiError(status=403, reason="Forbidden", message="may not")


class Server:
    def __init__(self, error: ApiError) -> None:
        self.error = error
        self.deleted: list[str | None] = []

    async def patch(self, *_: Any, **__: Any) -> None:
        raise self.error

    async def delete(self, *_: Any, uid: str | None, missing_ok: bool, **__: Any) -> None:
        assert missing_ok
        self.deleted.append(uid)


@pytest.mark.parametrize("error", [GONE, REPLACED, ANOTHER])
def test_a_victim_that_is_gone_already_needs_no_eviction(error: ApiError) -> None:
    server = Server(error)
    asyncio.run(writes.evict(server, pod("p"), message="for q", now=0.0))  # type: ignore[arg-type]
    assert server.deleted == [pod("p").uid]


@pytest.mark.parametrize("error", [REFUSED, INVALID])
def test_a_victim_that_may_not_be_marked_is_not_deleted(error: ApiError) -> None:
    server = Server(error)
    with pytest.raises(ApiError):
        asyncio.run(writes.evict(server, pod("p"), message="for q", now=0.0))  # type: ignore[arg-type]
    assert not server.deleted
