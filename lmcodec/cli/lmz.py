"""`lmz`, `unlmz` and `lmzcat`, the front that gzip, xz and zstd have, and the like subcommands of `lmcodec`.

Options only; `operate` does the work and is loaded when there is some.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from lmcodec import __version__
from lmcodec.errors import ConfigError, LmcodecError, one_line

DEFAULT_LEVEL = 6
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Size(click.ParamType):
    """A number of bytes: 65536, 64K, 4M, 16MiB; all units are powers of 1024."""

    name = "size"

    def __init__(self, low: int = 0, high: int | None = None) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:I?B)?", str(value).strip().upper())
        if not match:
            self.fail(f"{value!r} is not a size such as 65536, 64K or 16MiB", param, ctx)
        nbytes = int(match[1]) << _UNITS[match[2]]
        if nbytes < self._low or (self._high is not None and nbytes > self._high):
            self.fail(f"{value!r} is not in the range of {self._low} to {self._high} bytes", param, ctx)
        return nbytes


def _suffix(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value or "/" in value or os.sep in value:
        raise click.BadParameter(f"{value!r} cannot end a file name")
    return value


def _flag(*names: str, help: str, hidden: bool = False, value: Any = True) -> click.Option:
    """An option without argument; of several with one destination the last one given wins."""
    return click.Option(
        names, is_flag=True, flag_value=value, default=None, type=click.UNPROCESSED, help=help, hidden=hidden
    )


_MODES = [
    _flag("-z", "--compress", "mode", value="compress", help="Compress (what lmz does by itself)."),
    _flag("-d", "--decompress", "mode", value="decompress", help="Decompress."),
    _flag("-t", "--test", "mode", value="test", help="Decompress, keep nothing, report errors."),
    _flag("-l", "--list", "mode", value="list", help="Show sizes and blocks without decompressing."),
]
_STDOUT = [_flag("-c", "--stdout", "to_stdout", help="Write to standard output.")]
_OUTPUT = [
    click.Option(["-o", "--output"], type=click.Path(readable=False), metavar="FILE", help="Write to FILE."),
    click.Option(
        ["--output-dir"],
        type=click.Path(readable=False, file_okay=False),
        metavar="FOLDER",
        help="Write into FOLDER, which is made if it is not there.",
    ),
    _flag("-k", "--keep", "removal", value="keep", help="Keep the input (the default)."),
    _flag("--rm", "removal", value="remove", help="Remove the input when the output is safe on the disk."),
    _flag(
        "-f",
        "--force",
        help="Overwrite; take links, special files and any suffix; use terminals. -dcf passes on what is not"
        " compressed.",
    ),
]
_FILES = [
    _flag("-r", "--recursive", help="Take the files in folders."),
    click.Option(
        ["--exclude"],
        multiple=True,
        metavar="PATTERN",
        help="Leave out files and folders whose name or path fits, as '*.gz'. May be repeated.",
    ),
    click.Option(
        ["--files-from"],
        multiple=True,
        type=click.Path(allow_dash=True, readable=False),
        metavar="LIST",
        help="Take the files that LIST names, one in a line; - is standard input. May be repeated.",
    ),
    _flag("--null", help="Names in LIST end with a zero byte, as find -print0 writes them."),
    click.Option(
        ["-S", "--suffix"],
        default=".lmz",
        show_default=True,
        metavar=".SUF",
        callback=_suffix,
        help="Suffix of compressed files.",
    ),
]
_LEVELS = [
    _flag("-1", "--fast", "level", value=1, help="Fastest level, as -2 without a language model."),
    *(_flag(f"-{n}", "level", value=n, help=f"Level {n}.", hidden=True) for n in range(2, 9)),
    _flag(
        "-9",
        "--best",
        "level",
        value=9,
        help="Smallest output. -3 to -9 use a language model where it helps, from -6 on the largest one"
        f" shipped.  [default: -{DEFAULT_LEVEL}]",
    ),
]
MODEL: dict[str, Any] = {
    "metavar": "NAME|FILE",
    "help": "Language model: the name or id of one that is shipped or in the models folder, or a file. An"
    " imported one is a candidate beside the level's own. hf:PATH or hf:OWNER/NAME is any causal model of"
    " transformers, whose frames only the same environment restores.",
}
METHOD: dict[str, Any] = {
    "type": click.Choice(["auto", "cm", "lm+cm", "lm", "stored"]),
    "help": "Code every block by one method: context models, a language model beside them, a language model"
    " alone, or none.  [default: auto, whichever is smallest]",
}
BLOCK_SIZE: dict[str, Any] = {
    "type": Size(1 << 10, 1 << 24),
    "help": "Original bytes in a block, 1K to 16M.  [default: 4M]",
}
_MODEL = [
    click.Option(["--model"], **MODEL),
    click.Option(
        ["--device"],
        type=click.Choice(["cpu", "cuda"]),
        help="What computes the language model; cuda takes PyTorch. No byte depends on it, but of hf: models."
        "  [default: cpu]",
    ),
    click.Option(
        ["--executor"],
        type=click.Choice(["kernel", "numpy", "torch", "torch-cuda"]),
        help="What computes the language model, more closely: torch is PyTorch on the CPU.",
    ),
    click.Option(
        ["--dtype"],
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Type of the numbers of a model hf:.  [default: float32, or what the frame says]",
    ),
    _flag("--download", help="Fetch a model hf:OWNER/NAME that the local cache of the hub lacks."),
]
_PRIOR = [
    click.Option(
        ["--prior"],
        multiple=True,
        type=click.Path(readable=False),
        metavar="FILE",
        help="Begin with the prior in FILE (lmcodec prior train), as whoever decompresses must. May be"
        " repeated to decompress.",
    )
]
_BASE = [
    click.Option(
        ["--base"],
        type=click.Path(readable=False),
        metavar="FILE",
        help="Code tensors as differences from those of FILE, as an earlier checkpoint; decompressing needs"
        " the same FILE.",
    ),
]
_ENCODING = [
    _flag("--model-only", help="Use the model that --model names, whether it pays for a file or not."),
    click.Option(["--method"], **METHOD),
    click.Option(["--block-size", "block_nbytes"], **BLOCK_SIZE),
    _flag("--solid", help="Let blocks build on those before: smaller, no random access."),
    _flag("--verify", help="Decode what was written before it counts as done."),
    _flag("--rsyncable", help="Cut blocks where the text says, so that a small change changes little."),
    click.Option(
        ["--flush-timeout"],
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        help="Write what came through a pipe S seconds later at the latest.",
    ),
]
_RESTORING = [
    _flag("--salvage", help="Give back what of a damaged file is sound, and say what is missing; status 1."),
    _flag("--no-sparse", "sparse", value=False, help="Write zeros, too, instead of leaving holes."),
]
_DECODING = [
    click.Option(["--memlimit", "memory_limit"], type=Size(), help="Most memory that a frame may need."),
    click.Option(["--max-output"], type=Size(), help="Most bytes that a file may decode to."),
    click.Option(
        ["--max-ratio"],
        type=click.FloatRange(0, min_open=True),
        metavar="N",
        help="Most bytes that each byte of a file may decode to.",
    ),
    click.Option(
        ["--max-cpu-seconds"],
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        help="Most processor time that decoding a file may take.",
    ),
]
_THREADS = [
    click.Option(
        ["-T", "--threads"], type=click.IntRange(0, 1024), metavar="N", help="Threads; 0: one a core."
    )
]
_LISTING = [_flag("--json", help="List as JSON.")]
_MESSAGES = [
    click.Option(["-v", "--verbose"], count=True, help="Say what was done."),
    click.Option(["-q", "--quiet"], count=True, help="No warnings; twice: no errors."),
]
_PROGRESS = [_flag("--no-progress", help="No progress, on a terminal either.")]
_OPERANDS = [click.Argument(["files"], nargs=-1, type=click.Path(allow_dash=True, readable=False))]
_CONTEXT = {"help_option_names": ["-h", "--help"]}
_EPILOG = (
    "LMCODEC_LEVEL, LMCODEC_THREADS and LMCODEC_MODEL in the environment set defaults. The exit status is"
    " 0 if all went well, 1 after an error, 2 after a warning."
)


def _operate(program: str, mode: str, given: dict[str, Any]) -> int:
    """Turn options into settings and work; returns the exit status."""
    # NumPy's linear algebra, which has nothing to do here, would start threads that wait for it busily.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lmcodec.cli.operate import Settings, operate

    operands = given.pop("files")
    mode = given.pop("mode", None) or mode
    level, threads = given.pop("level", None), given.pop("threads", None)
    if level is None and mode == "compress":
        level = from_environment("LMCODEC_LEVEL", 1, 9)
    verbosity = given.pop("verbose") - given.pop("quiet")
    if threads is None and mode != "list":
        try:
            threads = from_environment("LMCODEC_THREADS", 0, 1024)
        except ConfigError as error:
            if mode == "compress":
                raise
            from lmcodec.cli.console import Console  # what was compressed decodes in any environment

            Console(program, verbosity).info(None, f"{error}; it is ignored")
    if given.get("output") in ("-", "/dev/stdout"):
        given["to_stdout"] = bool(given.pop("output"))
    settings = Settings(
        mode=mode,  # type: ignore[arg-type]
        program=program,
        level=level or DEFAULT_LEVEL,
        threads=core_count() if threads == 0 else threads,
        remove=given.pop("removal", None) == "remove",
        verbosity=verbosity,
        progress=not given.pop("no_progress", None),
        computed_by=given.pop("executor", None),
        **{name: value for name, value in given.items() if value is not None},
    )
    return operate(settings, operands)


def from_environment(name: str, low: int, high: int) -> int | None:
    """The number that an environment variable holds; None if it is not set, or empty.

    Raises:
      ConfigError: it holds something else.
    """
    text = os.environ.get(name)
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,4}", text) or not low <= int(text) <= high:
        raise ConfigError(f"the environment variable {name} is {text!r}, expected {low} to {high}")
    return int(text)


def core_count() -> int:
    """What 0 stands for where a number of threads or processes is asked for."""
    from lmcodec.codec import available_cpus

    return available_cpus()


def refuse_empty(command: click.Command) -> click.Command:
    """Have the command and its subcommands refuse every option whose argument is empty.

    An empty argument is mostly a variable that was not set; a path of it would mean the current folder.
    """

    def checked(option: click.Option) -> Callable[[click.Context, Any], Any]:
        process = option.process_value

        def process_value(ctx: click.Context, value: Any) -> Any:
            if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                raise click.BadParameter("'' is empty", ctx, option)
            return process(ctx, value)

        return process_value

    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag:
            parameter.process_value = checked(parameter)  # type: ignore[method-assign, assignment]
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            refuse_empty(subcommand)
    return command


def _command(
    name: str, mode: str, help: str, params: list[click.Parameter], **defaults: Any
) -> click.Command:
    def callback(**given: Any) -> None:
        ctx = click.get_current_context()
        given = defaults | {key: value for key, value in given.items() if value is not None}
        ctx.exit(_operate(ctx.find_root().info_name or name, mode, given))

    return click.Command(
        name, params=params, callback=callback, help=help, epilog=_EPILOG, context_settings=_CONTEXT
    )


def front(program: str, mode: str, help: str, **defaults: Any) -> click.Command:
    """A command with all options, as `program`, that does `mode` unless told otherwise."""
    coding = (_LEVELS, _MODEL, _PRIOR, _BASE, _ENCODING, _RESTORING, _DECODING, _THREADS)
    groups = (_MODES, _STDOUT, _OUTPUT, _FILES, *coding, _LISTING, _MESSAGES, _PROGRESS)
    params = [*_OPERANDS, *(option for group in groups for option in group)]
    version = click.version_option(__version__, "-V", "--version", message=f"{program} %(version)s")
    return refuse_empty(version(_command(program, mode, help, params, **defaults)))


def subcommands() -> list[click.Command]:
    """`compress`, `decompress`, `test` and `list` of the group `lmcodec`."""
    end = [*_MESSAGES, *_PROGRESS]
    written = [*_OPERANDS, *_STDOUT, *_OUTPUT, *_FILES]
    return [
        _command(
            "compress",
            "compress",
            "Compress FILES, each to FILE.lmz; standard input if there are none.",
            [*written, *_LEVELS, *_MODEL, *_PRIOR, *_BASE, *_ENCODING, *_THREADS, *end],
        ),
        _command(
            "decompress",
            "decompress",
            "Decompress FILES; standard input if there are none.",
            [*written, *_MODEL, *_PRIOR, *_BASE, *_RESTORING, *_DECODING, *_THREADS, *end],
        ),
        _command(
            "test",
            "test",
            "Decompress FILES to nowhere and report errors.",
            [*_OPERANDS, *_FILES, *_MODEL, *_PRIOR, *_BASE, *_RESTORING[:1], *_DECODING, *_THREADS, *end],
        ),
        _command(
            "list",
            "list",
            "Show the sizes and blocks of FILES without decompressing.",
            [*_OPERANDS, *_FILES, *_LISTING, *_MESSAGES],
        ),
    ]


def _fail(program: str, message: str) -> int:
    from lmcodec.cli.console import Console

    Console(program).error(None, message)
    return 1


def enter(command: click.Command, arguments: list[str] | None, program: str) -> NoReturn:
    """Run a command: every error is one line on stderr and exit status 1, 2 is left to warnings.

    Ctrl-C and a closed standard output kill the process as they would have without us.
    """
    # At its end the interpreter would look through all there is for cycles; it goes with the process.
    atexit.register(gc.freeze)
    stdout = sys.stdout
    try:
        status = command.main(args=arguments, prog_name=program, standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        status = 130
    except SystemExit:
        # Where nobody reads standard output, click puts something harmless in its place and exits.
        if sys.stdout is not stdout and hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
        raise
    except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:  # since click 8.2
        error.show()
        status = 1
    except click.ClickException as error:
        status = _fail(program, f"{error.format_message().rstrip('.')} (-h helps)")
    except LmcodecError as error:
        status = _fail(program, one_line(error))
    except OSError as error:
        # Help or version did not fit on standard output; the interpreter would try again when it ends.
        status = _fail(program, one_line(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except MemoryError:
        status = _fail(program, "out of memory")
    except Exception as error:  # our bug, or no memory for a thread
        status = _fail(program, f"internal error, please report it: {type(error).__name__}: {error}")
    sys.exit(status)


def command_named(program: str) -> click.Command:
    """`lmz`, `unlmz` or `lmzcat`."""
    if program == "unlmz":
        help = "Decompress FILES; standard input if there are none. The same as lmz -d."
        return front("unlmz", "decompress", help)
    if program == "lmzcat":
        help = "Write FILES decompressed to standard output, what is not compressed as it is."
        help += " The same as lmz -dcf."
        return front("lmzcat", "decompress", help, to_stdout=True, force=True)
    help = "Compress FILES, each to FILE.lmz, or decompress them; standard input if there are none."
    return front("lmz", "compress", help)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `lmz`."""
    enter(command_named("lmz"), arguments, "lmz")


def unlmz(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `unlmz`, which is `lmz -d`."""
    enter(command_named("unlmz"), arguments, "unlmz")


def lmzcat(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `lmzcat`, which is `lmz -dcf`."""
    enter(command_named("lmzcat"), arguments, "lmzcat")


if __name__ == "__main__":
    main()
