"""Manual pages of what the commands say of themselves: `python -m lmcodec.cli.man FOLDER` writes them.

The pages are kept in `lmcodec/man` and installed into `share/man/man1`; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

PAGES = ("lmz", "unlmz", "lmzcat", "lmzgrep", "lmzless", "lmzdiff", "lmcodec")
_ABOUT = {
    "lmz": "compress text with a language model",
    "unlmz": "decompress files of lmz",
    "lmzcat": "write decompressed files to standard output",
    "lmzgrep": "search compressed files",
    "lmzless": "show compressed files page by page",
    "lmzdiff": "compare compressed files",
    "lmcodec": "lossless text compression with a language model",
}


def _escaped(text: str) -> str:
    """Text as roff takes it: no line begins with a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.replace("\b", "").split()))


def _metavar(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    kind = option.type
    if kind.name in ("integer", "integer range", "float", "float range"):
        return "N"
    return "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else kind.name.upper()


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in option.opts)
        metavar = _metavar(option)
        yield ".TP"
        yield f"{names} \\fI{_escaped(metavar)}\\fR" if metavar else names
        default = option.default if option.show_default and option.default is not None else None
        yield from _paragraphs((option.help or "") + (f"  [default: {default}]" if default else ""))


def _arguments(command: click.Command) -> str:
    found = [p for p in command.params if isinstance(p, click.Argument)]
    names = [(p.metavar or (p.name or "").upper(), p.nargs == -1) for p in found]
    return "".join(f" [\\fI{_escaped(name)}\\fR]..." if many else f" \\fI{name}\\fR" for name, many in names)


def _subcommands(name: str, group: click.Group) -> Iterator[str]:
    for child, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _subcommands(f"{name} {child}", command)
            if not command.invoke_without_command:
                continue
        yield f'.SS "{name} {child}"'
        yield f"\\fB{_escaped(f'{name} {child}')}\\fR [\\fIOPTIONS\\fR]{_arguments(command)}"
        yield ".PP"
        yield from _paragraphs(command.help or "")
        yield from _options(command)


def _of_click(name: str, command: click.Command) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    rest = " \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]..." if isinstance(command, click.Group) else ""
    yield f"\\fB{name}\\fR [\\fIOPTIONS\\fR]{rest or _arguments(command)}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    yield ".SH OPTIONS"
    yield from _options(command)
    yield ".TP"
    yield "\\fB\\-h\\fR, \\fB\\-\\-help\\fR"
    yield "Show a message that says all this, and exit."
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        yield from _subcommands(name, command)
    if command.epilog:
        yield '.SH "ENVIRONMENT AND EXIT STATUS"'
        yield from _paragraphs(command.epilog)


def _of_text(name: str, text: str) -> Iterator[str]:
    """A page of a help text that is laid out for a terminal."""
    usage, _, body = text.partition("\n")
    yield ".SH SYNOPSIS"
    yield _escaped(usage.removeprefix("Usage: ")).replace(name, f"\\fB{name}\\fR", 1)
    yield ".SH DESCRIPTION"
    for paragraph in re.split(r"\n\s*\n", body.strip("\n")):
        lines = paragraph.splitlines()
        if any(re.match(r"  -", line) for line in lines):
            for line in lines:
                option = re.match(r"  (-.*?)  +(.*)", line)
                if option:
                    yield ".TP"
                    yield f"\\fB{_escaped(option[1])}\\fR"
                yield _escaped((option[2] if option else line).strip())
            yield ".PP"
        else:
            yield ".PP"
            yield from _paragraphs(paragraph)


def page(name: str) -> str:
    """The source of the manual page of a command."""
    from lmcodec.cli import grep, lmz, main, view

    texts = {"lmzgrep": grep.HELP, "lmzless": view.LESS_HELP, "lmzdiff": view.DIFF_HELP}
    if name in texts:
        body = _of_text(name, texts[name])
    else:
        body = _of_click(name, main.group if name == "lmcodec" else lmz.command_named(name))
    others = ", ".join(f"\\fB{other}\\fR(1)" for other in PAGES if other != name)
    lines = [f'.TH {name.upper()} 1 "" "lmcodec" "User Commands"', ".SH NAME", f"{name} \\- {_ABOUT[name]}"]
    return "\n".join([*lines, *body, '.SH "SEE ALSO"', others]) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for command_name in PAGES:
        (folder / f"{command_name}.1").write_text(page(command_name), "utf-8")
