"""Tensors of compressed files, each read without the others; files of tensors that are written compressed.

    with lmcodec.tensors.open("model.safetensors.lmz") as file:
        weight = file["model.embed_tokens.weight"]

The file is mapped into memory. Blocks of numbers and stored ones are decoded in threads to where they belong;
what other methods coded is read through `file.LMFile`. Where tensors lie is for `tensor_files` to say.
"""

from __future__ import annotations

import builtins
import contextlib
import mmap
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from lmcodec import frame
from lmcodec.codec import DEFAULT_LEVEL, available_cpus
from lmcodec.codec.base import Base, BasePath, for_frame
from lmcodec.errors import Corrupt, LmcodecError
from lmcodec.file import FileMap, FilePath, LMFile
from lmcodec.file import open as open_lmz
from lmcodec.frame import Block, FrameHeader, Method
from lmcodec.lm.store import FilePath as ModelPath
from lmcodec.planes import PlaneEngine
from lmcodec.tensor_files.layout import Tensor, element_of
from lmcodec.tensor_files.recognise import parse

__all__ = ["TensorFile", "open", "save"]

# Types as safetensors names them, and as NumPy does. Those that NumPy lacks are whole numbers of their bits,
# unless ml_dtypes has them.
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "C128": "<c16", "BOOL": "?"}
_NUMPY |= {f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_BITS = {"BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any] | None:
    """The type of an array of the tensor's shape; None where there is none."""
    if tensor.descr:
        return np.dtype(tensor.descr)
    if tensor.dtype in _ML_DTYPES:
        try:
            import ml_dtypes  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return np.dtype(_BITS[tensor.dtype])
        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[tensor.dtype]))
    name = _NUMPY.get(tensor.dtype)
    return None if name is None else np.dtype(name)


class _Plain:
    """A file that is not compressed."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.nbytes = len(data)

    def read_at(self, at: int, nbytes: int) -> bytes:
        return self._data[at : at + nbytes]

    def array(self, at: int, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8, which cannot be written to."""
        return np.frombuffer(self._data, np.uint8, nbytes, at)

    def close(self) -> None: ...


