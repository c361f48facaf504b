"""`lmz -l`: what files hold, as a table for people and as JSON for programs. Decodes nothing."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmcodec.cli.table import table
from lmcodec.codec import FrameInfo, scan_to_trailing
from lmcodec.codec.base import describe
from lmcodec.errors import LmcodecError, TrailingData
from lmcodec.frame import PROFILES, Block, Method, base_of
from lmcodec.lm import store

_COLUMNS = ("Frames", "Blocks", "Compressed", "Original", "Ratio", "bpb", "Methods", "Model", "File")
_MODEL = _COLUMNS.index("Model")


@dataclass(frozen=True)
class Listed:
    """A file and its frames."""

    name: str
    nbytes: int
    frames: list[FrameInfo]
    trailing: TrailingData | None = None  # what follows them, if that is neither a frame nor padding

    @property
    def original_nbytes(self) -> int:
        return sum(frame.original_nbytes or 0 for frame in self.frames)

    @property
    def blocks(self) -> list[Block]:
        """Those that hold something."""
        return [block for frame in self.frames for block in frame.blocks or () if block.method != Method.END]


def list_file(name: str | None) -> Listed:
    """Read the headers of a file, or of what is left of standard input, which must be one, if `name` is None.

    Raises:
      LmcodecError: it cannot seek, or its frames do not follow one another to its end.
    """
    # Without blocking: opening a pipe would wait for somebody to write into it.
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    with open(
        0 if name is None else name,
        "rb",
        closefd=name is not None,
        opener=None if name is None else lambda path, flags: os.open(path, flags | nonblocking),
    ) as file:
        if not file.seekable():
            raise LmcodecError(
                "cannot be listed: it is a pipe or a device that cannot seek; write it to a file"
            )
        begin = file.tell()
        frames, trailing = scan_to_trailing(file)
        nbytes = file.seek(0, io.SEEK_END) - begin
        return Listed("(stdin)" if name is None else name, nbytes, frames, trailing)


def as_table(files: Sequence[Listed], verbose: bool = False) -> str:
    """A line for every file, and one for all of several; `verbose` adds the models."""
    rows = [_row(file.name, [file]) for file in files]
    if len(files) > 1:
        rows.append(_row(f"{len(files)} files", files))
    if not rows:
        return ""
    rows.insert(0, _COLUMNS)
    if not verbose:
        rows = [(*row[:_MODEL], *row[_MODEL + 1 :]) for row in rows]
    return table(rows, right=range(_COLUMNS.index("Methods")))


def _row(name: str, files: Sequence[Listed]) -> tuple[str, ...]:
    compressed, original = sum(f.nbytes for f in files), sum(f.original_nbytes for f in files)
    blocks = [block for file in files for block in file.blocks]
    models = [_model(frame.model_id) for file in files for frame in file.frames if frame.model_id]
    return (
        str(sum(len(file.frames) for file in files)),
        str(len(blocks)),
        f"{compressed:,}",
        f"{original:,}",
        f"{compressed / original:.3f}" if original else "-",
        f"{8 * compressed / original:.3f}" if original else "-",
        ",".join([*(name for name, _ in Counter(map(_method, blocks)).most_common()), *_marks(files)]) or "-",
        ",".join(dict.fromkeys(models)) or "-",
        name,
    )


def _marks(files: Sequence[Listed]) -> list[str]:
    """What stands beside the methods of frames that need an environment, another file or a prior."""
    frames = [frame for file in files for frame in file.frames]
    bound = any(frame.environment is not None for frame in frames)
    based = any(base_of(frame.extensions) is not None for frame in frames)
    priors = {frame.compact.short_id for frame in frames if frame.compact is not None}
    marks = [f"prior-{short_id:03x}" for short_id in sorted(priors)]
    return ["environment-bound"] * bound + ["base"] * based + marks


def environments(files: Sequence[Listed]) -> str:
    """A line for every environment and every other file that frames are bound to."""
    lines = [
        f"{file.name}: environment-bound: {frame.environment.full()}\n"
        for file in files
        for frame in file.frames
        if frame.environment is not None
    ]
    for file in files:
        for frame in file.frames:
            base = base_of(frame.extensions)
            if base is not None:
                lines.append(f"{file.name}: base: {describe(base)}\n")
    return "".join(dict.fromkeys(lines))


def _method(block: Block) -> str:
    """`stored`, or the method and its profile: `cm:strong`, `lm+cm:1`, whose profiles are the model's."""
    name = block.method.label
    if not block.profile:  # lm has none either
        return name
    return f"{name}:{PROFILES[block.profile] if block.method == Method.CM else block.profile}"


def _model(model_id: int | bytes) -> str:
    """A shipped model's name and number, or the id."""
    if isinstance(model_id, bytes):
        return model_id.hex()
    known = store.SHIPPED.get(model_id) or store.RETIRED.get(model_id)
    return f"{known.name}({model_id})" if known else str(model_id)


def as_json(files: Sequence[Listed]) -> str:
    """A list with an object for every file. Bytes of a name that are no text are "\\udc80" to "\\udcff"."""
    return json.dumps([_file_object(file) for file in files], indent=1) + "\n"


def _file_object(file: Listed) -> dict[str, Any]:
    return {
        "file": file.name,
        "compressed_nbytes": file.nbytes,
        "original_nbytes": file.original_nbytes,
        "frames": [_frame_object(frame) for frame in file.frames],
    }


def _environment(frame: FrameInfo) -> dict[str, Any]:
    found = frame.environment
    if found is None:
        return {}
    return {
        "environment_bound": {
            "name": found.name,
            "model_sha256": found.model,
            "settings": dict(found.settings),
            "environment": dict(found.environment),
        }
    }


def _base(frame: FrameInfo) -> dict[str, Any]:
    found = base_of(frame.extensions)
    return {} if found is None else {"base": describe(found)}


def _frame_object(frame: FrameInfo) -> dict[str, Any]:
    model = frame.model_id
    return {
        "offset": frame.offset,
        "version": frame.version,
        "model": model.hex() if isinstance(model, bytes) else model,
        "compressed_nbytes": frame.nbytes,
        "original_nbytes": frame.original_nbytes,
        "content_size": frame.content_size,
        **({} if frame.compact is None else {"prior": f"{frame.compact.short_id:03x}"}),
        **_environment(frame),
        **_base(frame),
        "blocks": [
            {
                "method": _method(block),
                "compressed_nbytes": block.nbytes,
                "original_nbytes": block.original_nbytes,
                "streams": block.streams,
                "groups": block.groups,
                "enlarge": block.enlarge,
                "continues": block.continues,
                "check": f"{block.check:08x}",
            }
            for block in frame.blocks or ()
        ],
    }
