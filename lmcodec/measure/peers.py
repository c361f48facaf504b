"""The compressors that `lmcodec bench` runs, each as a pair of commands.

A command is a list of words in which `{in}` and `{out}` stand for files; a word `<{in}` or `>{out}` makes the
file the command's standard input or output. No shell sees any of it. Knows how compressors are called, runs
nothing but their version queries.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmcodec import __version__
from lmcodec.errors import ConfigError
from lmcodec.measure import stand_in

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_STORED_NAME = "text"  # what archivers of the table below find in an archive
_VERSION_TIMEOUT_S = 10


@dataclass(frozen=True)
class Command:
    """A command with places for its files.

    Attributes:
      words: the program, as a path, and its arguments.
      reads_stdin: the input is its standard input.
      writes_stdout: its standard output is the output.
    """

    words: tuple[str, ...]
    reads_stdin: bool = False
    writes_stdout: bool = False

    def fill(self, source: str, target: str) -> list[str]:
        """The words with the files' names in their places."""
        values = {"{in}": source, "{out}": target}
        return [_PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), word) for word in self.words]


@dataclass(frozen=True)
class Compressor:
    """A program at one setting.

    Attributes:
      name: in tables and pictures; unique in a run.
      family: what it is a setting of; "lmcodec" for our own.
      compress, decompress: the commands.
      suffix: that its compressed files must have.
      in_folder: run where the files are, which are then named without a path (archivers store the name).
      version: what the program says of itself, empty if unknown.
    """

    name: str
    family: str
    compress: Command
    decompress: Command
    suffix: str = ".bin"
    in_folder: bool = False
    version: str = ""


@dataclass(frozen=True)
class Family:
    """A compressor that is looked for.

    Attributes:
      name: of a setting, with the place {level}.
      commands: "compress;decompress" with the places {level} and {threads}.
      level: the default one, usually the strongest.
      levels: those it has, as a regular expression.
      programs: names under which it may be installed.
      source: where to get it.
      version: arguments that make it tell its version.
    """

    name: str
    commands: str
    level: str
    levels: str
    programs: tuple[str, ...]
    source: str
    suffix: str = ".bin"
    version: tuple[str, ...] = ("--version",)


FAMILIES: dict[str, Family] = {
    "gzip": Family(
        "gzip -{level}",
        "gzip -{level} <{in} >{out};gzip -d <{in} >{out}",
        "9",
        "[1-9]",
        ("gzip",),
        "Debian's package gzip",
    ),
    "bzip2": Family(
        "bzip2 -{level}",
        "bzip2 -{level} <{in} >{out};bzip2 -d <{in} >{out}",
        "9",
        "[1-9]",
        ("bzip2",),
        "Debian's package bzip2",
    ),
    "xz": Family(
        "xz -{level}",
        "xz -{level} -T{threads} <{in} >{out};xz -d -T{threads} <{in} >{out}",
        "9e",
        "[0-9]e?",
        ("xz",),
        "Debian's package xz-utils",
    ),
    "zstd": Family(
        "zstd -{level}",
        "zstd --ultra -{level} -T{threads} -q -c {in} >{out};zstd -d -q -c {in} >{out}",
        "22",
        "[1-9]|1[0-9]|2[0-2]",
        ("zstd",),
        "Debian's package zstd",
    ),
    "brotli": Family(
        "brotli -q {level}",
        "brotli -q {level} -w 24 -c {in} >{out};brotli -d -c {in} >{out}",
        "11",
        "[0-9]|1[01]",
        ("brotli",),
        "Debian's package brotli",
    ),
    "bzip3": Family(
        "bzip3 -b {level}",
        "bzip3 -e -b {level} -j {threads} -c {in} >{out};bzip3 -d -j {threads} -c {in} >{out}",
        "16",
        "[1-9][0-9]?|[1-4][0-9][0-9]|50[0-9]|51[01]",
        ("bzip3",),
        "Debian's package bzip3",
    ),
    "ppmd": Family(
        "PPMd o{level} (7z)",
        "7z a -bd -t7z -mmt={threads} -m0=PPMd:o={level}:mem=256m {out} {in};"
        "7z x -bd -so -mmt={threads} {in} >{out}",
        "16",
        "[2-9]|[12][0-9]|3[0-2]",
        ("7z", "7zz", "7za"),
        "Debian's package p7zip-full, or pip install pyppmd",
        suffix=".7z",
        version=(),
    ),
    "zpaq": Family(
        "zpaq -m{level}",
        "zpaq a {out} {in} -m{level} -t{threads};"
        + f"zpaq x {{in}} {_STORED_NAME} -to {{out}} -t{{threads}}",
        "5",
        "[1-5]",
        ("zpaq",),
        "Debian's package zpaq",
        suffix=".zpaq",
        version=(),
    ),
    "lrzip": Family(
        "lrzip -z",
        "lrzip -z -L{level} -p{threads} -Q -o {out} {in};lrzip -d -p{threads} -Q -o {out} {in}",
        "9",
        "[1-9]",
        ("lrzip",),
        "Debian's package lrzip",
        suffix=".lrz",
    ),
    "paq8px": Family(
        "paq8px -{level}",
        "paq8px -{level} {in} {out};paq8px -d {in} {out}",
        "6",
        "[1-9]|1[0-2]",
        ("paq8px",),
        "github.com/hxim/paq8px",
        version=(),
    ),
    "cmix": Family(
        "cmix",
        "cmix -c {in} {out};cmix -d {in} {out}",
        "",
        "",
        ("cmix",),
        "github.com/byronknoll/cmix",
        version=(),
    ),
    "lstm-compress": Family(
        "lstm-compress",
        "lstm-compress -c {in} {out};lstm-compress -d {in} {out}",
        "",
        "",
        ("lstm-compress",),
        "github.com/byronknoll/lstm-compress",
        version=(),
    ),
}


