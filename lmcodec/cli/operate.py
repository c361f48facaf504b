"""One loop over the operands of a command: compress, decompress, test or list each and go on after an error.

Knows nothing of options: `lmz` and the subcommands of `lmcodec` both fill in `Settings`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    TrailingData,
    Unsupported,
    one_line,
)

if TYPE_CHECKING:
    from lmcodec.cli.listing import Listed
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
    force: bool = False
    remove: bool = False
    recursive: bool = False
    suffix: str = SUFFIX
    verify: bool = False
    level: int = 6
    model: str | None = None  # a model's name or id, or a file
    model_only: bool = False  # no other model is a candidate
    method: str = "auto"  # see codec.Compressor
    device: str | None = None  # of the language model: cpu or cuda
    computed_by: str | None = None  # an executor, in place of a device
    dtype: str | None = None  # of a model of the prefix hf
    download: bool = False  # fetch such a model
    threads: int | None = None
    block_nbytes: int | None = None
    solid: bool = False
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
    operands = operands or ("-",)
    if settings.output is not None:
        if len(operands) > 1:
            raise ConfigError(f"-o names one output for {len(operands)} inputs (-c joins them)")
        if settings.to_stdout or settings.recursive or settings.mode in ("test", "list"):
            raise ConfigError("-o does not go together with -c, -r, -t or -l")
    if settings.mode == "compress":
        shown, on_device = f"-{settings.level}", settings.device if settings.device != "cpu" else None
        check_model(shown, settings.level, settings.method, settings.model)
        check_model(shown, settings.level, settings.method, on_device, f"--device {on_device}")
        if settings.model_only:
            check_model(shown, settings.level, settings.method, "", "--model-only")
    if settings.mode != "list":
        if settings.computed_by is not None and settings.device is not None:
            raise ConfigError("--executor and --device exclude each other")
        _require_device(settings.device, settings.computed_by)
    reserve_standard_descriptors()
    # Who writes into a pipe may share the terminal with another program (tar -v, less): no progress unasked.
    writes_stdout = settings.to_stdout or (operands == ("-",) and settings.output is None)
    quiet = settings.mode == "list" or (settings.mode != "test" and writes_stdout and settings.verbosity < 1)
    console = Console(settings.program, settings.verbosity, progress=settings.progress and not quiet)
    work = _Work(settings, console)
    return console.supervise(lambda: work.run(operands))


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


class _Work:
    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings, self.console = settings, console
        self.status = OK
        self.listed: list[Listed] = []
        self._model: FilePath | None = settings.model
        self._model_is_open = False

    @property
    def model(self) -> FilePath | None:
        """The model that is asked for; where options say how it is loaded, the model itself.

        Raises:
          ConfigError: they are for models of the prefix hf, which it is not.
        """
        settings = self.settings
        if (settings.dtype or settings.download) and not self._model_is_open:
            from lmcodec.lm import outside
            from lmcodec.lm.executor import EXECUTORS

            asked = settings.model or os.environ.get("LMCODEC_MODEL")
            if outside.prefix_of(asked) is None:
                option = "--dtype" if settings.dtype else "--download"
                raise ConfigError(f"{option} is for --model hf:PATH or hf:OWNER/NAME")
            self._model = outside.load_model(
                str(asked),
                device=EXECUTORS[settings.executor] or "cpu",
                dtype=settings.dtype,
                download=settings.download,
                memory_limit=settings.memory_limit,
            )
            self._model_is_open = True
        return self._model

    @property
    def _executor(self) -> str:
        """What computes the model; one that is open computes itself."""
        return "kernel" if self._model_is_open else self.settings.executor

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
            message = str(error).replace("model=", "--model")
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
        if operand == "-" or not self.settings.recursive or not os.path.isdir(operand):
            file(operand)
            return
        folders = [operand]
        while folders:
            self._guard(folders.pop(), lambda folder: self._folder(folder, folders, file))

    def _folder(self, folder: str, folders: list[str], file: Callable[[str], None]) -> None:
        """Work on the files of a folder whose suffix fits, and add its folders to `folders`.

        Links and special files are none of a folder's files.
        """
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
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
                target = Target(name, source, overwrite=settings.force, device=is_named)
                try:
                    self._code(source, target)
                finally:
                    target.discard()
        finally:
            source.close()
            self.console.end()

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
        progress = console.begin(source.name, source.nbytes, decoding=decodes)
        try:
            if decodes:
                for piece in self._decoded(source, progress):
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
        arrow = "" if isinstance(target, Nowhere) else f" -> {target.name}"
        console.end()
        console.info(f"{source.name}{arrow}", progress.summary())

    def _compress(self, source: Source, target: Stdout | Target, progress: Progress) -> None:
        from lmcodec.codec import Compressor

        settings, verifier = self.settings, None
        if settings.verify:
            from lmcodec.cli.verify import Verifier

            verifier = Verifier(settings.threads, self.model, self._executor)
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
        )

        progress.follow(lambda: (compressor.position, 0))

        def write(piece: bytes) -> None:
            target.write(piece)
            progress.compressed(piece)
            if verifier and piece and not reads_back:
                deque(verifier.written(piece), maxlen=0)

        while chunk := source.read():
            progress.original(chunk)
            if verifier:
                verifier.read(chunk)
            write(compressor.compress(chunk))
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
        if compressor.last_choice is not None:
            self.console.end()
            self.console.info(source.name, compressor.last_choice.describe())
        if compressor.last_fingerprint is not None:
            self.console.end()
            self.console.info(source.name, f"environment-bound: {compressor.last_fingerprint.full()}")

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
        )
        progress.follow(lambda: reader.position)
        yield from iter(lambda: reader.read(_OUTPUT_NBYTES), b"")

    def _list(self, operand: str) -> None:
        from lmcodec.cli.listing import list_file

        if operand == "-":
            raise LmcodecError("standard input cannot be listed: name a file")
        listed = list_file(operand)
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
