"""`lmzless` and `lmzdiff`: less and diff with compressed files; others are read as they are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import NoReturn

from lmcodec.cli.console import Console
from lmcodec.cli.grep import SUFFIX, answer, feed, find_program
from lmcodec.cli.safe_file import die_by, reserve_standard_descriptors
from lmcodec.errors import ConfigError, LmcodecError, one_line, reason_of

ERROR = 2
LESS_HELP = """Usage: lmzless [OPTIONS OF LESS] [FILES]...

  Show FILES, compressed or not, page by page with less; standard input if there are none.

Options are those of less, and:
  --help     Show this message and exit.
  --version  Show the version and exit.
"""
DIFF_HELP = """Usage: lmzdiff [OPTIONS OF DIFF] FILE1 [FILE2]

  Compare two files, compressed or not, with diff. Without FILE2, FILE1 is compared with FILE1.lmz, or with
  what it is called without .lmz.

Options are those of diff, and:
  --help     Show this message and exit.
  --version  Show the version and exit.

  The exit status is that of diff: 0 if the files are the same, 1 if they differ, 2 after an error.
"""
# Options of diff that take an argument of their own.
_SHORT = "CUFIWSxXLD"
_LONG = {
    "label",
    "ifdef",
    "show-function-line",
    "ignore-matching-lines",
    "width",
    "tabsize",
    "horizon-lines",
    "line-format",
}


def less(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `lmzless`: less takes this process's place."""
    given = sys.argv[1:] if arguments is None else arguments
    answer("lmzless", LESS_HELP, given)
    reserve_standard_descriptors()
    try:
        program = find_program(None, "less")
    except ConfigError as error:
        Console("lmzless").error(None, str(error))
        sys.exit(1)
    python = shlex.quote(sys.executable).replace("%", "%%")
    # The minus sign: standard input goes through it, too. less quotes the name that it puts for %s.
    os.environ["LESSOPEN"] = f"|-{python} -m lmcodec.cli.lmz -dcf -- %s"
    os.environ.pop("LESSCLOSE", None)
    sys.stdout.flush()
    os.execv(program, ["less", *given])


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options of diff with their arguments, and files."""
    options: list[str] = []
    files: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            files += queue
            break
        if argument == "-" or not argument.startswith("-"):
            files.append(argument)
            continue
        options.append(argument)
        if argument.startswith("--"):
            needs = argument[2:] in _LONG
        else:
            at = next((i for i, letter in enumerate(argument[1:], 1) if letter in _SHORT), None)
            needs = at == len(argument) - 1
        if needs and queue:
            options.append(queue.pop(0))
    return options, files


def _other(name: str) -> str:
    """What a file is compared with if only one is named."""
    other = name.removesuffix(SUFFIX)
    return name + SUFFIX if other == name else other


def _diff(given: list[str]) -> int:
    program = find_program("DIFF", "diff")
    options, files = _split(given)
    if len(files) == 1:
        files.append(_other(files[0]))
    if len(files) != 2:
        raise ConfigError(f"name one or two files, not {len(files)} (--help helps)")
    if files == ["-", "-"]:
        raise ConfigError("standard input can be only one of the files")
    for name in files:
        if name != "-" and os.path.isdir(name):
            raise ConfigError(f"{name} is a folder: name files")
    opened = []
    for name in files:
        try:
            opened.append(open(0 if name == "-" else name, "rb", 0, closefd=name != "-"))  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror or error}") from None
    pipes = [os.pipe() for _ in files]
    failures: list[list[Exception]] = [[], []]
    threads = [
        feed(file, os.fdopen(write, "wb", 0), failed)
        for file, (_, write), failed in zip(opened, pipes, failures, strict=True)
    ]
    places = [f"/dev/fd/{read}" for read, _ in pipes]
    labels = [] if any(o == "-L" or o.startswith("--label") for o in options) else files
    command = [program, *(f"--label={name}" for name in labels), *options, "--", *places]
    process = subprocess.Popen(command, pass_fds=[read for read, _ in pipes], stdout=subprocess.PIPE)
    for read, _ in pipes:
        os.close(read)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith((b"Files ", b"Binary files ")):  # names the files that it was given
            for place, name in zip(places, files, strict=True):
                line = line.replace(place.encode(), os.fsencode(name), 1)
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    status = process.wait()
    if status < 0:
        die_by(-status)
    for thread in threads:
        thread.join()
    for name, failed in zip(files, failures, strict=True):
        for failure in failed:
            text = str(failure) if isinstance(failure, LmcodecError) else reason_of(failure)
            Console("lmzdiff").error("(stdin)" if name == "-" else name, text)
            status = ERROR
    return status


def diff(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `lmzdiff`."""
    given = sys.argv[1:] if arguments is None else arguments
    answer("lmzdiff", DIFF_HELP, given)
    reserve_standard_descriptors()
    try:
        if not os.path.isdir("/dev/fd"):
            raise ConfigError("needs a system that has /dev/fd")
        status = _diff(given)
    except LmcodecError as error:
        Console("lmzdiff").error(None, one_line(error))
        status = ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = ERROR
    except Exception as error:  # our bug, or no process to be had
        text = f"internal error, please report it: {type(error).__name__}: {error}"
        Console("lmzdiff").error(None, text)
        status = ERROR
    sys.exit(status)