@dataclass
class Found:
    """What `find` makes of names: the compressors that are there, and where to get those that are missing."""

    compressors: list[Compressor] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def parse_commands(text: str) -> tuple[Command, Command]:
    """Split "compress;decompress" into two commands.

    Words are split as a shell does, quotes included; nothing else of a shell is known.

    Raises:
      ConfigError: it is not two commands, a quote is open, a place is unknown, or one of them lacks a file.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ConfigError(str(error).lower()) from None
    if words.count(";") != 1:
        raise ConfigError("expected two commands, 'compress {in} {out};decompress {in} {out}'")
    border = words.index(";")
    compress, decompress = words[:border], words[border + 1 :]
    return _parse_command("compress", compress), _parse_command("decompress", decompress)


def _parse_command(verb: str, words: list[str]) -> Command:
    if not words:
        raise ConfigError(f"the command to {verb} is empty")
    for name in _PLACEHOLDER.findall(" ".join(words)):
        if name not in ("{in}", "{out}"):
            raise ConfigError(f"the command to {verb} holds {name}: only {{in}} and {{out}} have a meaning")
    for name in ("{in}", "{out}"):
        if sum(word.count(name) for word in words) != 1:
            raise ConfigError(f"the command to {verb} must name {name} once")
    if any(place in words[0] for place in ("{in}", "{out}")):
        raise ConfigError(f"the command to {verb} begins with a file, not with a program")
    plain = tuple(word for word in words if word not in ("<{in}", ">{out}"))
    for word in plain:
        if word.startswith(("<", ">")) or word == "|":
            raise ConfigError(
                f"the command to {verb} holds {word!r}: there is no shell, only <{{in}} and >{{out}}"
            )
    return Command(plain, "<{in}" in words, ">{out}" in words)


def own_command(text: str) -> Compressor:
    """The compressor that `--command NAME=COMPRESS;DECOMPRESS` describes.

    Raises:
      ConfigError: it is not of that form, or a program is not there.
    """
    name, equals, commands = text.partition("=")
    name = name.strip()
    try:
        if not equals or not name:
            raise ConfigError("expected NAME=COMPRESS;DECOMPRESS")
        compress, decompress = parse_commands(commands)
        return Compressor(name, name, _located(compress), _located(decompress))
    except ConfigError as error:
        raise ConfigError(f"--command {text!r}: {error}") from None


def _located(command: Command) -> Command:
    program = shutil.which(command.words[0])
    if program is None:
        raise ConfigError(f"no program {command.words[0]!r} is there")
    return Command((os.path.abspath(program), *command.words[1:]), command.reads_stdin, command.writes_stdout)


def own_level(level: int, threads: int) -> Compressor:
    """`lmz` at a level, as a process of this interpreter."""
    lmz = (sys.executable, "-I", "-m", "lmcodec.cli.lmz", "-q", f"-T{threads}")
    return Compressor(
        f"lmz -{level}",
        "lmcodec",
        Command((*lmz, f"-{level}", "-c", "{in}"), writes_stdout=True),
        Command((*lmz, "-d", "-c", "{in}"), writes_stdout=True),
        suffix=".lmz",
        version=f"lmcodec {__version__}",
    )


def find(names: Sequence[str], threads: int) -> Found:
    """Look for the compressors NAME or NAME:LEVEL.

    Python's own modules stand in for programs that are not installed, under a name that says so.

    Raises:
      ConfigError: a name or a level is unknown.
    """
    found = Found()
    for asked in names:
        name, colon, level = asked.partition(":")
        if name not in FAMILIES:
            raise ConfigError(f"no compressor is called {name!r}: {', '.join(FAMILIES)}, NAME or NAME:LEVEL")
        family = FAMILIES[name]
        if colon and not (family.levels and re.fullmatch(family.levels, level)):
            raise ConfigError(f"{name} has no level {level!r}")
        level = level or family.level
        label = family.name.format(level=level)
        program = next(filter(None, map(shutil.which, family.programs)), None)
        if program is not None:
            found.compressors.append(_of_family(name, family, label, level, program, threads))
        elif stand_in.available(name):
            label = f"PPMd o{level} (Python)" if name == "ppmd" else f"{label} (Python)"
            words = (sys.executable, "-I", "-m", "lmcodec.measure.stand_in", name, level)
            files = ("{in}", "{out}")
            found.compressors.append(
                Compressor(
                    label,
                    name,
                    Command((*words, "compress", *files)),
                    Command((*words, "decompress", *files)),
                    version=f"Python's {stand_in.MODULES[name]}",
                )
            )
        else:
            found.missing[label] = family.source
    return found


def _of_family(name: str, family: Family, label: str, level: str, program: str, threads: int) -> Compressor:
    text = family.commands.replace("{level}", level).replace("{threads}", str(threads))
    program = os.path.abspath(program)
    compress, decompress = (
        Command((program, *command.words[1:]), command.reads_stdin, command.writes_stdout)
        for command in parse_commands(text)
    )
    version = _version(program, family.version)
    return Compressor(label, name, compress, decompress, family.suffix, True, version)


def _version(program: str, arguments: tuple[str, ...]) -> str:
    """The first line with a digit that a program says of itself."""
    try:
        run = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = (run.stdout + b"\n" + run.stderr).decode("utf-8", "replace")
    lines = (line.strip(" *\t\r") for line in text.splitlines())
    return next((line[:80] for line in lines if re.search(r"\d\.\d|v\d|\d{3}", line)), "")


def check_names(compressors: Sequence[Compressor]) -> None:
    """Raises ConfigError if two of them have the same name."""
    seen: Mapping[str, int] = {c.name: sum(d.name == c.name for d in compressors) for c in compressors}
    for name, count in seen.items():
        if count > 1:
            raise ConfigError(f"{count} compressors are called {name!r}")


def stored_name() -> str:
    """The name that a file must have when it is compressed."""
    return _STORED_NAME


def locate(path: Path) -> Path:
    """The compressed file that was asked for, or the only one whose name begins as its does.

    Some programs append a suffix of their own.
    """
    if path.exists():
        return path
    others = [other for other in path.parent.iterdir() if other.name.startswith(path.name)]
    return others[0] if len(others) == 1 else path
