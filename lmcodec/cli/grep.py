"""`lmzgrep`: grep in compressed files. grep itself does the work; what it is given to read is decompressed.

The manner is that of zgrep: options and pattern are grep's, and so is the exit status: 0 if a line was
selected, 1 if none was, 2 after an error. Files that are not compressed are read as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, NoReturn

from lmcodec import __version__
from lmcodec.cli.console import Console
from lmcodec.cli.safe_file import die_by, reserve_standard_descriptors
from lmcodec.errors import ConfigError, LmcodecError, one_line

SELECTED, NONE, ERROR = 0, 1, 2
SUFFIX = ".lmz"
_CHUNK_NBYTES = 1 << 16
# Options of grep that take an argument; those with False do so only after an equals sign.
_SHORT = "efmABCdD"
_LONG = {
    "regexp": True,
    "file": True,
    "max-count": True,
    "after-context": True,
    "before-context": True,
    "context": True,
    "label": True,
    "include": True,
    "exclude": True,
    "exclude-from": True,
    "exclude-dir": True,
    "binary-files": True,
    "directories": True,
    "devices": True,
    "group-separator": True,
}
HELP = """Usage: lmzgrep [OPTIONS OF GREP] [-e] PATTERN [FILES]...

  Search FILES, compressed or not, for lines that PATTERN selects; standard input if there are none.

Options are those of grep, among them:
  -r, -R, --recursive     Search the files in folders, without links; the current folder if none is named.
  --include GLOB          With -r: only files whose name, with or without .lmz, fits.
  --exclude GLOB          With -r: no such files.
  --exclude-dir GLOB      With -r: no folders of such a name.
  -H, -h                  With or without the file's name in front; with it where there are several.
  --help                  Show this message and exit.
  -V, --version           Show the version and exit.

  The exit status is that of grep: 0 if a line was selected, 1 if none was, 2 after an error. The program that
  GREP in the environment names is run instead of grep.
