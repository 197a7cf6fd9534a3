"""What is tried again, and how fast requests may go."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.kube.errors import ApiError, Unreachable, api_error
from gpufleet.kube.ratelimit import Backoff, TokenBucket
from gpufleet.kube.retry import CONNECT_TRIES, Retry


def answered(status: int, retry_after: float | None = None) -> ApiError:
    return ApiError(status=status, reason="R", message="m", retry_after=retry_after)


def unanswered(*, sent: bool, permanent: bool = False) -> Unreachable:
    return Unreachable(reason="R", message="m", sent=sent, permanent=permanent)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_did_not_act_is_asked_again_whatever_the_method(status: int, reads: bool) -> None:
    delay = Retry(reads=reads).delay(answered(status, 2.0))
    assert delay is not None
    assert 2.0 <= delay <= 2.1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_that_may_have_acted_is_asked_again_by_reads_only(status: int) -> None:
    assert Retry(reads=True).delay(answered(status)) is not None
    assert Retry(reads=False).delay(answered(status)) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 429])
def test_a_refusal_is_final(status: int) -> None:
    assert Retry(reads=True).delay(answered(status)) is None


def test_a_lost_connection_is_tried_again_by_reads_only() -> None:
    assert Retry(reads=True).delay(unanswered(sent=True)) is not None
    assert Retry(reads=False).delay(unanswered(sent=True)) is None


@pytest.mark.parametrize("reads", [True, False])
def test_a_connection_that_was_never_made_is_tried_a_few_times(reads: bool) -> None:
    retry = Retry(reads=reads)
    delays = [retry.delay(unanswered(sent=False)) for _ in range(CONNECT_TRIES)]
    assert None not in delays[:-1]
    assert delays[-1] is None


def test_what_cannot_get_better_is_not_tried_again() -> None:
    assert Retry(reads=True).delay(unanswered(sent=False, permanent=True)) is None


@given(st.integers(1, 60), st.sampled_from(["full", "half"]), st.integers())
def test_backoff_stays_within_its_step_and_its_cap(tries: int, jitter: str, seed: int) -> None:
    backoff = Backoff(0.8, 30.0, jitter=jitter, rng=random.Random(seed))
    for failures in range(tries):
        step = min(30.0, 0.8 * 2**failures)
        assert (step / 2 if jitter == "half" else 0.0) <= backoff.next() <= step
    backoff.reset()
    assert backoff.next() <= 0.8


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0.5, 1000), st.integers(1, 50), st.lists(st.floats(0, 2), min_size=1, max_size=60))
def test_a_bucket_never_lets_more_through_than_burst_and_rate_allow(
    qps: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    bucket = TokenBucket(qps, burst, clock=clock)
    used_at: list[float] = []
    for pause in pauses:
        clock.now += pause
        used_at.append(clock.now + bucket.reserve())
    assert used_at == sorted(used_at), "in the order of asking"
    for first, start in enumerate(used_at):
        for last in range(first, len(used_at)):
            allowed = burst + (used_at[last] - start) * qps
            assert last - first + 1 <= allowed + 1e-6


def test_a_bucket_that_rested_is_full_again() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 3, clock=clock)
    assert [bucket.reserve() for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])
    clock.now += 100
    assert [bucket.reserve() for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


def test_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="qps"):
        TokenBucket(0, 1)


def test_errors_carry_the_status_of_the_server() -> None:
    body = (
        b'{"kind":"Status","message":"pods \\"p\\" not found","reason":"NotFound","code":404,'
        b'"details":{"name":"p","kind":"pods","retryAfterSeconds":3}}'
    )
    error = api_error(404, body)
    assert (error.status, error.reason, error.message, error.not_found) == (
        404,
        "NotFound",
        'pods "p" not found',
        True,
    )
    assert error.retry_after == 3.0
    assert api_error(429, body, "7").retry_after == 7.0
    plain = api_error(502, b"<html>Bad gateway</html>")
    assert (plain.reason, plain.message) == ("BadGateway", "<html>Bad gateway</html>")
    assert api_error(503, b"").message == "the API server answered 503 ServiceUnavailable"
    assert api_error(401, b"").hint
