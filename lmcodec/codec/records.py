"""RecordStore: many small records in one file, each coded by itself after one prior, and found by its number.

FORMAT.md section 11 is the authority on the bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from lmcodec import frame
from lmcodec.codec.arguments import byte_view, number, read_fully
from lmcodec.codec.levels import LEVELS
from lmcodec.codec.prior import MAX_FILE_NBYTES, Prior, Priors, collected
from lmcodec.errors import (
    BadMagic,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    PriorNotFound,
    Truncated,
    Unsupported,
)
from lmcodec.frame import CODINGS

if TYPE_CHECKING:
    from types import TracebackType

MAGIC = b"\xb5LMRECS\x00"
VERSION = 1
MAX_RECORD_NBYTES = 1 << 20
GROUP_RECORDS = 256  # that wait for the next flush at most
_GROUP_NBYTES = 256 << 10  # of originals that wait
_MAX_TABLE_NBYTES = 1 << 24
_MAX_DATA_NBYTES = 1 << 30
_CHECK_NBYTES = 4

_HEAD = struct.Struct("<8sIBB8sI")  # magic, version, coding, reserved, the prior's id, bytes of the prior
_GROUP = struct.Struct("<BIIII")  # mark, records, bytes of the table, bytes of the data, crc32 of both
_MARK = 0x47
_CRC = struct.Struct("<I")
_DAMAGED = "the data is damaged"


@dataclass(frozen=True)
class _Group:
    offset: int  # of its table
    n_record: int
    table_nbytes: int
    data_nbytes: int
    check: int

    @property
    def data_offset(self) -> int:
        return self.offset + self.table_nbytes

    @property
    def end(self) -> int:
        return self.data_offset + self.data_nbytes


class RecordStore:
    """A file of records. Not for several threads at once.

    A record that was appended is in the file once `flush` returns, and after a crash it is still there:
    `flush` writes behind everything else and waits for the disk. What a crash leaves of an unfinished flush
    is passed over by readers, and cut off by the next one who appends.

    Args:
        path: of the file.
        mode: r to read, a to append to a file that is there, x to make a new one.
        prior: what records are coded after. To make a file, one; to open one that has no prior in it, that
            one or several.
        level: of a new file.
        embed: write the prior into a new file, so that the file is all that is needed.

    Raises:
        TypeError, ValueError: an argument is out of range, or the prior was not made for the level.
        OSError: as the built-in open.
        LmcodecError: it is no such file, damaged, or its prior is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Literal["r", "a", "x"] = "r",
        *,
        prior: Priors = None,
        level: int | None = None,
        embed: bool = True,
    ) -> None:
        if mode not in ("r", "a", "x"):
            raise ValueError(f"mode must be r, a or x, not {mode!r}")
        self._path, self._mode = os.fspath(path), mode
        self._waiting: list[bytes] = []
        self._waiting_nbytes = 0
        self._groups: list[_Group] = []
        self._starts = [0]  # the number of each group's first record, and of the next one
        self._table: tuple[int, list[tuple[int, int, int]]] | None = None  # of the group read last
        self._closed = True
        given = collected(prior)
        if mode == "x":
            self._make(given, level, embed)
        else:
            if level is not None:
                raise ValueError("the level of a record file is chosen when it is made")
            self._file: FileIO = FileIO(self._path, "rb" if mode == "r" else "r+b")
            self._closed = False
            try:
                self._open(given)
            except LmcodecError as error:
                self._file.close()
                raise type(error)(f"{self._path}: {error}") from None
            except BaseException:
                self._file.close()
                raise

    def _make(self, given: tuple[Prior, ...], level: int | None, embed: bool) -> None:
        if len(given) != 1:
            raise ValueError(f"a record file is made with one prior, {len(given)} are given")
        self._prior = given[0]
        if level is None:
            level = self._prior.levels[-1] if self._prior.model is None else self._prior.levels[2]
        level = number("level", level, min(LEVELS), max(LEVELS))
        self._coding = self._prior.coding_of(level)
        packed = self._prior.pack() if embed else b""
        head = _HEAD.pack(MAGIC, VERSION, self._coding, 0, self._prior.id, len(packed))
        self._file = FileIO(self._path, "x+b")
        self._closed = False
        try:
            self._write(head + _CRC.pack(zlib.crc32(head)) + packed)
            self._sync()
        except BaseException:
            self._file.close()
            os.unlink(self._path)
            raise
        self._end = self._file.tell()
        self.incomplete_nbytes = 0

    # Opening

    def _open(self, given: tuple[Prior, ...]) -> None:
        size = os.fstat(self._file.fileno()).st_size
        head = self._read(0, _HEAD.size + _CRC.size)
        if head[: len(MAGIC)] != MAGIC[: len(head)]:
            raise BadMagic(f"not a record file: it begins with {head[:8]!r}, expected {MAGIC!r}")
        if len(head) < _HEAD.size + _CRC.size:
            raise Truncated("the record file ends inside its header")
        _, version, coding, reserved, prior_id, prior_nbytes = _HEAD.unpack_from(head)
        if version != VERSION:
            raise Unsupported(f"a record file of version {version}, this lmcodec reads {VERSION}")
        if _CRC.unpack_from(head, _HEAD.size)[0] != zlib.crc32(head[: _HEAD.size]):
            raise Corrupt(f"the record file's header does not match its check; {_DAMAGED}")
        if coding >= len(CODINGS) or reserved:
            raise Unsupported(
                "the record file is coded in a way unknown to this lmcodec; a newer one wrote it"
            )
        if prior_nbytes > MAX_FILE_NBYTES:
            raise Corrupt(f"the record file's prior has {prior_nbytes} bytes; {_DAMAGED}")
        self._coding = coding
        at = len(head) + prior_nbytes
        if at > size:
            raise Truncated("the record file ends inside its prior")
        self._prior = self._find_prior(given, prior_id, self._read(len(head), prior_nbytes))
        self._end = self._walk(at, size)
        self.incomplete_nbytes = size - self._end
        if self.incomplete_nbytes and self._mode == "a":
            self._file.truncate(self._end)
            self.incomplete_nbytes = 0

    def _find_prior(self, given: tuple[Prior, ...], prior_id: bytes, packed: bytes) -> Prior:
        for each in given:
            if each.id == prior_id:
                return each
        if not packed:
            raise PriorNotFound(f"needs the prior {prior_id.hex()}, which is neither in the file nor given")
        prior = Prior.parse(packed)
        if prior.id != prior_id:
            raise Corrupt(
                f"the prior in the record file is {prior.id.hex()}, not {prior_id.hex()}; {_DAMAGED}"
            )
        return prior

    def _walk(self, at: int, size: int) -> int:
        """Find the groups; where the last complete one ends."""
        while at < size:
            head = self._read(at, _GROUP.size + _CRC.size)
            if not head.strip(b"\0") or len(head) < _GROUP.size + _CRC.size:
                return at  # an unfinished flush
            mark, n_record, table_nbytes, data_nbytes, check = _GROUP.unpack_from(head)
            if mark != _MARK or _CRC.unpack_from(head, _GROUP.size)[0] != zlib.crc32(head[: _GROUP.size]):
                raise Corrupt(
                    f"group of records at offset {at}: its header does not match its check; {_DAMAGED}"
                )
            if not 1 <= n_record <= table_nbytes <= _MAX_TABLE_NBYTES or data_nbytes > _MAX_DATA_NBYTES:
                raise Corrupt(f"group of records at offset {at}: a size is out of range; {_DAMAGED}")
            group = _Group(at + len(head), n_record, table_nbytes, data_nbytes, check)
            if group.end > size:
                return at
            if group.end == size and self._group_check(group) != check:
                if self._blank_end(group):
                    return at
                raise Corrupt(
                    f"group of records at offset {at}: its data do not match their check; {_DAMAGED}"
                )
            self._groups.append(group)
            self._starts.append(self._starts[-1] + n_record)
            at = group.end
        return at

    def _group_check(self, group: _Group) -> int:
        check, at = 0, group.offset
        while at < group.end:
            piece = self._read(at, min(1 << 18, group.end - at))
            if not piece:
                break
            check, at = zlib.crc32(piece, check), at + len(piece)
        return check

    def _blank_end(self, group: _Group) -> bool:
        """Whether the last data are zeros: the file had grown before the data were on the disk."""
        n = min(16, group.end - group.offset)
        return not self._read(group.end - n, n).strip(b"\0")

    def _read(self, at: int, nbytes: int) -> bytes:
        self._file.seek(at)
        return read_fully(self._file.read, nbytes)

    # Records

    @property
    def prior(self) -> Prior:
        """What records are coded after."""
        return self._prior

    def __len__(self) -> int:
        return self._starts[-1] + len(self._waiting)

    def __getitem__(self, k: int) -> bytes:
        """Record k, counted from 0; from the end, if negative.

        Raises:
            IndexError: there are fewer.
            Corrupt: it is damaged.
        """
        self._require_open()
        k = number("a record's number", k, -(1 << 62))
        n = len(self)
        if not -n <= k < n:
            raise IndexError(f"there are {n} records, none has number {k}")
        k %= n
        if k >= self._starts[-1]:
            return self._waiting[k - self._starts[-1]]
        return self._record(k)

    def __iter__(self) -> Iterator[bytes]:
        for k in range(len(self)):
            yield self[k]

    def sizes(self, k: int) -> tuple[int, int]:
        """Bytes of record k, which is in the file, and what it takes there, with its place in the table."""
        self._require_open()
        original_nbytes, payload_nbytes, _ = self._place(k)
        return original_nbytes, payload_nbytes + _CHECK_NBYTES + len(_sizes(original_nbytes, payload_nbytes))

    def _place(self, k: int) -> tuple[int, int, int]:
        """Of a record in the file: original size, payload size, where it lies."""
        i = bisect_right(self._starts, k) - 1
        if self._table is None or self._table[0] != i:
            self._table = i, self._parse_table(self._groups[i])
        return self._table[1][k - self._starts[i]]

    def _parse_table(self, group: _Group) -> list[tuple[int, int, int]]:
        where = f"{self._path}: group of records at offset {group.offset}"
        table = self._read(group.offset, group.table_nbytes)
        sizes, at = [], 0
        for _ in range(group.n_record):
            parsed = frame.parse_varint(table, at, where, 7)
            if parsed is None:
                raise Corrupt(f"{where}: its table is cut; {_DAMAGED}")
            found, at = parsed
            original_nbytes, payload_nbytes = frame.split_sizes(found)
            if original_nbytes > MAX_RECORD_NBYTES:
                raise Corrupt(f"{where}: a record of {original_nbytes} bytes; {_DAMAGED}")
            sizes.append((original_nbytes, payload_nbytes))
        ends = list(accumulate((payload + _CHECK_NBYTES for _, payload in sizes), initial=0))
        if at != len(table) or ends[-1] != group.data_nbytes:
            raise Corrupt(f"{where}: its table does not agree with its size; {_DAMAGED}")
        return [(*size, group.data_offset + end) for size, end in zip(sizes, ends, strict=False)]

    def _record(self, k: int) -> bytes:
        original_nbytes, payload_nbytes, at = self._place(k)
        packed = self._read(at, payload_nbytes + _CHECK_NBYTES)
        where = f"{self._path}: record {k}"
        if len(packed) < payload_nbytes + _CHECK_NBYTES:
            raise Truncated(f"{where}: the file ends inside it")
        payload, check = packed[:-_CHECK_NBYTES], _CRC.unpack(packed[-_CHECK_NBYTES:])[0]
        original = payload
        if payload_nbytes < original_nbytes:
            try:
                original = bytes(self._prior.decode(payload, original_nbytes, self._coding))
            except Corrupt as error:
                raise Corrupt(f"{where}: {error}") from None
        if self._check(original, payload) != check:
            raise Corrupt(f"{where}: its data do not match its check; {_DAMAGED}")
        return original

    def _check(self, original: bytes, payload: bytes) -> int:
        head = self._prior.id + _sizes(len(original), len(payload))
        return zlib.crc32(payload, zlib.crc32(head, zlib.crc32(original)))

    # Writing

    def append(self, data: Any) -> int:
        """Add a record of up to 1 MiB (any buffer); its number. `flush` makes it last."""
        self._require_open()
        if self._mode == "r":
            raise ValueError("the record file is open for reading: open it with mode a")
        with byte_view(data) as view:
            if len(view) > MAX_RECORD_NBYTES:
                raise LimitExceeded(f"a record has at most {MAX_RECORD_NBYTES} bytes, not {len(view)}")
            record = bytes(view)
        self._waiting.append(record)
        self._waiting_nbytes += len(record)
        k = len(self) - 1
        if len(self._waiting) >= GROUP_RECORDS or self._waiting_nbytes >= _GROUP_NBYTES:
            self._write_group()
        return k

    def extend(self, records: Iterable[Any]) -> None:
        """Add records."""
        for record in records:
            self.append(record)

    def _write_group(self) -> None:
        if not self._waiting:
            return
        table, data = bytearray(), bytearray()
        for record in self._waiting:
            payload = self._prior.encode(record, self._coding) if record else b""
            if len(payload) >= len(record):
                payload = record
            table += _sizes(len(record), len(payload))
            data += payload + _CRC.pack(self._check(record, payload))
        body = bytes(table + data)
        head = _GROUP.pack(_MARK, len(self._waiting), len(table), len(data), zlib.crc32(body))
        packed = head + _CRC.pack(zlib.crc32(head)) + body
        try:
            self._file.seek(self._end)
            self._write(packed)
        except BaseException:
            self._undo()
            raise
        group = _Group(
            self._end + len(head) + _CRC.size, len(self._waiting), len(table), len(data), zlib.crc32(body)
        )
        self._groups.append(group)
        self._starts.append(self._starts[-1] + group.n_record)
        self._end = group.end
        self._waiting, self._waiting_nbytes = [], 0

    def _undo(self) -> None:
        """Cut off what a failed write left; the records wait for the next flush."""
        try:
            self._file.truncate(self._end)
        except (OSError, ValueError):
            return

    def _write(self, data: bytes) -> None:
        """Without a buffer: what failed is not written again when the file is closed."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Write what was appended, and wait until it is on the disk.

        Raises:
            OSError: it cannot be written. The records still wait; what was flushed before is untouched.
        """
        self._require_open()
        if self._mode != "r":
            self._write_group()
            self._sync()

    def verify(self) -> int:
        """Decode every record and compare all checks; the number of records.

        Raises:
            Corrupt, Truncated: the first thing that is wrong.
        """
        self._require_open()
        for group in self._groups:
            if self._group_check(group) != group.check:
                raise Corrupt(
                    f"{self._path}: group of records at offset {group.offset}: its data do not match their "
                    f"check; {_DAMAGED}"
                )
        for k in range(self._starts[-1]):
            self._record(k)
        if self.incomplete_nbytes:
            raise Truncated(
                f"{self._path}: {self.incomplete_nbytes} bytes at the end are of an unfinished flush, or the "
                f"rest is missing; the {self._starts[-1]} records before are sound"
            )
        return len(self)

    def close(self) -> None:
        """Flush and close."""
        if not self._closed:
            try:
                self.flush()
            finally:
                self._closed = True
                self._file.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the record file is closed")

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _sizes(original_nbytes: int, payload_nbytes: int) -> bytes:
    """As `frame.pack_sizes`, which has no empty original."""
    return frame.pack_varint(frame.join_sizes(original_nbytes, payload_nbytes))
