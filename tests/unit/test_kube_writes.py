"""The writes of scheduling, towards a server that says no."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.fleets import pod

from gpufleet.kube import writes
from gpufleet.kube.errors import ApiError

GONE = ApiError(status=404, reason="NotFound", message="no such pod")
REPLACED = ApiError(status=409, reason="Conflict", message="precondition failed: UID in precondition")
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


@pytest.mark.parametrize("error", [GONE, REPLACED])
def test_a_victim_that_is_gone_already_needs_no_eviction(error: ApiError) -> None:
    server = Server(error)
    asyncio.run(writes.evict(server, pod("p"), message="for q", now=0.0))  # type: ignore[arg-type]
    assert server.deleted == [pod("p").uid]


def test_a_victim_that_may_not_be_marked_is_not_deleted() -> None:
    server = Server(REFUSED)
    with pytest.raises(ApiError):
        asyncio.run(writes.evict(server, pod("p"), message="for q", now=0.0))  # type: ignore[arg-type]
    assert not server.deleted
