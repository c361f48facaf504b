"""Archives of the standard library: `tarfile_open`, and the format `lmztar` of `shutil`."""

from __future__ import annotations

import os
import shutil
import tarfile
from typing import Any, BinaryIO, cast

from lmcodec.errors import BadMagic
from lmcodec.file import FilePath, LMFile
from lmcodec.integrations.files import OPTIONS, writing_options
from lmcodec.lm.folder import complete_file

FORMAT = "lmztar"
SUFFIXES = [".tar.lmz", ".tlmz"]
_DESCRIPTION = "lmcodec's tar file"


class _Tar(tarfile.TarFile):
    """A tar file that closes the compressed file that it lies in."""

    compressed: LMFile | None = None

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self.compressed is not None:
                self.compressed.close()

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            if self.compressed is not None:
                self.compressed.close()


def tarfile_open(name: FilePath | BinaryIO, mode: str = "r", **options: Any) -> tarfile.TarFile:
    """Open a compressed tar file, as `tarfile.open`.

    Members of a file with an index are read without decoding all that stands before them.

    Args:
        name: a path, or a binary file object, which is left open when this is closed.
        mode: r, w or x; with `|` (`r|`, `w|`) without seeking in the tar file.
        options: those of `lmcodec.open`; all others are of `tarfile.open`.

    Raises:
        TypeError, ValueError: an argument is out of range.
        tarfile.ReadError: what is compressed is no tar file.
        LmcodecError, OSError: as `lmcodec.open`.
    """
    kind, _, compression = mode.partition("|") if "|" in mode else mode.partition(":")
    if kind not in ("r", "w", "x") or compression not in ("", "lmz"):
        raise ValueError(f"mode must be r, w or x, with or without |, not {mode!r}")
    own = {key: value for key, value in options.items() if key in OPTIONS}
    others = {key: value for key, value in options.items() if key not in OPTIONS}
    file = LMFile(name, kind, **own)
    try:
        if "|" in mode:
            tar = _Tar.open(None, "r|" if kind == "r" else "w|", cast(Any, file), **others)
        else:
            tar = _Tar(None, "r" if kind == "r" else "w", fileobj=cast(Any, file), **others)
    except BaseException:
        file.close()
        raise
    tar.compressed = file
    return tar


def _owned_by(info: tarfile.TarInfo, owner: str | None, group: str | None) -> tarfile.TarInfo:
    if owner is not None:
        import pwd

        info.uname, info.uid = owner, pwd.getpwnam(owner).pw_uid
    if group is not None:
        import grp

        info.gname, info.gid = group, grp.getgrnam(group).gr_gid
    return info


def make_archive(
    base_name: str,
    base_dir: str,
    owner: str | None = None,
    group: str | None = None,
    dry_run: bool = False,
    logger: Any = None,
    root_dir: str | None = None,
    **options: Any,
) -> str:
    """What `shutil.make_archive(base_name, "lmztar", root_dir, base_dir)` calls; returns the file's name.

    The archive is there completely or not at all.
    """
    path = os.path.abspath(base_name + SUFFIXES[0])
    if logger is not None:
        logger.info("creating tar archive %s", path)
    if dry_run:
        return path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    root = os.path.abspath(root_dir or os.curdir)

    def own(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        is_archive = os.path.normpath(os.path.join(root, info.name)) == path  # one of the same name before
        return None if is_archive else _owned_by(info, owner, group)

    with complete_file(path) as file, tarfile_open(file, "w", **writing_options(options)) as tar:
        tar.name = os.path.abspath(file.name)  # which tarfile leaves out
        tar.add(os.path.join(root, base_dir), base_dir, filter=own)
    return path


make_archive.supports_root_dir = True  # type: ignore[attr-defined]


def unpack_archive(filename: str, extract_dir: str, *, filter: Any = None, **options: Any) -> None:
    """What `shutil.unpack_archive` calls. Members that would land elsewhere are refused (`filter="data"`)."""
    try:
        with tarfile_open(filename, "r", **options) as tar:
            how: dict[str, Any] = {"filter": filter or "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(extract_dir, **how)
    except (BadMagic, tarfile.ReadError) as error:
        raise shutil.ReadError(f"{filename}: {error}") from error


def register(**options: Any) -> None:
    """Register the format `lmztar` with `shutil`, for `.tar.lmz` and `.tlmz`."""
    from lmcodec.integrations.files import reading_options

    if FORMAT in (name for name, _, _ in shutil.get_unpack_formats()):
        shutil.unregister_unpack_format(FORMAT)
    writing, reading = writing_options(options), reading_options(options)
    shutil.register_archive_format(FORMAT, make_archive, [*writing.items()], _DESCRIPTION)
    shutil.register_unpack_format(FORMAT, SUFFIXES, unpack_archive, [*reading.items()], _DESCRIPTION)