"""


@dataclass
class Arguments:
    """What a command line says."""

    options: list[str] = field(default_factory=list)  # for grep, patterns included
    files: list[str] = field(default_factory=list)
    recursive: bool = False
    with_name: bool | None = None
    label: str | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    exclude_dir: list[str] = field(default_factory=list)
    quiet: bool = False
    silent: bool = False  # no messages about files that cannot be read


def parse(arguments: list[str]) -> Arguments:
    """Split the arguments into options for grep, what is ours, and files.

    Raises:
      ConfigError: an argument or the pattern is missing.
    """
    found, operands, has_pattern = Arguments(), [], False
    queue = list(arguments)

    def take(option: str) -> str:
        if not queue:
            raise ConfigError(f"option {option} needs an argument (--help helps)")
        return queue.pop(0)

    while queue:
        argument = queue.pop(0)
        if argument == "--":
            operands += queue
            break
        if argument == "-" or not argument.startswith("-"):
            operands.append(argument)
        elif argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if _LONG.get(name) and not equals:
                value = take(argument)
            has_pattern |= _long(found, name, value if equals or _LONG.get(name) else None, argument)
        else:
            has_pattern |= _cluster(found, argument, take)
    if not has_pattern:
        if not operands:
            raise ConfigError("name a pattern (--help helps)")
        found.options += ["-e", operands.pop(0)]
    found.files = operands
    return found


def _long(found: Arguments, name: str, value: str | None, argument: str) -> bool:
    """Take a long option; whether it holds patterns."""
    if name in ("recursive", "dereference-recursive"):
        found.recursive = True
    elif name in ("with-filename", "no-filename"):
        found.with_name = name == "with-filename"
    elif name == "label":
        found.label = value
    elif name in ("include", "exclude", "exclude-dir"):
        getattr(found, name.replace("-", "_")).append(value)
    elif name == "directories" and value == "recurse":
        found.recursive = True
    elif name == "exclude-from":
        raise ConfigError("--exclude-from is not supported: use --exclude")
    elif name == "file":
        found.options += [f"--file={_pattern_file(value or '')}"]
        return True
    else:
        found.quiet |= name in ("quiet", "silent")
        found.silent |= name == "no-messages"
        found.options.append(argument if value is None else f"--{name}={value}")
    return name == "regexp"


def _cluster(found: Arguments, argument: str, take: Any) -> bool:
    """Take short options that one argument holds; whether they hold patterns."""
    has_pattern = False
    letters = argument[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in _SHORT:
            value, letters = letters or take(f"-{letter}"), ""
            if letter == "d" and value == "recurse":
                found.recursive = True
                continue
            if letter == "f":
                value = _pattern_file(value)
            found.options += [f"-{letter}", value]
            has_pattern |= letter in "ef"
        elif letter in "rR":
            found.recursive = True
        elif letter in "hH":
            found.with_name = letter == "H"
        else:
            found.quiet |= letter == "q"
            found.silent |= letter == "s"
            found.options.append(f"-{letter}")
    return has_pattern


def _pattern_file(name: str) -> str:
    """A file of patterns; standard input is read only once, into a file of its own."""
    if name != "-":
        return name
    import atexit
    import tempfile

    data = b"".join(iter(lambda: os.read(0, _CHUNK_NBYTES), b""))
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(data)
    atexit.register(os.unlink, file.name)
    return file.name


def _folder(folder: str, arguments: Arguments, console: Console) -> Iterator[str | None]:
    """The files in a folder and in its folders, without links; None for one that cannot be listed."""

    def fits(name: str, patterns: list[str]) -> bool:
        names = {name, name.removesuffix(SUFFIX)}
        return any(fnmatchcase(n, pattern) for n in names for pattern in patterns)

    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(inside or ".") as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not arguments.silent:
                console.error(inside, error.strerror or str(error))
            yield None
            continue
        for entry in entries:
            path = os.path.join(inside, entry.name)
            if not entry.is_file(follow_symlinks=False) or fits(entry.name, arguments.exclude):
                continue
            if not arguments.include or fits(entry.name, arguments.include):
                yield path
        folders += [
            os.path.join(inside, e.name)
            for e in reversed(entries)
            if e.is_dir(follow_symlinks=False) and not fits(e.name, arguments.exclude_dir)
        ]


class _Search:
    def __init__(self, program: list[str], arguments: Arguments, console: Console) -> None:
        self.program, self.arguments, self.console = program, arguments, console
        self.status, self.failed = NONE, False

    def run(self) -> int:
        arguments = self.arguments
        files: list[str] = arguments.files or (["" if arguments.recursive else "-"])
        several = len(files) > 1 or arguments.recursive
        with_name = several if arguments.with_name is None else arguments.with_name
        self.program += ["-H" if with_name else "-h"]
        for operand in files:
            if operand != "-" and os.path.isdir(operand or "."):
                if not arguments.recursive:
                    self._fail(operand, "is a folder (-r searches it)")
                    continue
                names: Iterator[str | None] = _folder(operand, arguments, self.console)
            else:
                names = iter([operand])
            for name in names:
                if name is None:
                    self.failed = True
                    continue
                self._file(name)
                if self.status == SELECTED and arguments.quiet:
                    return SELECTED
        return ERROR if self.failed else self.status

    def _fail(self, name: str, message: str) -> None:
        self.failed = True
        if not self.arguments.silent:
            self.console.error("(stdin)" if name == "-" else name, message)

    def _file(self, name: str) -> None:
        try:
            if name == "-":
                self._search(name, os.fdopen(0, "rb", 0, closefd=False))
            else:
                with open(name, "rb", 0) as file:
                    self._search(name, file)
        except (LmcodecError, OSError) as error:
            self._fail(
                name, one_line(error) if isinstance(error, LmcodecError) else error.strerror or str(error)
            )
        except MemoryError:
            self._fail(name, "out of memory")

    def _search(self, name: str, file: Any) -> None:
        """Run grep with what is in the file as its standard input.

        Raises:
          LmcodecError: it is damaged. What came before was searched.
        """
        label = (self.arguments.label or "(standard input)") if name == "-" else name
        command = [*self.program, f"--label={label}", *self.arguments.options, "--", "-"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        failure: list[Exception] = []
        assert process.stdin is not None
        try:
            decoded = pieces(file)
            with contextlib.suppress(BrokenPipeError):  # grep has seen enough
                for piece in decoded:
                    process.stdin.write(piece)
        except (LmcodecError, OSError, MemoryError) as error:
            failure.append(error)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        if status < 0:
            die_by(-status)
        if status == SELECTED:
            self.status = SELECTED
        elif status != NONE:
            self.failed = True
        if failure:
            raise failure[0]


def pieces(file: Any) -> Iterator[bytes]:
    """What an unbuffered file holds: decompressed if it is compressed, otherwise as it is."""
    from lmcodec.codec import FrameReader
    from lmcodec.frame import MAGIC

    head = b""
    while len(head) < len(MAGIC) and (more := file.read(_CHUNK_NBYTES)):
        head += more

    def read(nbytes: int) -> bytes:
        nonlocal head
        chunk, head = head or file.read(nbytes), b""
        return chunk

    if head.startswith(MAGIC):
        reader = FrameReader(read)
        try:
            yield from iter(lambda: reader.read(_CHUNK_NBYTES), b"")
        finally:
            reader.close()
    else:
        yield from iter(lambda: read(_CHUNK_NBYTES), b"")


def feed(file: Any, sink: BinaryIO, failures: list[Exception]) -> threading.Thread:
    """Write what a file holds to `sink` in a thread of its own, which closes both."""

    def work() -> None:
        try:
            with file, sink:
                for piece in pieces(file):
                    sink.write(piece)
        except BrokenPipeError:
            pass
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def find_program(variable: str | None, name: str) -> str:
    """The path of a program.

    Raises:
      ConfigError: it is not there.
    """
    wanted = (variable and os.environ.get(variable)) or name
    path = shutil.which(wanted)
    if path is None:
        raise ConfigError(f"{wanted} is not installed, or not in PATH")
    return path


def answer(program: str, text: str, arguments: list[str], version: tuple[str, ...] = ("--version",)) -> None:
    """Print help or version, and exit, if that is asked for."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" in options:
        sys.stdout.write(text)
        sys.exit(0)
    if any(option in options for option in version):
        print(f"{program} {__version__}")
        sys.exit(0)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `lmzgrep`."""
    given = sys.argv[1:] if arguments is None else arguments
    console = Console("lmzgrep")
    reserve_standard_descriptors()
    answer("lmzgrep", HELP, given, version=("--version", "-V"))
    try:
        status = _Search([find_program("GREP", "grep")], parse(given), console).run()
    except LmcodecError as error:
        console.error(None, one_line(error))
        status = ERROR
    except Exception as error:  # our bug, or no process to be had
        console.error(None, f"internal error, please report it: {type(error).__name__}: {error}")
        status = ERROR
    sys.exit(status)
