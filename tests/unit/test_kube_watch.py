"""Watch streams from bytes, however they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.kube.errors import ApiError
from gpufleet.kube.objects import Pod
from gpufleet.kube.watch import decode_event, split_lines


async def chunks_of(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def lines_of(parts: Sequence[bytes]) -> list[bytes]:
    async def collect() -> list[bytes]:
        return [line async for line in split_lines(chunks_of(parts))]

    return asyncio.run(collect())


@given(
    st.lists(st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\n", b"x")), max_size=8), st.data()
)
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert lines_of(parts) == lines


def test_a_line_that_was_not_finished_is_dropped() -> None:
    assert lines_of([b'{"a":1}\n{"b"', b":2"]) == [b'{"a":1}']


def test_an_event_is_decoded_as_the_wanted_type() -> None:
    line = (
        b'{"type":"ADDED","object":{"metadata":{"name":"p","resourceVersion":"7"},"spec":{"nodeName":"n"}}}'
    )
    event = decode_event(line, Pod)
    assert event.type == "ADDED"
    assert event.resource_version == "7"
    assert event.object is not None
    assert event.object.spec.node_name == "n"
    untyped = decode_event(line, dict)
    assert untyped.object == msgspec.json.decode(line)["object"]


def test_a_bookmark_has_a_version_and_no_object() -> None:
    line = (
        b'{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"12746",'
        b'"creationTimestamp":null},"spec":{"containers":null},"status":{}}}'
    )
    event = decode_event(line, Pod)
    assert (event.type, event.object, event.resource_version, event.problem) == (
        "BOOKMARK",
        None,
        "12746",
        "",
    )


def test_an_error_event_raises_what_the_status_says() -> None:
    line = (
        b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
        b'"message":"too old resource version: 1 (5)","reason":"Expired","code":410}}'
    )
    with pytest.raises(ApiError) as expired:
        decode_event(line, Pod)
    assert expired.value.gone
    assert expired.value.reason == "Expired"


def test_an_object_of_another_form_is_reported_with_its_name() -> None:
    metadata = b'{"name":"p","namespace":"n","resourceVersion":"8"}'
    line = b'{"type":"MODIFIED","object":{"metadata":' + metadata + b',"spec":{"nodeName":"n","volumes":1}}}'
    event = decode_event(line, Pod)
    assert event.object is None
    assert event.metadata is not None
    assert event.metadata.key == "n/p"
    assert event.resource_version == "8"
    assert "$.object.spec" in event.problem
    assert event.node == "n"


def test_what_is_no_event_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(b"<html>", Pod)
