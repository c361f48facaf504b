"""Files that survive a crash: an output is there completely or not at all, and a source goes last.

Knows nothing of compression. The manner is that of xz 5.8 (src/xz/file_io.c): an output is created
exclusively and private; it gets its source's mode, times and owner through the descriptor; it is on the disk,
and so is its folder's entry, before the source is removed. A signal removes what is unfinished and then ends
the process as it would have without us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterable
from types import FrameType

CHUNK_NBYTES = 1 << 16
_PAGE_NBYTES = 1 << 12  # so many zeros are worth a hole
_ZEROS = bytes(_PAGE_NBYTES)
_NONZERO = re.compile(rb"[^\0]")

_O_BINARY: int = getattr(os, "O_BINARY", 0)
_O_NOCTTY: int = getattr(os, "O_NOCTTY", 0)
_O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
_UTIME_TAKES_FD = os.utime in os.supports_fd
_FATAL = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name)
]


class LeftAlone(Exception):
    """A file was not touched, for a reason that deserves a warning, not an error."""


class StdoutClosed(Exception):
    """Nobody reads standard output any more."""


class _Unfinished:
    """The one output that must not stay if the process ends.

    `lock` is held while the file system and this record differ. The thread that serves signals takes it too,
    and may be interrupted while it holds it, so it is re-entrant.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._path: str | None = None
        self._fd = -1
        self._stat: os.stat_result | None = None

    def set(self, path: str, fd: int, status: os.stat_result) -> None:
        self._path, self._fd, self._stat = path, fd, status

    def closed(self) -> None:
        """Its descriptor is another's from here on."""
        self._fd = -1

    def clear(self) -> None:
        self._path = self._stat = None
        self._fd = -1

    def remove(self) -> None:
        """Remove the output, unless another file lies under its name.

        It is closed first: Windows removes no file that is open.
        """
        with self.lock:
            if self._path is not None and self._stat is not None:
                fd, self._fd = self._fd, -1
                with contextlib.suppress(OSError):
                    if fd >= 0:
                        os.close(fd)
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.lstat(self._path), self._stat):
                        os.unlink(self._path)
            self.clear()


_unfinished = _Unfinished()


