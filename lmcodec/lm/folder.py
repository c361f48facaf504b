"""The models folder: model files that are found by name and by id. LMCODEC_MODELS names it.

A model of the name NAME is the file NAME.lmm. Files are found by their headers alone; a damaged one stands in
no other's way. Knows no kind of model, and neither NumPy nor the kernel is imported with it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lmcodec.errors import ConfigError, LmcodecError

VARIABLE = "LMCODEC_MODELS"
SUFFIX = ".lmm"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A file of the folder.

    Attributes:
        name: of the model.
        path: of the file.
        model_id: 16 hexadecimal digits; None if the header is damaged.
        error: what is wrong with the header, None if nothing is.
    """

    name: str
    path: Path
    model_id: str | None
    error: LmcodecError | None = None


def path() -> Path:
    """The folder; it may not exist."""
    if asked := os.environ.get(VARIABLE):
        return Path(asked)
    home = Path.home()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        given = Path(os.environ.get("XDG_DATA_HOME", ""))  # which counts only if it is absolute
        data = given if given.is_absolute() else home / ".local" / "share"
    return data / "lmcodec" / "models"


def shown() -> str:
    """The folder, for a message."""
    try:
        return f"the models folder {path()}"
    except RuntimeError:  # there is no home
        return f"a models folder ({VARIABLE})"


def files() -> list[Path]:
    """The model files of the folder by name; none where there is no such folder, or it cannot be read."""
    try:
        return sorted(file for file in path().iterdir() if file.suffix == SUFFIX and file.is_file())
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return []


def entries() -> Iterator[Entry]:
    """The models of the folder by name; of each file only the header is read."""
    from lmcodec.lm import container

    for file in files():
        try:
            model_id = container.read_header(file).model_id
        except LmcodecError as error:
            yield Entry(file.stem, file, None, error)
        else:
            yield Entry(file.stem, file, model_id)


def find(name: str) -> Path | None:
    """The file of the model of that name."""
    return next((file for file in files() if file.stem == name), None)


def with_id(model_id: str) -> list[Path]:
    """The files whose headers say that they are the model with this id."""
    return [entry.path for entry in entries() if entry.model_id == model_id]


def check_name(name: str, taken: Iterable[str] = ()) -> None:
    """Refuse what cannot name a model of the folder.

    Args:
        name: what is asked for.
        taken: names of models that are shipped.

    Raises:
        ConfigError: it is no plain name, it looks like an id, or it is taken.
    """
    if not _NAME.fullmatch(name) or name.lower().endswith(SUFFIX) or re.fullmatch("[0-9a-f]{16}", name):
        raise ConfigError(
            f"{name!r} cannot name a model: a name has 1 to 64 letters, digits and . _ + -, begins with a "
            f"letter or a digit, does not end with {SUFFIX} and is no id of 16 hexadecimal digits"
        )
    if name.lower() in {other.lower() for other in taken}:
        raise ConfigError(f"{name!r} is the name of a model that comes with lmcodec; choose another one")


def name_of(source: str) -> str:
    """A name for a model that comes from a path or from OWNER/NAME: its last part, in plain small letters."""
    last = os.path.basename(os.path.abspath(source))
    last = re.sub(r"\.(gguf|lmm)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._+-]+", "-", last.lower()).strip("-._+")[:64]


def write(file: Path, parts: Iterable[object]) -> None:
    """Write a model file as a whole or not at all: what was there before stays until all is written.

    Args:
        file: its path; folders on the way are made.
        parts: contiguous buffers, one after another.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(file) as out:
        for part in parts:
            out.write(part)  # type: ignore[call-overload]


@contextmanager
def complete_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the name `path`, on the disk, when the block ends; after an error there is none.

    What had the name before is replaced, and stays if there is an error.
    """
    path = os.path.abspath(path)
    temporary = os.path.join(os.path.dirname(path), f".lmz-{os.urandom(8).hex()}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
