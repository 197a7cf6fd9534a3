"""A page that is ready but for its end: compressed once, read many times.

A gzip stream is a header, blocks of deflate, and the checksum and length of everything. Blocks that end on a
byte can be kept and others put behind them, so a reader costs the compression of the end only.
Source: RFC 1951 and 1952; zlib manual (Z_FULL_FLUSH).
"""

from __future__ import annotations

import struct
import zlib

import msgspec

_HEADER = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 255))
_FASTEST = 1
_LENGTH_MASK = 0xFFFFFFFF


class Page(msgspec.Struct, frozen=True):
    """A text, its blocks of deflate, and its checksum."""

    text: bytes = b""
    blocks: bytes = b""
    checksum: int = 0

    def plain(self, end: bytes) -> bytes:
        """The page with its end."""
        return self.text + end

    def gzipped(self, end: bytes) -> bytes:
        """The page with its end, as one gzip stream."""
        deflate = zlib.compressobj(_FASTEST, wbits=-zlib.MAX_WBITS)
        last = deflate.compress(end) + deflate.flush()
        length = (len(self.text) + len(end)) & _LENGTH_MASK
        return _HEADER + self.blocks + last + struct.pack("<II", zlib.crc32(end, self.checksum), length)


def make_page(text: bytes) -> Page:
    """A page whose end is still to come."""
    deflate = zlib.compressobj(_FASTEST, wbits=-zlib.MAX_WBITS)
    return Page(text, deflate.compress(text) + deflate.flush(zlib.Z_FULL_FLUSH), zlib.crc32(text))
