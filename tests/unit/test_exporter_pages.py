"""A page whose end is written for each reader is one gzip stream all the same."""

from __future__ import annotations

import gzip

from hypothesis import given
from hypothesis import strategies as st

from gpufleet.devices.exporter_pages import make_page

TEXTS = st.text(alphabet="abc{}=\n", max_size=4000).map(str.encode)


@given(TEXTS, TEXTS, TEXTS)
def test_a_page_is_read_with_whatever_end_plain_or_compressed(text: bytes, one: bytes, other: bytes) -> None:
    page = make_page(text)
    for end in (one, other):
        assert page.plain(end) == text + end
        assert gzip.decompress(page.gzipped(end)) == text + end