def die_by(signum: int) -> None:
    """End the process by a signal's default action, so that the shell sees what happened."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def supervise(work: Callable[[], int], tick: Callable[[], None], before_death: Callable[[], None]) -> int:
    """Return `work()`, run in a thread of its own; a fatal signal removes the unfinished output and kills.

    A call into the kernel may take a minute, and Python serves signals only between the bytecodes of the main
    thread: that must not be the one that computes. `tick` is called ten times a second.
    """
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)

    def handler(signum: int, frame: FrameType | None) -> None:
        with _unfinished.lock:  # kept until death: no other output is begun
            _unfinished.remove()
            before_death()
            die_by(signum)

    previous = {}
    # A signal that the parent ignores (nohup, a shell's background job) stays ignored.
    if threading.current_thread() is threading.main_thread():
        for signum in _FATAL:
            if signal.getsignal(signum) != signal.SIG_IGN:
                previous[signum] = signal.signal(signum, handler)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            tick()
    finally:
        for signum, action in previous.items():
            signal.signal(signum, action)
    return result[0] if result else 1


def _read(fd: int, nbytes: int) -> bytes:
    while True:
        try:
            return os.read(fd, nbytes)
        except BlockingIOError:  # a descriptor that someone else made non-blocking
            select.select([fd], [], [])


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Source:
    """An open input and what was known of it when it was opened.

    Args:
      path: the file, or None for standard input.
      follow: open what a symbolic link points to.
      special: accept pipes and devices.

    Raises:
      LeftAlone: it is of a kind that the arguments do not accept.
    """

    def __init__(self, path: str | None, *, follow: bool = True, special: bool = True) -> None:
        self.path, self._follow = path, follow
        self.name = "(stdin)" if path is None else path
        self.fd = 0
        if path is not None:
            # Without blocking: a pipe that took the place of a file must not hang us.
            flags = os.O_RDONLY | _O_BINARY | _O_NOCTTY | _O_NONBLOCK | (0 if follow else _O_NOFOLLOW)
            try:
                self.fd = os.open(path, flags)
            except OSError:
                if not follow and os.path.islink(path):
                    raise LeftAlone("is a symbolic link, skipped (-f follows it)") from None
                raise
        try:
            self.status = os.fstat(self.fd)
            self.is_regular = stat.S_ISREG(self.status.st_mode)
            self._accept(special)
        except OSError as error:
            self.close()
            error.filename = self.name
            raise
        except LeftAlone:
            self.close()
            raise

    def _accept(self, special: bool) -> None:
        if stat.S_ISDIR(self.status.st_mode):
            raise LeftAlone("is a directory, skipped (-r takes what is in it)")
        if self.is_regular or self.path is None:
            return
        if not special:
            raise LeftAlone("is not a regular file, skipped (-f reads it)")
        if _O_NONBLOCK:
            # A pipe without a writer would seem to be at its end. Opening it anew would lose what it holds.
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            poll.poll()
            os.set_blocking(self.fd, True)

    @property
    def nbytes(self) -> int | None:
        """Bytes to read, if that is known. Files of /proc say 0 and hold more."""
        return self.status.st_size or None if self.is_regular else None

    def read(self) -> bytes:
        """The next bytes, at most CHUNK_NBYTES; none at the end."""
        try:
            return _read(self.fd, CHUNK_NBYTES)
        except OSError as error:
            error.filename = self.name
            raise

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """What stands at `offset` of a file, up to `nbytes`."""
        os.lseek(self.fd, offset, os.SEEK_SET)
        pieces = []
        while nbytes and (piece := _read(self.fd, nbytes)):
            pieces.append(piece)
            nbytes -= len(piece)
        return b"".join(pieces)

    def look_at(self, offset: int, nbytes: int) -> bytes:
        """What stands `offset` bytes after where a regular file is read next, up to `nbytes`."""
        here = os.lseek(self.fd, 0, os.SEEK_CUR)
        try:
            return self.read_at(here + offset, nbytes)
        finally:
            os.lseek(self.fd, here, os.SEEK_SET)

    def ready(self, seconds: float = 0) -> bool:
        """Whether `read` returns at once, within so many seconds."""
        if self.is_regular:
            return True
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(max(seconds, 0) * 1000))

    def changed(self) -> bool:
        """Whether a regular file holds something else than when it was opened."""
        return self.is_regular and self.fd >= 0 and not _same_content(os.fstat(self.fd), self.status)

    def check_removable(self) -> None:
        """Refuse a file whose removal loses more than its bytes under one name.

        Raises:
          LeftAlone: it has other names, or bits that the output would not get.
        """
        if self.is_regular and self.status.st_nlink > 1:
            raise LeftAlone(f"has {self.status.st_nlink} links, skipped (-f removes this one)")
        if self.is_regular and self.status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
            raise LeftAlone("has the setuid, setgid or sticky bit, skipped (-f drops it)")

    def remove(self) -> None:
        """Remove the file from its folder if it is still what was read.

        Raises:
          LeftAlone: it is not.
        """
        if self.path is None or not self.is_regular:
            return
        status = os.stat(self.path, follow_symlinks=self._follow)
        if not os.path.samestat(status, self.status) or not _same_content(status, self.status):
            raise LeftAlone("changed while it was read, not removed")
        self.close()
        os.unlink(self.path)

    def close(self) -> None:
        if self.path is not None and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _same_content(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


class Stdout:
    """Standard output, in the place of a `Target`. What is written is gone: there is nothing to finish."""

    name = "(stdout)"

    def write(self, data: bytes) -> None:
        try:
            _write(1, data)
        except BrokenPipeError:
            raise StdoutClosed from None
        except OSError as error:
            error.filename = self.name
            raise

    def discard(self) -> None: ...


class Nowhere(Stdout):
    """What is written is only checked."""

    def write(self, data: bytes) -> None: ...


class Target:
    """A file that appears complete under its name, or not at all.

    It is created exclusively under its own name. One that replaces another (`overwrite`) is written beside it
    under a temporary name, so that the other one stays whole until this one is.

    Args:
      path: the name.
      source: whose mode, times and owner it will get; the umask decides where there is none,
        or it is no regular file.
      overwrite: replace a regular file or a link of that name.
      device: write into a terminal, pipe or character device of that name (`-o /dev/null`).
      inherit: False for what is no form of the source: the umask decides its mode.
      sparse: leave pages of zeros out: the file system gives them without keeping them.
    """

    def __init__(
        self,
        path: str,
        source: Source | None,
        *,
        overwrite: bool = False,
        device: bool = False,
        inherit: bool = True,
        sparse: bool = False,
    ) -> None:
        self.name = self._path = path
        self._sparse, self._hole_nbytes = sparse, 0  # zeros at the end that were not written
        self._source = source
        # A standard input that happens to be a file is not the file that this one is made of.
        self._inherits = inherit and source is not None and source.path is not None and source.is_regular
        self._is_device = device and _is_stream(path)
        if self._is_device:
            self.fd = os.open(path, os.O_WRONLY | _O_NOCTTY | _O_BINARY)
            return
        try:
            self._create(path)
        except FileExistsError:
            if not overwrite:
                raise FileExistsError(errno.EEXIST, "exists already (-f overwrites it)", path) from None
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                raise FileExistsError(errno.EEXIST, "exists and is not a regular file", path) from None
            if source is not None and os.path.samestat(status, source.status):
                raise FileExistsError(errno.EEXIST, "is the input itself", path) from None
            self._create(os.path.join(os.path.dirname(path), f".lmz-{os.urandom(8).hex()}"))

    def _create(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_NOCTTY | _O_BINARY
        with _unfinished.lock:
            try:
                self.fd = os.open(path, flags, 0o600 if self._inherits else 0o666)
                self._path = path
                try:
                    _unfinished.set(path, self.fd, os.fstat(self.fd))
                except OSError:
                    os.close(self.fd)
                    os.unlink(path)
                    raise
            except OSError as error:
                error.filename = self.name
                raise

    def write(self, data: bytes) -> None:
        try:
            if self._sparse and not self._is_device:
                self._write_sparse(data)
            else:
                _write(self.fd, data)
        except OSError as error:
            error.filename = self.name
            raise

    def _write_sparse(self, data: bytes) -> None:
        """Write what is not zero; of the rest only how long it is counts."""
        begin = 0  # of what is to be written
        at = data.find(_ZEROS)
        while at >= 0:
            found = _NONZERO.search(data, at + _PAGE_NBYTES)
            end = found.start() if found else len(data)
            self._write_after_hole(data[begin:at])
            self._hole_nbytes += end - at
            begin, at = end, data.find(_ZEROS, end)
        self._write_after_hole(data[begin:])

    def _write_after_hole(self, data: bytes) -> None:
        if data:
            if self._hole_nbytes:
                os.lseek(self.fd, self._hole_nbytes, os.SEEK_CUR)
                self._hole_nbytes = 0
            _write(self.fd, data)

    def _end_hole(self) -> None:
        if self._hole_nbytes:
            end = os.lseek(self.fd, self._hole_nbytes, os.SEEK_CUR)
            self._hole_nbytes = 0
            os.ftruncate(self.fd, end)

    def rewind(self) -> None:
        """Go back to the first byte, to read what was written."""
        os.lseek(self.fd, 0, os.SEEK_SET)

    def read(self) -> bytes:
        return os.read(self.fd, CHUNK_NBYTES)

    @property
    def can_rewind(self) -> bool:
        return not self._is_device

    def copy_metadata(self) -> list[str]:
        """Give the file its source's owner (as root), group, mode and times; returns what failed."""
        failed: list[str] = []
        self._end_hole()  # changes the times
        if self._is_device or not self._inherits or self._source is None:
            return failed
        status = self._source.status

        def attempt(what: str, function: Callable[[], None]) -> bool:
            try:
                function()
            except OSError as error:
                failed.append(f"cannot set the {what}: {error.strerror}")
                return False
            return True

        mode = stat.S_IMODE(status.st_mode) & 0o777
        if hasattr(os, "fchown"):
            own = os.fstat(self.fd)
            if own.st_uid != status.st_uid and os.geteuid() == 0:
                attempt("owner", lambda: os.fchown(self.fd, status.st_uid, -1))
            if own.st_gid != status.st_gid and not attempt(
                "group", lambda: os.fchown(self.fd, -1, status.st_gid)
            ):
                # Another group than the source's must not get more than everybody does.
                common = (mode >> 3) & mode & 0o7
                mode = mode & 0o700 | common << 3 | common
        if hasattr(os, "fchmod"):
            attempt("mode", lambda: os.fchmod(self.fd, mode))
        if _UTIME_TAKES_FD:
            times = (status.st_atime_ns, status.st_mtime_ns)
            attempt("times", lambda: os.utime(self.fd, ns=times))
        return failed

    def finish(self, *, remove_source: bool = False) -> None:
        """Close the file and let it stay; with `remove_source` only once a crash cannot take it any more.

        Raises:
          LeftAlone: the source changed and was not removed. The file stays.
        """
        try:
            self._end_hole()
            if remove_source and not self._is_device:
                os.fsync(self.fd)
            self._close()
            if self._is_device:
                if remove_source:
                    raise LeftAlone("not removed: the output is not a file")
                return
            if self._path != self.name:
                with _unfinished.lock:
                    os.replace(self._path, self.name)
                    self._path = self.name
                    _unfinished.clear()
            if remove_source:
                _sync_folder(os.path.dirname(self.name) or ".")
        except OSError as error:
            error.filename = self.name
            raise
        with _unfinished.lock:
            _unfinished.clear()
            if remove_source and self._source is not None:
                self._source.remove()

    def discard(self) -> None:
        """Remove the file if it is not finished."""
        try:
            if self.fd >= 0:
                self._close()
        finally:
            if not self._is_device:
                _unfinished.remove()

    def _close(self) -> None:
        with _unfinished.lock:
            fd, self.fd = self.fd, -1
            if not self._is_device:
                _unfinished.closed()
            os.close(fd)


def _is_stream(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _sync_folder(path: str) -> None:
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # EINVAL: this file system does not synchronise folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def reserve_standard_descriptors() -> None:
    """Make sure that no file gets the number of a standard stream that the parent closed.

    What takes its place refuses what the stream is for: reading 0, writing 1 and 2.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number


def write_file(path: str, pieces: Iterable[bytes], source: Source | None = None, *, overwrite: bool) -> None:
    """Make a file that is no form of another one; a device or a pipe of that name is written into.

    Args:
      source: what the file must not replace.
      overwrite: see `Target`.

    Raises:
      OSError: it cannot be made, or is there. There is no half of it then.
    """
    target = Target(path, source, overwrite=overwrite, device=True, inherit=False)
    try:
        for piece in pieces:
            target.write(piece)
        target.finish()
    finally:
        target.discard()