class _Compressed:
    """The original of a file of frames, by ranges."""

    def __init__(self, data: mmap.mmap, fp: Any, threads: int | None, limits: dict[str, Any]) -> None:
        self._data = data
        self._threads = threads or available_cpus()
        limits["base"] = self._given_base = Base.of(limits.get("base"))
        self._file = LMFile(fp, threads=threads, **limits)
        self._lock = threading.Lock()  # of `_file`
        self._blocks: list[
            tuple[FrameHeader, int, int, int]
        ] = []  # header, place, bytes, place in the original
        self._memory_limit = limits.get("memory_limit")
        file_map = FileMap.read(
            lambda at, nbytes: data[at : at + nbytes], len(data), memory_limit=self._memory_limit
        )
        if file_map is None:
            self.nbytes = self._file.seek(0, os.SEEK_END)
        else:
            self.nbytes = file_map.original_nbytes
            self._blocks = [block for block in file_map.blocks() if block[2]]
        self._starts = [start for *_, start in self._blocks]

    def close(self) -> None:
        self._file.close()

    def read_at(self, at: int, nbytes: int) -> bytes:
        nbytes = min(nbytes, self.nbytes - at)
        return self.array(at, nbytes).tobytes() if nbytes > 0 else b""

    def array(self, at: int, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8 of the original.

        Raises:
            LmcodecError: what holds them is damaged.
        """
        out = np.empty(nbytes, np.uint8)
        parts = self._parts(at, nbytes)
        if parts is None:
            with self._lock:
                self._file.seek(at)
                view, done = memoryview(out.data), 0
                while done < nbytes and (n := self._file.readinto(view[done:])):
                    done += n
            if done < nbytes:
                raise Corrupt(f"the file ends at byte {at + done} of its original; the data is damaged")
            return out
        work = [partial(self._decode, i, block, at, out) for i, block in parts]
        if len(work) <= 1 or self._threads == 1:
            for each in work:
                each()
        else:
            with ThreadPoolExecutor(min(self._threads, len(work)), "lmcodec tensors") as pool:
                for future in [pool.submit(each) for each in work]:
                    future.result()
        return out

    def _parts(self, at: int, nbytes: int) -> list[tuple[int, Block]] | None:
        """Numbers and headers of the blocks that hold a range; None where other methods coded any of them."""
        if not self._blocks:
            return None
        parts = []
        i = bisect_right(self._starts, at) - 1
        while i < len(self._blocks) and self._starts[i] < at + nbytes:
            header, place, size, _ = self._blocks[i]
            head = self._data[place : place + min(size, frame.MAX_BLOCK_HEADER_NBYTES)]
            if head[0] & 7 not in (Method.STORED, Method.TENSOR):
                return None
            block = header.parse_block(head, self._where(i))
            end = self._starts[i + 1] if i + 1 < len(self._starts) else self.nbytes
            if block is None or block.nbytes != size or block.original_nbytes != end - self._starts[i]:
                raise Corrupt(f"{self._where(i)}: its header and the index do not agree; the data is damaged")
            parts.append((i, block))
            i += 1
        return parts

    def _base_of(self, header: FrameHeader) -> Base | None:
        """The file that a frame's numbers are coded against.

        Raises:
            ModelNotFound: it is not given, or another.
        """
        data = frame.base_of(header.extensions)
        return None if data is None else for_frame(data, self._given_base)

    def _where(self, i: int) -> str:
        return f"block {i + 1} at offset {self._blocks[i][1]}"

    def _decode(self, i: int, block: Block, at: int, out: np.ndarray) -> None:
        """Put what block number i holds of `out`, which begins at `at`, in its place."""
        _, place, size, start = self._blocks[i]
        payload = memoryview(self._data)[place + block.header_nbytes : place + size]
        first, end = start - at, start - at + block.original_nbytes
        whole = first >= 0 and end <= len(out)
        original = out[first:end] if whole else np.empty(block.original_nbytes, np.uint8)
        try:
            if block.method == Method.STORED:
                original[:] = np.frombuffer(payload, np.uint8)
            else:
                base = self._base_of(self._blocks[i][0])
                PlaneEngine(base=None if base is None else base.view).decode_into(payload, original)
            check = block.compute_check(original, payload)  # type: ignore[arg-type]
        except Corrupt as error:
            raise Corrupt(f"{self._where(i)}: {error}") from None
        if check != block.check:
            found = f"its check is {block.check:08X}, its data give {check:08X}"
            raise Corrupt(f"{self._where(i)}: {found}; the data is damaged")
        if not whole:
            low, high = max(first, 0), min(end, len(out))
            out[low:high] = original[low - first : high - first]


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file by name; each is decoded when it is asked for, and nothing is kept.

    Any number of threads may ask at once.

    Attributes:
        format: safetensors, GGUF, npy or npz.
        tensors: what the file says of each tensor, by name.

    Args: as for `open`.
    """

    def __init__(self, path: FilePath, *, threads: int | None = None, **limits: Any) -> None:
        self._fp = builtins.open(path, "rb")  # noqa: SIM115
        self._data: mmap.mmap | None = None
        self._source: _Plain | _Compressed | None = None
        try:
            if not os.fstat(self._fp.fileno()).st_size:
                raise Corrupt(f"{os.fsdecode(path)}: no tensors: the file is empty")
            self._data = mmap.mmap(self._fp.fileno(), 0, access=mmap.ACCESS_READ)
            if self._data[:4] == frame.MAGIC:
                self._source = _Compressed(self._data, self._fp, threads, limits)
            else:
                self._source = _Plain(self._data)
            self.format, tensors = parse(self._source.read_at, self._source.nbytes)
        except LmcodecError as error:
            self.close()
            message = str(error)
            raise type(error)(
                message if os.fsdecode(path) in message else f"{os.fsdecode(path)}: {message}"
            ) from None
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in tensors}

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor as an array.

        bfloat16 and floats of 8 bits have the types of ml_dtypes where that is installed, and are whole
        numbers of their bits otherwise (`dtype` says what they are). Quantised blocks of a GGUF file, and
        types that are not known, are bytes: (n,) uint8. Of a file that is not compressed the array cannot be
        written to.

        Raises:
            KeyError: there is no tensor of that name.
            LmcodecError: what holds it is damaged.
        """
        tensor = self.tensors[name]
        if self._source is None:
            raise ValueError("the file is closed")
        dtype = _numpy_dtype(tensor)
        data = self._source.array(tensor.offset, tensor.nbytes) if tensor.nbytes else np.empty(0, np.uint8)
        if dtype is None:
            return data
        return data.view(dtype).reshape(tensor.shape, order="F" if tensor.is_fortran else "C")

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor's elements, slowest first."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """The tensor's type, as the file's format names it."""
        return self.tensors[name].dtype

    def close(self) -> None:
        """Close the file; arrays stay as they are."""
        source, self._source = self._source, None
        data, self._data = self._data, None
        if source is not None:
            source.close()
        self._fp.close()
        if data is not None and not isinstance(source, _Plain):
            with contextlib.suppress(BufferError):  # an error that is kept still looks at it
                data.close()  # of a plain file arrays may look at it: it goes with the last of them

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open(
    path: FilePath,
    *,
    threads: int | None = None,
    memory_limit: int | None = None,
    model: ModelPath | None = None,
    base: BasePath | Base | None = None,
) -> TensorFile:
    """Open a file of tensors (safetensors, GGUF, `.npy`, `.npz`), compressed or not, to read them by name.

    Args:
        threads: blocks decoded at once; None for one a CPU.
        memory_limit, model, base: as for `Decompressor`.

    Raises:
        OSError: as the built-in open.
        LmcodecError: the file holds none of these formats, or is damaged. Its header is checked strictly.
    """
    return TensorFile(path, threads=threads, memory_limit=memory_limit, model=model, base=base)


def _name_of(array: np.ndarray) -> str:
    """safetensors' name of an array's type.

    Raises:
        ValueError: it has none.
    """
    names = {np.dtype(numpy_name): name for name, numpy_name in _NUMPY.items()}
    native = array.dtype.newbyteorder("=") if array.dtype.kind in "fiuc" else array.dtype
    name = names.get(native) or {value: key for key, value in _ML_DTYPES.items()}.get(array.dtype.name)
    if name is None:
        raise ValueError(f"an array of {array.dtype} cannot be saved")
    return name


def save(
    path: FilePath,
    tensors: Mapping[str, np.ndarray],
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    level: int = DEFAULT_LEVEL,
    threads: int | None = None,
) -> None:
    """Write arrays as a compressed safetensors file; `lmz -d` makes the safetensors file of it.

    Args:
        tensors: the arrays by name.
        dtypes: types of those that NumPy has no type for, by name: {"w": "BF16"} for an array of uint16.
        metadata: what the file says of itself.
        level, threads: as for `Compressor`.

    Raises:
        ValueError: an array's type has no name in the format, or another size than the one in `dtypes`.
    """
    import json

    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    arrays: list[np.ndarray] = []
    at = 0
    for name, array in tensors.items():
        array = np.asarray(array)
        dtype = (dtypes or {}).get(name) or _name_of(array)
        element = element_of(dtype)
        if element is None or element[0] != array.dtype.itemsize:
            raise ValueError(f"tensor {name!r}: {array.dtype} is not {dtype}")
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        arrays.append(array)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content_size = 8 + len(text) + at
    with open_lmz(path, "wb", level=level, threads=threads, content_size=content_size) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(_little(array))


def _little(array: np.ndarray) -> np.ndarray:
    """The array in C order, least significant bytes first."""
    order = array.dtype.byteorder
    if order == ">" or (order == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
