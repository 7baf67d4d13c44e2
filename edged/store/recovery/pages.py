"""Rows out of the pages of a damaged file, without SQLite: every leaf that is whole is read by itself, whether or not a
tree still leads to it. SQLite's file format (sqlite.org/fileformat2.html), as far as a file with `auto_vacuum` and
without reserved bytes has it; the log's committed pages are seen before the file's.

Which table a row belongs to is told by its shape: STRICT columns have the types they say. Pages that the file's own map
calls free are left out: what is on them was deleted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Any

from msgspec import Struct

Values = tuple[Any, ...]

TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02
ROOT, IN_TREE = 1, 5  # in the map of pages; the others are free, or the rest of long rows
KINDS = range(1, 6)
LOG_MAGIC = (0x377F0682, 0x377F0683)  # the lowest bit: sums are made of big-endian words
LOG_HEADER, FRAME_HEADER = 32, 24
MOST_RESTS = 4  # times that all pages are read as the rest of long rows
INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str,), "BLOB": (bytes,)}


class Column(Struct, frozen=True):
    """As PRAGMA table_info tells it. required: never NULL; stored: in every row, not added later; alias: it is the
    row's number."""

    name: str
    type: str
    required: bool
    stored: bool = True
    alias: bool = False


class Shape(Struct, frozen=True):
    """A table: its columns in the order in which they are stored, and whether its rows have numbers."""

    table: str
    columns: tuple[Column, ...]
    numbered: bool = True


