"""One loop over the operands of a command: compress, decompress, test or list each and go on after an error.

Knows nothing of options: `lmz` and the subcommands of `lmcodec` both fill in `Settings`.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from lmcodec.cli.console import Console, is_terminal
from lmcodec.cli.progress import Progress
from lmcodec.cli.safe_file import (
    LeftAlone,
    Nowhere,
    Source,
    Stdout,
    StdoutClosed,
    Target,
    reserve_standard_descriptors,
)
from lmcodec.errors import (
    ConfigError,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    PriorNotFound,
    TrailingData,
    Unsupported,
    one_line,
)

if TYPE_CHECKING:
    from lmcodec.cli.listing import Listed
    from lmcodec.codec.base import Base
    from lmcodec.codec.prior import Prior
    from lmcodec.codec.salvage import Gap
    from lmcodec.lm.store import FilePath

SUFFIX = ".lmz"
OK, ERROR, WARNING = 0, 1, 2
_OUTPUT_NBYTES = 1 << 18
_LIMITS = {
    "max_output": "--max-output",
    "memory_limit": "--memlimit",
    "max_ratio": "--max-ratio",
    "max_cpu_seconds": "--max-cpu-seconds",
}
_IGNORED = "what follows the frames is ignored"


@dataclass(frozen=True)
class Settings:
    """What to do with the operands. None leaves a choice to the codec."""

    mode: Literal["compress", "decompress", "test", "list"]
    program: str = "lmz"
    to_stdout: bool = False
    output: str | None = None
    output_dir: str | None = None
    force: bool = False
    remove: bool = False
    recursive: bool = False
    exclude: tuple[str, ...] = ()  # patterns of names
    files_from: tuple[str, ...] = ()  # files that hold names
    null: bool = False  # which zero bytes separate
    suffix: str = SUFFIX
    sparse: bool = True
    salvage: bool = False
    verify: bool = False
    level: int = 6
    model: str | None = None  # a model's name or id, or a file
    model_only: bool = False  # no other model is a candidate
    method: str = "auto"  # see codec.Compressor
    device: str | None = None  # of the language model: cpu or cuda
    computed_by: str | None = None  # an executor, in place of a device
    dtype: str | None = None  # of a model of the prefix hf
    download: bool = False  # fetch such a model
    prior: tuple[str, ...] = ()  # files; one of them to compress with
    base: str | None = None  # a file that tensors are coded against
    threads: int | None = None
    block_nbytes: int | None = None
    solid: bool = False
    rsyncable: bool = False
    flush_timeout: float | None = None  # seconds
    memory_limit: int | None = None  # bytes
    max_output: int | None = None  # bytes
    max_ratio: float | None = None
    max_cpu_seconds: float | None = None
    json: bool = False
    verbosity: int = 0
    progress: bool = True

    @property
    def executor(self) -> str:
        """What computes the language model."""
        from lmcodec.lm.executor import OF_DEVICE

        return self.computed_by or OF_DEVICE[self.device or "cpu"]


def operate(settings: Settings, operands: tuple[str, ...]) -> int:
    """Work through the operands, "-" and none being standard input; returns the exit status.

    The status is 1 after an error, else 2 after a warning. A fatal signal and a closed standard output end
    the process.

    Raises:
      ConfigError: the settings and the operands contradict each other.
    """
    if settings.files_from:
        operands = (*operands, *_names_in(settings))
    else:
        operands = operands or ("-",)
    _check_together(settings, operands)
    if settings.mode == "compress":
        shown, on_device = f"-{settings.level}", settings.device if settings.device != "cpu" else None
        check_model(shown, settings.level, settings.method, settings.model)
        check_model(shown, settings.level, settings.method, on_device, f"--device {on_device}")
        if settings.model_only:
            check_model(shown, settings.level, settings.method, "", "--model-only")
    if settings.mode != "list":
        if settings.computed_by is not None and settings.device is not None:
            raise ConfigError("--executor and --device exclude each other")
        _check_prior(settings)
        _require_device(settings.device, settings.computed_by)
    reserve_standard_descriptors()
    # Who writes into a pipe may share the terminal with another program (tar -v, less): no progress unasked.
    writes_stdout = settings.to_stdout or (operands == ("-",) and settings.output is None)
    quiet = settings.mode == "list" or (settings.mode != "test" and writes_stdout and settings.verbosity < 1)
    console = Console(settings.program, settings.verbosity, progress=settings.progress and not quiet)
    work = _Work(settings, console)
    return console.supervise(lambda: work.run(operands))


def _names_in(settings: Settings) -> Iterator[str]:
    """The names that the files of `--files-from` hold."""
    for listing in settings.files_from:
        try:
            source = Source(None if listing == "-" else listing)
            try:
                data = b"".join(iter(source.read, b""))
            finally:
                source.close()
        except OSError as error:
            raise ConfigError(f"--files-from: {one_line(error)}") from None
        except LeftAlone as reason:
            raise ConfigError(f"--files-from: {listing} {reason}") from None
        for name in data.split(b"\0" if settings.null else b"\n"):
            if name:
                yield os.fsdecode(name)


def _check_together(settings: Settings, operands: tuple[str, ...]) -> None:
    """Refuse settings that contradict each other.

    Raises:
      ConfigError
    """
    if settings.output is not None:
        if len(operands) > 1:
            raise ConfigError(f"-o names one output for {len(operands)} inputs (-c joins them)")
        if settings.to_stdout or settings.recursive or settings.mode in ("test", "list"):
            raise ConfigError("-o does not go together with -c, -r, -t or -l")
    if settings.output_dir is not None:
        if settings.to_stdout or settings.output is not None or settings.mode in ("test", "list"):
            raise ConfigError("--output-dir does not go together with -o, -c, -t or -l")
        if "-" in operands:
            raise ConfigError("--output-dir: standard input has no name (-o names its output)")
    if settings.salvage:
        if settings.mode not in ("decompress", "test"):
            raise ConfigError("--salvage goes together with -d or -t")
        if settings.remove:
            raise ConfigError("--salvage keeps damaged files: it does not go together with --rm")
        if settings.max_ratio is not None:
            raise ConfigError("--salvage does not go together with --max-ratio (--max-output bounds it)")
    if settings.null and not settings.files_from:
        raise ConfigError("--null is of --files-from")
    if settings.mode == "compress":
        if settings.flush_timeout is not None:
            if not hasattr(select, "poll"):
                raise ConfigError("--flush-timeout needs a system that can poll")
            if settings.verify:
                raise ConfigError("--flush-timeout does not go together with --verify")
        if settings.base is not None and settings.method != "auto":
            raise ConfigError(f"--base does not go together with --method {settings.method}")
        if settings.rsyncable and (settings.solid or settings.verify or settings.flush_timeout is not None):
            raise ConfigError("--rsyncable does not go together with --solid, --verify or --flush-timeout")
    elif settings.rsyncable or settings.flush_timeout is not None:
        which = "--rsyncable" if settings.rsyncable else "--flush-timeout"
        raise ConfigError(f"{which} is of compressing")


def _require_device(device: str | None, executor: str | None) -> None:
    """Refuse a device that is not there, once, before any file is touched.

    Raises:
      ConfigError
    """
    from lmcodec.lm.executor import OF_DEVICE, require

    if executor is not None:
        require(executor)
    if device in (None, "cpu"):
        return
    try:
        require(OF_DEVICE[str(device)])
    except ConfigError as error:
        raise ConfigError(f"--device {device}: {error}") from None


def check_model(shown: str, level: int, method: str, model: str | None, option: str = "--model") -> None:
    """Refuse a language model where none is used.

    Args:
      shown: the level, as the user gives it.
      model: a model, or whatever else `option` asks for that needs one; None if it does not.

    Raises:
      ConfigError: the level or the method uses none.
    """
    if level < 3 and method in ("lm", "lm+cm"):
        raise ConfigError(
            f"--method {method} does not go together with {shown}, which uses no language model"
        )
    if model is not None and (level < 3 or method in ("cm", "stored")):
        without = shown if level < 3 else f"--method {method}"
        raise ConfigError(f"{option} does not go together with {without}, which uses no language model")


def _check_prior(settings: Settings) -> None:
    """Refuse what does not go with a prior.

    Raises:
      ConfigError
    """
    if not settings.prior or settings.mode != "compress":
        return
    if len(settings.prior) > 1:
        raise ConfigError("--prior: files are compressed with one prior, several are given")
    for given, option in (
        (settings.model, "--model"),
        (settings.executor != "kernel", "--executor and --device"),
    ):
        if given:
            raise ConfigError(f"{option} and --prior exclude each other: the prior has its own model")


class _Work:
    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings, self.console = settings, console
        self.status = OK
        self.listed: list[Listed] = []
        self._root = ""  # folder operand that a file was found in
        self._written: dict[str, str] = {}  # outputs and their inputs, where a folder is given for them

    @cached_property
    def model(self) -> FilePath | None:
        """The model that is asked for; where options say how it is loaded, the model itself.

        Raises:
          ConfigError: they are for models of the prefix hf, which it is not.
        """
        settings = self.settings
        if not self._opens_model:
            return settings.model
        from lmcodec.lm import outside

        asked = settings.model or os.environ.get("LMCODEC_MODEL")
        if outside.prefix_of(asked) is None:
            option = "--dtype" if settings.dtype else "--download"
            raise ConfigError(f"{option} is for --model hf:PATH or hf:OWNER/NAME")
        return outside.open_prefixed(
            str(asked),
            settings.executor,
            dtype=settings.dtype,
            download=settings.download,
            memory_limit=settings.memory_limit,
        )

    @cached_property
    def priors(self) -> tuple[Prior, ...]:
        """What the files of `--prior` hold."""
        if not self.settings.prior:
            return ()
        from lmcodec.codec.prior import Prior

        priors = tuple(map(Prior.load, self.settings.prior))
        if self.settings.mode == "compress":
            from lmcodec.codec.levels import method_named

            try:
                priors[0].coding_of(self.settings.level, method_named(self.settings.method))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        return priors

    @cached_property
    def _base(self) -> Base | None:
        """The file that tensors are coded against, open for all operands.

        Raises:
          ConfigError: it cannot be read, or is compressed.
        """
        if self.settings.base is None:
            return None
        from lmcodec.codec.base import Base

        try:
            return Base(self.settings.base)
        except OSError as error:
            raise ConfigError(f"--base: {one_line(error)}") from None

    @property
    def _opens_model(self) -> bool:
        """Whether options say how the model is loaded."""
        return bool(self.settings.dtype or self.settings.download)

    @property
    def _executor(self) -> str:
        """What computes the model; one that is open computes itself."""
        return "kernel" if self._opens_model else self.settings.executor

    def run(self, operands: tuple[str, ...]) -> int:
        for operand in operands:
            self._guard(operand, self._operand)
        if self.settings.mode == "list":
            self._guard(Stdout.name, lambda _: self._print_list())
        return self.status

    def _guard(self, name: str, work: Callable[[str], None]) -> None:
        """Do `work`; what it raises becomes one line and the exit status."""
        try:
            work(name)
            return
        except StdoutClosed:
            raise
        except LeftAlone as reason:
            self._warn(name, str(reason))
            return
        except MemoryError:
            message = "out of memory"
        except OSError as error:
            name = str(error.filename or name)
            message = error.strerror or str(error)
        except LimitExceeded as error:
            message = str(error)
            for limit, option in _LIMITS.items():
                message = message.replace(f"raise {limit}", f"raise {option}")
        except ModelNotFound as error:
            message = str(error).replace("model=", "--model").replace("base=FILE", "--base FILE")
        except PriorNotFound as error:
            message = str(error).replace(", or prior=", "")
        except Unsupported as error:
            message = one_line(error).replace(" (any_environment=True)", "")
        except LmcodecError as error:
            message = one_line(error)
        except Exception as error:  # our bug; the other files are still served
            message = f"internal error, please report it: {type(error).__name__}: {error}"
        self.status = ERROR
        self.console.error("(stdin)" if name == "-" else name, message)

    def _warn(self, name: str, message: str) -> None:
        self.status = self.status or WARNING
        self.console.warning(name, message)

    def _operand(self, operand: str) -> None:
        file = self._list if self.settings.mode == "list" else self._file
        if operand != "-" and self._excluded(operand):
            return
        self._root = ""
        if operand == "-" or not self.settings.recursive or not os.path.isdir(operand):
            file(operand)
            return
        self._root = operand
        folders = [operand]
        while folders:
            self._guard(folders.pop(), lambda folder: self._folder(folder, folders, file))

    def _excluded(self, path: str) -> bool:
        """Whether a pattern fits a path or its last name."""
        name = os.path.basename(path.rstrip("/" + os.sep))
        return any(
            fnmatchcase(name, pattern) or fnmatchcase(path, pattern) for pattern in self.settings.exclude
        )

    def _folder(self, folder: str, folders: list[str], file: Callable[[str], None]) -> None:
        """Work on the files of a folder whose suffix fits, and add its folders to `folders`.

        Links and special files are none of a folder's files.
        """
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        entries = [entry for entry in entries if not self._excluded(entry.path)]
        folders += [e.path for e in reversed(entries) if e.is_dir(follow_symlinks=False)]
        for entry in entries:
            has_suffix = entry.name.endswith((self.settings.suffix, SUFFIX))
            if entry.is_file(follow_symlinks=False) and has_suffix != (self.settings.mode == "compress"):
                self._guard(entry.path, file)

    def _file(self, operand: str) -> None:
        settings = self.settings
        to_stdout = settings.to_stdout or (operand == "-" and settings.output is None)
        lenient = settings.force or settings.to_stdout or settings.mode == "test"
        source = Source(None if operand == "-" else operand, follow=lenient, special=lenient)
        try:
            self._refuse_terminals(source, to_stdout)
            if settings.mode == "test":
                self._code(source, Nowhere())
            elif to_stdout:
                self._code(source, Stdout())
            else:
                if settings.remove and not settings.force:
                    source.check_removable()
                name = settings.output or self._target_name(operand)
                is_named = settings.output is not None
                sparse = settings.sparse and settings.mode == "decompress"
                if settings.output_dir is not None:
                    name = self._in_output_folder(name, operand)
                target = Target(name, source, overwrite=settings.force, device=is_named, sparse=sparse)
                try:
                    self._code(source, target)
                finally:
                    target.discard()
        finally:
            source.close()
            self.console.end()

    def _in_output_folder(self, name: str, operand: str) -> str:
        """Where `name` lies in the output folder: beside the others, or where it was in a folder operand.

        Raises:
          LmcodecError: another file of this call was written there.
        """
        assert self.settings.output_dir is not None
        inside = os.path.basename(name)
        if self._root:
            above = os.path.basename(os.path.abspath(self._root)) if self._root.strip("./") else ""
            inside = os.path.join(above, os.path.relpath(name, self._root))
        path = os.path.join(self.settings.output_dir, inside)
        other = self._written.setdefault(os.path.abspath(path), operand)
        if other != operand:
            raise LmcodecError(f"{path} was made of {other} in this call: the names are the same")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _refuse_terminals(self, source: Source, to_stdout: bool) -> None:
        mode, force = self.settings.mode, self.settings.force
        if mode == "compress" and to_stdout and is_terminal(1) and not force:
            raise LmcodecError("compressed data is not written to a terminal (-f does it, -h helps)")
        if mode != "compress" and source.path is None and is_terminal(0) and not force:
            raise LmcodecError("compressed data is not read from a terminal (-f does it, -h helps)")

    def _target_name(self, path: str) -> str:
        suffixes = (self.settings.suffix, SUFFIX)
        if self.settings.mode == "compress":
            if path.endswith(suffixes) and not self.settings.force:
                suffix = next(filter(path.endswith, suffixes))
                raise LeftAlone(f"has the suffix {suffix} already, skipped")
            return path + self.settings.suffix
        for suffix in suffixes:
            if path.endswith(suffix) and os.path.basename(path) != suffix:
                return path.removesuffix(suffix)
        if not self.settings.force:
            raise LeftAlone(f"does not end in {self.settings.suffix}, skipped (-o or -c takes it)")
        return path + ".out"

    def _code(self, source: Source, target: Stdout | Target) -> None:
        """Compress or decompress a file and, if all went well, finish the target."""
        settings, console = self.settings, self.console
        decodes = settings.mode != "compress"
        trailing: TrailingData | None = None
        gaps: list[Gap] = []
        progress = console.begin(source.name, source.nbytes, decoding=decodes)
        try:
            if decodes:
                pieces = self._decoded(source, progress)
                if settings.salvage:
                    pieces = self._salvaged(source, progress, gaps)
                for piece in pieces:
                    target.write(piece)
                    progress.original(piece)
            else:
                self._compress(source, target, progress)
        except TrailingData as error:
            if not decodes:
                raise
            trailing = error
        finally:
            progress.follow(None)
        if isinstance(target, Target):
            for failure in target.copy_metadata():
                self._warn(target.name, failure)
            target.finish(remove_source=settings.remove and trailing is None)
        if trailing is not None:
            kept = "; the file is kept" if settings.remove and isinstance(target, Target) else ""
            self._warn(source.name, f"{_IGNORED}: {trailing}{kept}")
        if source.changed():
            self._warn(source.name, "changed while it was read")
        self._report(source.name, gaps)
        arrow = "" if isinstance(target, Nowhere) else f" -> {target.name}"
        console.end()
        console.info(f"{source.name}{arrow}", progress.summary())

    def _compress(self, source: Source, target: Stdout | Target, progress: Progress) -> None:
        from lmcodec.codec import Compressor

        settings, verifier = self.settings, None
        if settings.verify:
            from lmcodec.cli.verify import Verifier

            verifier = Verifier(settings.threads, self.model, self._executor, self.priors, self._base)
        # What was written to a file is read back; what went into a pipe is decoded as it goes.
        reads_back = isinstance(target, Target) and target.can_rewind
        compressor = Compressor(
            settings.level,
            block_size=settings.block_nbytes,
            threads=settings.threads,
            solid=settings.solid,
            model=self.model,
            model_only=settings.model_only,
            method=settings.method,
            executor=self._executor,
            prior=self.priors[0] if self.priors else None,
            base=self._base,
        )

        progress.follow(lambda: (compressor.position, 0))
        if source.nbytes and not settings.rsyncable:
            compressor.look_ahead(source.look_at, source.nbytes)

        def write(piece: bytes) -> None:
            target.write(piece)
            progress.compressed(piece)
            if verifier and piece and not reads_back:
                deque(verifier.written(piece), maxlen=0)

        for chunk in self._chunks(source, lambda: write(compressor.flush(compressor.FLUSH_BLOCK))):
            progress.original(chunk)
            if verifier:
                verifier.read(chunk)
            # Where the text says where blocks begin, each is a frame: an index would tell of those before.
            write(compressor.compress(chunk))
            if settings.rsyncable:
                write(compressor.flush())
        if not progress.compressed_nbytes or not settings.rsyncable:
            write(compressor.flush())
        if verifier:
            if isinstance(target, Target) and reads_back:
                target.rewind()
                name, nbytes = f"{source.name} (check)", progress.compressed_nbytes
                check = self.console.begin(name, nbytes, decoding=True)
                check.follow(verifier.position)
                while piece := target.read():
                    check.compressed(piece)
                    for decoded in verifier.written(piece):
                        check.original(decoded)
            verifier.finish()
        if compressor.last_recognised is not None:
            self.console.end()
            self.console.info(source.name, compressor.last_recognised.describe())
        if compressor.last_choice is not None:
            self.console.end()
            self.console.info(source.name, compressor.last_choice.describe())
        if compressor.last_fingerprint is not None:
            self.console.end()
            self.console.info(source.name, f"environment-bound: {compressor.last_fingerprint.full()}")

    def _chunks(self, source: Source, flush: Callable[[], None]) -> Iterator[bytes]:
        """What `source` holds. With a flush timeout what came is flushed after that many seconds."""
        if self.settings.rsyncable:
            from lmcodec.cli.chunks import MAX_NBYTES, chunks

            yield from chunks(iter(source.read, b""), self.settings.block_nbytes or MAX_NBYTES)
            return
        timeout = self.settings.flush_timeout
        due: float | None = None  # when what came first since the last flush must be written
        while True:
            if timeout is not None and due is not None and not source.ready(due - time.monotonic()):
                flush()
                due = None
            chunk = source.read()
            if not chunk:
                return
            yield chunk
            if timeout is not None and not source.is_regular:
                now = time.monotonic()
                due = due if due is not None else now + timeout
                if now >= due:
                    flush()
                    due = None

    def _salvaged(self, source: Source, progress: Progress, gaps: list[Gap]) -> Iterator[bytes]:
        """What of a damaged file is sound; what is not is added to `gaps`."""
        from lmcodec.codec.salvage import Gap, merged, salvage

        settings = self.settings
        if not source.is_regular:
            raise LmcodecError("cannot be salvaged: it is a pipe or a device; write it to a file")
        found: list[Gap] = []
        sound = False
        for item in salvage(
            source.read_at,
            source.status.st_size,
            max_output=settings.max_output,
            memory_limit=settings.memory_limit,
            max_cpu_seconds=settings.max_cpu_seconds,
            threads=settings.threads,
            model=self.model,
            executor=self._executor,
            any_environment=settings.force,
            prior=self.priors,
            base=self._base,
        ):
            if isinstance(item, Gap):
                found.append(item)
            else:
                sound = True
                yield item
        gaps += merged(found)
        if not sound and gaps:
            self._report(source.name, gaps)
            raise LmcodecError("nothing of it is sound")

    def _report(self, name: str, gaps: list[Gap]) -> None:
        for gap in gaps:
            self.status = ERROR
            known = gap.original_nbytes
            lost = "an unknown number of bytes is" if known is None else f"{known:,} bytes are"
            where = f"bytes {gap.offset:,} to {gap.offset + gap.nbytes:,}" if gap.nbytes else "at its end"
            self.console.error(
                name,
                f"{where}: {gap.reason}; {lost} missing after byte {gap.original_offset:,} of the output",
            )

    def _decoded(self, source: Source, progress: Progress) -> Iterator[bytes]:
        from lmcodec.frame import MAGIC

        settings = self.settings
        passes = settings.mode == "decompress" and settings.to_stdout and settings.force
        head = b""

        def read(_: int = 0) -> bytes:
            nonlocal head
            chunk, head = head or source.read(), b""
            progress.compressed(chunk)
            return chunk

        if passes:
            while len(head) < len(MAGIC) and (more := source.read()):
                head += more
            if not head.startswith(MAGIC):
                yield from iter(read, b"")
                return
        from lmcodec.codec import FrameReader

        reader = FrameReader(
            read,
            ready=lambda: bool(head) or source.ready(),
            max_output=settings.max_output,
            memory_limit=settings.memory_limit,
            max_ratio=settings.max_ratio,
            max_cpu_seconds=settings.max_cpu_seconds,
            threads=settings.threads,
            model=self.model,
            executor=self._executor,
            any_environment=settings.force,
            prior=self.priors,
            base=self._base,
        )
        progress.follow(lambda: reader.position)
        yield from iter(lambda: reader.read(_OUTPUT_NBYTES), b"")

    def _list(self, operand: str) -> None:
        from lmcodec.cli.listing import list_file

        listed = list_file(None if operand == "-" else operand)
        self.listed.append(listed)
        if listed.trailing is not None:
            self._warn(operand, f"{_IGNORED}: {listed.trailing}")

    def _print_list(self) -> None:
        from lmcodec.cli.listing import as_json, as_table, environments

        verbose = self.settings.verbosity > 0
        text = as_json(self.listed) if self.settings.json else as_table(self.listed, verbose)
        if verbose and not self.settings.json:
            text += environments(self.listed)
        Stdout().write(text.encode("utf-8", "backslashreplace"))