class Pages:
    """The pages of a file, with what its log holds of them."""

    def __init__(self, file: bytes | mmap, log: bytes | mmap, size: int) -> None:
        self._file, self._log = memoryview(file), memoryview(log)
        self.size = size
        self._newer = _committed(self._log, size)
        self.count = max(len(self._file) // size, *self._newer, 0)
        # Each page is the rest of one row at most, and a damaged row may claim others'. Rows that lead round and round,
        # or all to the same pages, would be read for ever.
        self.rests = MOST_RESTS * self.count

    def get(self, number: int) -> bytes:
        """A page, numbered from 1; empty where there is none."""
        if (at := self._newer.get(number)) is not None:
            return bytes(self._log[at : at + self.size])
        page = bytes(self._file[(number - 1) * self.size : number * self.size]) if number > 0 else b""
        return page if len(page) == self.size else b""

    def may_hold_rows(self, number: int) -> bool:
        """By the map of pages, which lies in front of the stretch that it tells of; yes where that is damaged, too."""
        stretch = self.size // 5 + 1
        if number < 3 or (place := (number - 2) % stretch) == 0:
            return False
        page = self.get(number - place)
        kind = page[(place - 1) * 5] if page else 0
        return kind in (ROOT, IN_TREE) or kind not in KINDS


def rows(pages: Pages, shapes: tuple[Shape, ...]) -> Iterator[tuple[Shape, Values]]:
    """All rows that can be read, with the table each belongs to. A row may be shorter than its table: what is missing
    was added later, and has its default."""
    for number in range(1, pages.count + 1):
        if not pages.may_hold_rows(number):
            continue
        page = pages.get(number)
        for row_number, values in _cells(pages, page):
            for shape in shapes:
                if shape.numbered == (row_number is not None) and fits(shape, values):
                    alias = [column.alias for column in shape.columns]
                    yield shape, tuple(row_number if a else v for a, v in zip(alias, values, strict=False))
                    break


def fits(shape: Shape, values: Values) -> bool:
    """Whether these may be the values of a row of this table."""
    columns = shape.columns
    if len(values) > len(columns) or any(column.stored for column in columns[len(values) :]):
        return False
    return all(_suits(column, value) for column, value in zip(columns, values, strict=False))


def _suits(column: Column, value: Any) -> bool:
    if column.alias or value is None:
        return value is None and (column.alias or not column.required)
    return isinstance(value, TYPES[column.type])


def _cells(pages: Pages, page: bytes) -> Iterator[tuple[int | None, Values]]:
    """(number or None, values) of each row on a page; none where it is no page of rows."""
    if len(page) < 12 or page[0] not in (TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR):
        return
    kind, count = page[0], int.from_bytes(page[3:5])
    start = 12 if kind == INDEX_INTERIOR else 8
    if start + 2 * count > len(page):
        return
    for (at,) in struct.iter_unpack(">H", page[start : start + 2 * count]):
        try:
            yield _cell(pages, page, kind, at)
        except (ValueError, IndexError):  # damaged; the next one may be whole
            continue


def _cell(pages: Pages, page: bytes, kind: int, at: int) -> tuple[int | None, Values]:
    if kind == INDEX_INTERIOR:
        at += 4  # its child to the left
    length, at = _varint(page, at)
    number = None
    if kind == TABLE_LEAF:
        number, at = _varint(page, at)
    return number, _record(_payload(pages, page, at, length, kind))


def _payload(pages: Pages, page: bytes, at: int, length: int, kind: int) -> bytes:
    """A row's bytes: on its page, and on the pages behind it where it is long."""
    size = pages.size
    if length < 0:
        raise ValueError("no length")
    most = size - 35 if kind == TABLE_LEAF else (size - 12) * 64 // 255 - 23
    if length <= most:
        if at + length > len(page):
            raise ValueError("it reaches over its page")
        return page[at : at + length]
    least = (size - 12) * 32 // 255 - 23
    here = least + (length - least) % (size - 4)
    here = here if here <= most else least
    found = bytearray(page[at : at + here])
    following = int.from_bytes(page[at + here : at + here + 4])
    if length > pages.count * size:
        raise ValueError("longer than the file")
    while len(found) < length:
        pages.rests -= 1
        more = pages.get(following) if pages.rests >= 0 else b""
        if not more:
            raise ValueError("its rest is gone")
        following = int.from_bytes(more[:4])
        found += more[4:]
    return bytes(found[:length])


def _record(data: bytes) -> Values:
    end, at = _varint(data, 0)
    if end > len(data):
        raise ValueError("a header that is longer than its row")
    kinds = []
    while at < end:
        kind, at = _varint(data, at)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, at = _value(data, at, kind)
        values.append(value)
    if at != len(data):
        raise ValueError("a row that is longer than its values")
    return tuple(values)


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind < 0 or kind in (10, 11):
        raise ValueError("no type of a value")
    size = INTEGER_SIZES.get(kind) or (8 if kind == 7 else (kind - 12) // 2)
    part = data[at : at + size]
    if len(part) < size:
        raise ValueError("a value that is longer than its row")
    if kind in INTEGER_SIZES:
        return int.from_bytes(part, signed=True), at + size
    if kind == 7:
        return struct.unpack(">d", part)[0], at + size
    return part.decode() if kind % 2 else part, at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    value = value << 8 | data[at + 8]
    return value - (value >> 63 << 64), at + 9


def _committed(log: memoryview, size: int) -> dict[int, int]:
    """Where in a log the newest committed version of each page begins."""
    found: dict[int, int] = {}
    if len(log) < LOG_HEADER or (magic := int.from_bytes(log[:4])) not in LOG_MAGIC:
        return found
    if int.from_bytes(log[8:12]) != size:
        return found
    order = ">" if magic & 1 else "<"
    salts, sums = bytes(log[16:24]), _sums(log[:24], order, (0, 0))
    pending: dict[int, int] = {}
    for at in range(LOG_HEADER, len(log) - size - FRAME_HEADER + 1, size + FRAME_HEADER):
        frame = log[at : at + FRAME_HEADER]
        body = at + FRAME_HEADER
        sums = _sums(log[body : body + size], order, _sums(frame[:8], order, sums))
        if bytes(frame[8:16]) != salts or struct.unpack(">II", frame[16:24]) != sums:
            break  # of an earlier turn of the log, or torn
        pending[int.from_bytes(frame[:4])] = body
        if int.from_bytes(frame[4:8]):  # the last one of a commit
            found |= pending
            pending = {}
    return found


def _sums(data: memoryview, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, two in struct.iter_unpack(f"{order}II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second
