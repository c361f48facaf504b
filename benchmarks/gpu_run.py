"""Plan and run a short rental of a GPU machine that trains a network.

    python benchmarks/gpu_run.py plan [CONFIG] --shards shards [limits] [--set KEY=VALUE ...]
    python3 benchmarks/gpu_run.py run --command K --out "$OUT" [--left SECONDS]

`plan` runs here. It cuts the token shards that `lmcodec train prepare` made into parts that fit beside the
tree under the upload limit, divides the time of the rental into commands, and prints the exact calls to make:
for each the paths to carry, the time limit and the command line.

`run` runs there, in the foreground, in a copy of the tree on a machine that has Python, torch and NumPy, and
neither the package's kernel nor its other dependencies. It copies the part that came to a folder outside the
tree, checks the machine (`check`), trains until the time of the command is over, and leaves the best export,
the learning curve and the log in `--out`. The next command brings more text and goes on from the state on
that machine.

What may fail, and what happens then:

- A check fails or takes too long: it is reported, and training goes on, without Triton if its scan was wrong.
- The training process dies: it goes on from its checkpoint; next without compilation, then without Triton,
  then anew from the best export.
- It hangs: no line of its log for a while, or no end when its time is over. SIGTERM, then SIGKILL.
- The machine is lost: what came home is carried back in `home`, and the run begins from it; without it anew.
- `run` itself is killed: every export is in `--out` as soon as it is written.

The script knows the trainer by its command line and its files alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import lzma
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # the package is a folder of the tree where it is not installed

# Nothing here loads torch: on the machine that takes seconds in which nothing trains.
from lmcodec.errors import ConfigError, LmcodecError, ModelNotFound, one_line  # noqa: E402
from lmcodec.lm.vocab import Vocabulary  # noqa: E402
from lmcodec.train import shards  # noqa: E402
from lmcodec.train.config import TrainConfig, load_config, parse_assignments  # noqa: E402

MIB = 1 << 20
ENGLISH = 3.27  # bytes per token of English prose under the shipped vocabulary
MAX_MACS = 4e6  # multiply-accumulates a byte of English that the codec's levels allow
PASSES = (
    4.0  # over a text up to which repeated text is nearly worth new one (Muennighoff et al., NeurIPS 2023)
)
UNPACKED_TOKENS = 1_500_000  # of a category, from which its compressed size is estimated
TRAINER = [sys.executable, "-m", "lmcodec.train"]
STEP_LINE = re.compile(r"\bstep +[\d,]+/")  # of the trainer's log
CHECKS = ("exact", "scan", "speed")
PLAN_FILE = "plan.json"
COMMON, RESCUE, HOME = "common", "rescue", "home"
STATE_FILE, LOG_FILE, CURVE_FILE, EXPORT = "state.json", "log.txt", "curve.csv", "export"


# What is planned.


@dataclass(frozen=True)
class Limits:
    """What the rental allows.

    Attributes:
        minutes: of the rental; start, transfers and idle time count.
        command_minutes: of one command.
        upload_nbytes: that travel up in one call, the tree included.
        download_files: that travel down in one call.
        download_nbytes: of one of them.
        download_total_nbytes: of all of them.
    """

    minutes: float
    command_minutes: float
    upload_nbytes: int
    download_files: int
    download_nbytes: int
    download_total_nbytes: int


@dataclass(frozen=True)
class Times:
    """What is assumed, in seconds, and in bytes a second.

    Attributes:
        start: of the machine.
        upload_rate, download_rate: of the transfers.
        check: that the checks may take.
        startup: of the training process, until it trains.
        tail: at the end of a command, for the last validation, checkpoint, export and the copies.
        reserve: of the rental that is left alone.
        stall: without a line in the log, after which the training process is taken to hang.
        validate: between validations.
        speed: bytes of text trained on in a second.
    """

    start: float
    upload_rate: float
    download_rate: float
    check: float
    startup: float
    tail: float
    reserve: float
    stall: float
    validate: float
    speed: float


@dataclass(frozen=True)
class Command:
    """One call.

    Attributes:
        number: from 1.
        carry: paths that travel beside the tree.
        before: seconds of the rental that are over when it begins to work.
        seconds: that it works.
        after: seconds of the rental from its end until the next one works, or the rental is over.
        timeout: to give it, in seconds.
    """

    number: int
    carry: list[str]
    before: float
    seconds: float
    after: float
    timeout: int


@dataclass(frozen=True)
class Plan:
    """A rental as `run` reads it on the machine.

    Attributes:
        config: TOML file of the training run, seen from the tree's root.
        folder: of the parts, likewise.
        device: to train on.
        assignments: overrides of the configuration.
        limits, times, commands: of the rental.
    """

    config: str
    folder: str
    device: str
    assignments: list[str]
    limits: Limits
    times: Times
    commands: list[Command]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a file.

        Raises:
            ModelNotFound: there is none.
            ConfigError: it is no plan.
        """
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **table
                | {
                    "limits": Limits(**table["limits"]),
                    "times": Times(**table["times"]),
                    "commands": [Command(**c) for c in table["commands"]],
                }
            )
        except OSError as error:
            raise ModelNotFound(
                f"{path}: no plan there ({error.strerror}): name its folder in carry"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a plan: {error!r}; make it anew with 'plan'") from None


def tree_files(tree: Path) -> list[tuple[int, str]]:
    """Size and name of the files that travel with the tree: tracked, or untracked and not ignored."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
        names = sorted({name for name in listed if name})
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(f"{tree}: not a git checkout: what travels with it is not known") from None
    return [((tree / n).lstat().st_size, n) for n in names if os.path.lexists(tree / n)]


def divide_time(
    limits: Limits, times: Times, fixed: int, parts: Sequence[int], download: int
) -> list[Command]:
    """The commands of a rental, without their paths.

    A command works in proportion to the text that is there by then, so that all commands go over it equally
    often; none for longer than a command may.

    Args:
        limits, times: of the rental.
        fixed: bytes that travel up with every command.
        parts: bytes of new text that travel up with each.
        download: bytes that travel down with every command.

    Raises:
        ConfigError: a command would have no time to train.
    """
    n = len(parts)
    up = [(fixed + nbytes) / times.upload_rate for nbytes in parts]
    down = download / times.download_rate
    total = limits.minutes * 60 - times.start - times.reserve - sum(up) - n * down
    longest = limits.command_minutes * 60 - min(10.0, 0.05 * limits.command_minutes * 60)
    text = [sum(parts[: k + 1]) for k in range(n)]
    overhead = [times.startup + times.tail + (times.check if k == 0 else 0) for k in range(n)]
    free = total - sum(overhead)
    seconds = [o + free * t / sum(text) for o, t in zip(overhead, text, strict=True)]
    for _ in range(n):
        excess = sum(max(0.0, s - longest) for s in seconds)
        seconds = [min(s, longest) for s in seconds]
        room = [k for k in range(n) if seconds[k] < longest]
        for k in room:
            seconds[k] += excess / len(room)
    if min(s - o for s, o in zip(seconds, overhead, strict=True)) <= 0:
        raise ConfigError(
            f"{limits.minutes:g} minutes in {n} commands leave a command no time to train: {total:.0f} s for "
            f"all, {sum(overhead):.0f} s of it for checks, startup and ends; raise --minutes or lower "
            "--commands"
        )
    commands = []
    before = times.start + up[0]
    for k in range(n):
        after = down + (up[k + 1] if k + 1 < n else times.reserve)
        last = k + 1 == n
        whole = math.floor(limits.command_minutes * 60)
        timeout = whole if last else min(whole, math.ceil(seconds[k] + times.tail))
        commands.append(Command(k + 1, [], before, seconds[k], after, timeout))
        before += seconds[k] + after
    return commands


def training_seconds(commands: Sequence[Command], times: Times) -> float:
    """Seconds of training in all commands."""
    return sum(c.seconds - times.startup - times.tail for c in commands) - times.check


def choose_text(
    available: Mapping[str, float],
    packed: Mapping[str, float],
    weights: Mapping[str, float],
    room: float,
    use: float,
) -> tuple[dict[str, float], float]:
    """Bytes of text of each category to take: in proportion to the weights, as far as there is text.

    Args:
        available: bytes of text of each category.
        packed: compressed bytes per byte of text.
        weights: share of each category in the training text.
        room: compressed bytes for all of it.
        use: bytes of text that the time can use.

    Returns:
        the bytes, and how often training goes over the categories of which not all was taken, or over the one
        that it repeats least.
    """
    total = sum(weights.values())

    def taken(level: float) -> dict[str, float]:
        return {c: min(available[c], level * w / total) for c, w in weights.items()}

    low, high = 0.0, use
    for _ in range(60):
        middle = (low + high) / 2
        if sum(n * packed[c] for c, n in taken(middle).items()) <= room:
            low = middle
        else:
            high = middle
    result = taken(low)
    return result, min(use * w / total / result[c] if result[c] else math.inf for c, w in weights.items())


class Planner:
    """Makes a plan and the parts of the text for it.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.limits = Limits(
            options.minutes,
            options.command_minutes,
            int(options.upload_limit * MIB),
            options.download_files,
            int(options.download_limit * MIB),
            int(options.download_total * MIB),
        )
        self.times = Times(
            start=options.start_seconds,
            upload_rate=options.upload_speed * 1e6,
            download_rate=options.download_speed * 1e6,
            check=options.check_seconds,
            startup=options.startup_seconds,
            tail=options.tail_seconds,
            reserve=options.reserve_seconds,
            stall=options.stall_seconds,
            validate=options.validate_seconds,
            speed=options.speed * 1e6,
        )
        self.folder = options.to
        self._check_paths()
        self.config = load_config(options.config, parse_assignments(options.set))
        vocab = self.config.data.vocab
        self.vocabulary = Vocabulary.load(options.config.parent / vocab if vocab else None)
        self.weights = self.config.data.weights
        files = tree_files(options.tree)
        self.largest = sorted(files, reverse=True)[:3]
        # An archive pads its files and names them.
        self.tree_nbytes = sum(size for size, _ in files) + 1024 * len(files)
        self.export_nbytes = self._export_nbytes()
        self.corpus = shards.load(options.shards, self.vocabulary, self.weights)

    def _check_paths(self) -> None:
        tree = self.options.tree.resolve()
        for path in (self.options.config, self.folder):
            if not path.resolve().is_relative_to(tree):
                raise ConfigError(f"{path}: outside the tree {tree}, so it does not travel")
        for source in self.options.shards:
            if self.folder.resolve() in (source.resolve(), *source.resolve().parents):
                raise ConfigError(
                    f"{source}: the parts are written to {self.folder}; name another folder with --to"
                )

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.options.tree.resolve()).as_posix()

    def _export_nbytes(self) -> int:
        """Bytes of an export, which must come home in one call."""
        import torch

        from lmcodec.train.net import Net

        with torch.device("meta"):
            self.n_parameter = Net(self.config.model, allocate=False).n_parameter()
        nbytes = 2 * self.n_parameter + 20_000
        pieces = -(-nbytes // (15 * MIB))
        if (
            pieces + 1 > self.limits.download_files
            or min(nbytes, 15 * MIB) > self.limits.download_nbytes
            or nbytes > self.limits.download_total_nbytes
        ):
            raise ConfigError(
                f"an export of {self.config.name} has {nbytes / MIB:.1f} MiB in {pieces} pieces of at most "
                f"15 MiB and a manifest: the download limits of {self.limits.download_files} files of "
                f"{self.limits.download_nbytes / MIB:.3g} MiB, "
                f"{self.limits.download_total_nbytes / MIB:.3g} MiB in all, do not let it come home"
            )
        return nbytes

    def make(self) -> None:
        """Write the parts and the plan, and print the calls."""
        for name in (COMMON, RESCUE, *(p.name for p in self.folder.glob("part-*"))):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.options.init is not None:
            self._take_init(self.options.init)
        held = self._write_common()
        ratios = self._sample_ratios()
        commands, taken, passes = self._choose(held, ratios)
        self._write_parts(taken, ratios)
        commands = [dataclasses.replace(c, carry=self._carry(c.number)) for c in commands]
        plan = Plan(
            self._relative(self.options.config),
            self._relative(self.folder),
            self.options.device,
            self.options.set,
            self.limits,
            self.times,
            commands,
        )
        plan.write(self.folder / COMMON / PLAN_FILE)
        self._print(plan, taken, passes)

    def _take_init(self, export: Path) -> None:
        """Put the export to begin from into the folder that travels with the first command."""
        home = self.folder / HOME
        if export.resolve() != (home / EXPORT).resolve():
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(export, home / EXPORT)
        if _quality(home / EXPORT, self.weights) is None:
            raise ModelNotFound(f"{export}: not a sound export, so nothing can begin from it")

    def _write_common(self) -> int:
        """The held-out documents, which travel with every command so that validation never changes."""
        folder = self.folder / COMMON
        folder.mkdir()
        for category, documents in self.corpus.items():
            numbers = np.flatnonzero(documents.validation)
            shards.write(
                folder, category, shards.select(documents, numbers, self.vocabulary), self.vocabulary
            )
        return folder_nbytes(folder) + 10_000

    def _sample_ratios(self) -> dict[str, float]:
        """Compressed bytes per byte of training text of each category."""

        def ratio(category: str) -> float:
            documents = self.corpus[category]
            share = min(1.0, UNPACKED_TOKENS / max(len(documents.tokens), 1))
            while not len(numbers := shards.deal(documents, [share])[0]) and share < 1:
                share = min(1.0, 2 * share)  # the first document is longer than the sample
            chosen = shards.select(documents, numbers, self.vocabulary)
            packed = lzma.compress(chosen.tokens.astype("<u2").tobytes(), preset=self.options.preset)
            return len(packed) / max(chosen.n_byte, 1)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = dict(zip(self.corpus, pool.map(ratio, self.corpus), strict=True))
        self.available = {
            c: float(
                self.vocabulary.nbytes[d.tokens[np.repeat(~d.validation, np.diff(d.start))]].sum(
                    dtype=np.int64
                )
            )
            for c, d in self.corpus.items()
        }
        return found

    def _room(self, number: int, held: int) -> int:
        """Bytes for the part of a command, 1 % less than the limit leaves."""
        room = int(0.99 * self.limits.upload_nbytes) - self.tree_nbytes - held
        if number == 1 and self.options.init is not None:
            room -= folder_nbytes(self.folder / HOME)
        if room <= 0:
            files = ", ".join(f"{name} {size / MIB:.1f} MiB" for size, name in self.largest)
            raise ConfigError(
                f"the upload limit of {self.limits.upload_nbytes / MIB:.3g} MiB leaves no room for text: the "
                f"tree has {self.tree_nbytes / MIB:.1f} MiB ({files}, ...), what every command carries "
                f"{held / MIB:.1f} MiB; raise --upload-limit, or ignore files of the tree"
            )
        return room

    def _choose(self, held: int, ratios: dict[str, float]) -> tuple[list[Command], dict[str, float], float]:
        """The number of commands, and the text they bring.

        As few as fill the rental, as each costs a start and two transfers; one more where training would
        otherwise go over its text more than `PASSES` times.
        """
        best: tuple[list[Command], dict[str, float], float] | None = None
        problem: ConfigError | None = None
        fixed = self.options.commands
        for n in range(fixed or 1, (fixed or 12) + 1):
            rooms = [self._room(k + 1, held) for k in range(n)]
            try:
                commands = divide_time(
                    self.limits, self.times, self.tree_nbytes + held, rooms, self.export_nbytes
                )
            except ConfigError as error:
                problem = error
                break
            last = commands[-1]
            unused = self.limits.minutes * 60 - (last.before + last.seconds + last.after)
            if unused > 1 and fixed is None:
                continue
            use = training_seconds(commands, self.times) * self.times.speed
            taken, passes = choose_text(self.available, ratios, self.weights, 0.98 * sum(rooms), use)
            if best is None or passes < 0.99 * best[2]:
                best = commands, taken, passes
                self.rooms = rooms
            if passes <= PASSES or sum(taken.values()) > 0.999 * sum(self.available.values()):
                break
        if best is None:
            raise problem or ConfigError("the rental needs more than 12 commands; raise --command-minutes")
        return best

    def _write_parts(self, taken: dict[str, float], ratios: dict[str, float]) -> None:
        """The parts, and a smaller one that fits beside an export, for a machine that was lost."""
        held = folder_nbytes(self.folder / COMMON) + 10_000
        shares = [room / sum(self.rooms) for room in self.rooms]
        small_nbytes = int(0.01 * self.limits.upload_nbytes)  # the log and what else came home
        rescue_room = self._room(2, held) - self.export_nbytes - small_nbytes
        rooms = {f"part-{k + 1}": room for k, room in enumerate(self.rooms)}
        parts: dict[str, dict[str, Any]] = {name: {} for name in rooms}
        if len(rooms) > 1 and rescue_room > 0:
            rooms[RESCUE], parts[RESCUE] = rescue_room, {}
        whole = sum(n * ratios[c] for c, n in taken.items())
        for category, documents in self.corpus.items():
            share = taken[category] / max(self.available[category], 1)
            dealt = shards.deal(documents, [share * s for s in shares])
            for k, numbers in enumerate(dealt):
                parts[f"part-{k + 1}"][category] = numbers
            if RESCUE in rooms:
                fits = min(0.97 * rescue_room / max(whole, 1), shares[0])
                parts[RESCUE][category] = shards.deal(documents, [share * fits])[0]
        for name, by_category in parts.items():
            for category, numbers in by_category.items():
                if len(numbers) or name == RESCUE:
                    continue
                raise ConfigError(
                    f"the upload limit leaves {name} {rooms[name] / 1000:,.0f} KB: no document of category "
                    f"'{category}' falls into it; raise --upload-limit, or lower --commands"
                )
        if RESCUE in parts and not all(len(numbers) for numbers in parts[RESCUE].values()):
            del parts[RESCUE]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for name in parts:
                (self.folder / name).mkdir()
            jobs = [
                pool.submit(self._write_category, name, category, numbers)
                for name, by_category in parts.items()
                for category, numbers in by_category.items()
            ]
            for job in jobs:
                job.result()
        for name, by_category in parts.items():
            if self._trim(name, by_category, rooms[name]):
                continue
            if name != RESCUE:
                raise ConfigError(
                    f"{name}: the text does not fit into {rooms[name] / 1000:,.0f} KB; raise --upload-limit"
                )
            shutil.rmtree(self.folder / RESCUE)

    def _write_category(self, part: str, category: str, numbers: Any) -> None:
        folder = self.folder / part
        for stale in folder.glob(f"{category}-*{shards.SUFFIX}"):
            stale.unlink()
        documents = shards.select(self.corpus[category], numbers, self.vocabulary)
        shards.write(folder, category, documents, self.vocabulary, self.options.preset)

    def _trim(self, part: str, by_category: dict[str, Any], room: int) -> bool:
        """Take documents of its largest category out of a part that became larger than estimated.

        Returns:
            whether the part fits in the end.
        """
        for _ in range(20):
            over = folder_nbytes(self.folder / part) - room
            if over <= 0:
                return True
            sizes = {
                c: sum(p.stat().st_size for p in (self.folder / part).glob(f"{c}-*{shards.SUFFIX}"))
                for c in by_category
            }
            category = max(sizes, key=lambda c: sizes[c])
            numbers = by_category[category]
            keep = int(len(numbers) * max(0.0, 1 - 1.05 * over / sizes[category]))
            keep = min(keep, len(numbers) - 1)
            if not keep:
                return False
            # Every n-th goes, so that what stays is still spread over the corpus.
            by_category[category] = numbers[[i * len(numbers) // keep for i in range(keep)]]
            self._write_category(part, category, by_category[category])
        return False

    def _carry(self, number: int) -> list[str]:
        names = [COMMON, f"part-{number}"]
        if number == 1 and self.options.init is not None:
            names.append(HOME)
        return [self._relative(self.folder / name) for name in names if (self.folder / name).is_dir()]

    def _print(self, plan: Plan, taken: dict[str, float], passes: float) -> None:
        macs = self.config.model.macs_per_token / ENGLISH
        print(
            f"{self.config.name}: {self.n_parameter:,} parameters, {macs / 1e6:.2f} M multiply-accumulates a "
            f"byte of English; an export has {self.export_nbytes / 1e6:.1f} MB"
        )
        if macs > MAX_MACS:
            print(f"  more than the {MAX_MACS / 1e6:g} M that level 6 allows")
        print(f"tree: {self.tree_nbytes / 1e6:.1f} MB travel with every call")
        total = sum(self.weights.values())
        seconds = training_seconds(plan.commands, self.times)
        use = seconds * self.times.speed
        print(
            f"text: {sum(taken.values()) / 1e6:,.1f} MB taken of {sum(self.available.values()) / 1e6:,.1f}; "
            f"training sees {use / 1e6:,.1f} MB at {self.times.speed / 1e6:g} MB/s, {passes:.1f} passes"
        )
        for category, nbytes in taken.items():
            seen = use * self.weights[category] / total
            print(
                f"  {category:14s} {nbytes / 1e6:8.2f} MB of {self.available[category] / 1e6:8.2f}, "
                f"{seen / max(nbytes, 1):5.1f} passes"
            )
        names = [p.name for p in sorted(self.folder.iterdir()) if p.is_dir()]
        sizes = ", ".join(f"{name} {folder_nbytes(self.folder / name) / 1e6:.1f} MB" for name in names)
        print(f"folders in {plan.folder}: {sizes}")
        t = self.times
        print(
            f"\ntime: {plan.limits.minutes * 60:.0f} s, of which {seconds:.0f} s train; start {t.start:.0f} s"
        )
        for c in plan.commands:
            check = t.check if c.number == 1 else 0.0
            training = c.seconds - check - t.startup - t.tail
            end = " and reserve" if c is plan.commands[-1] else ""
            print(
                f"  command {c.number}: works from {c.before:.0f} s for {c.seconds:.0f} s "
                f"(checks {check:.0f}, startup {t.startup:.0f}, training {training:.0f}, end {t.tail:.0f}), "
                f"then transfers{end} {c.after:.0f} s"
            )
        print("\ncalls, one right after the other:")
        home = f"{plan.folder}/{HOME}"
        for c in plan.commands:
            print(
                f"{c.number}. carry: {' '.join(c.carry)}\n   timeout: {c.timeout} s\n"
                f"   command: {command_line(plan, c)}"
            )
            print(
                f"   after it: mkdir -p {shlex.quote(home)} && cp -r FILES_THAT_CAME/. {shlex.quote(home)}/"
            )
        print(
            "From the second call on add --left SECONDS to the command, if what is left of the rental when\n"
            "it begins is known: better than the assumptions above."
        )
        rescue = self.folder / RESCUE
        if len(plan.commands) > 1:
            carry = [f"{plan.folder}/{n}" for n in (COMMON, RESCUE if rescue.is_dir() else "part-K", HOME)]
            note = (
                ""
                if rescue.is_dir()
                else " (without home, if they are larger than the upload limit together)"
            )
            print(
                "If the machine was lost before call K, make call K with this carry instead, and the next "
                f"ones as above:\n   carry: {' '.join(carry)}{note}"
            )


def command_line(plan: Plan, command: Command) -> str:
    """What to run on the machine, in the tree's root."""
    script = "python3 benchmarks/gpu_run.py run"
    return f'{script} --folder {shlex.quote(plan.folder)} --command {command.number} --out "$OUT"'


def folder_nbytes(folder: Path) -> int:
    """Bytes of the files below a folder, and what an archive adds to them."""
    return sum(p.stat().st_size + 1024 for p in folder.rglob("*") if p.is_file())


# Exports.


def _quality(folder: Path, weights: Mapping[str, float]) -> float | None:
    """Validation bits per byte of a sound export, weighted like the training text; infinite if it says none.

    Returns:
        None if there is no sound export.
    """
    from lmcodec.train import checkpoint

    try:
        _, document = checkpoint.load(folder)
    except (LmcodecError, OSError):
        return None
    last = document.get("curve_last")
    values = {c: last.get(f"valid_{c}") for c in weights} if isinstance(last, dict) else {}
    known = {c: v for c, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
    if not known:
        return math.inf
    return sum(weights[c] * v for c, v in known.items()) / sum(weights[c] for c in known)


def _document(folder: Path) -> dict[str, Any]:
    """What a checkpoint's or an export's manifest says of it; nothing if it cannot be read."""
    try:
        document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["content"]["document"]
        return document if isinstance(document, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever another export or checkpoint takes the folder's place."""
    try:
        status = (folder / "manifest.json").stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    except OSError:
        return ()


# What runs on the machine.


@dataclass(frozen=True)
class Level:
    """One way to train, the next slower and surer than the one before.

    Attributes:
        name: for the report.
        assignments: overrides of the configuration.
        triton: whether it may be imported.
        anew: whether a run of its own begins, from the best export so far.
    """

    name: str
    assignments: tuple[str, ...] = ()
    triton: bool = True
    anew: bool = False


_SINGLE = ("run.graph=false",)
_EAGER = (*_SINGLE, "run.compile=false")
LEVELS = (
    Level("as configured"),
    Level("without a graph", _SINGLE),
    Level("without a graph and compilation", _EAGER),
    Level("without a graph, compilation and Triton", _EAGER, triton=False),
    Level(
        "anew from the best export, without graph, compilation and Triton", _EAGER, triton=False, anew=True
    ),
)
WITHOUT_TRITON = 3
FEW_LANES = 64
SMALL_NBYTES = 256 << 10  # of the log, of the curve and of the state that come home
MAX_ATTEMPTS = 7


@dataclass
class State:
    """What the machine remembers between commands, in a small JSON file.

    Attributes:
        began: when the rental began, in seconds since 1970.
        level: of `LEVELS`, that trains.
        run: number of the run's folder.
        checked: whether the checks are done.
        startup: what the last training process took beside training, in seconds; 0 for none.
        pid: of the training process; 0 for none.
    """

    began: float = 0.0
    level: int = 0
    run: int = 1
    checked: bool = False
    startup: float = 0.0
    pid: int = 0

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The state in a file; None if there is none that can be used."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            kinds = {n: type(value) for n, value in dataclasses.asdict(cls()).items()}
            return cls(**{n: kind(table[n]) for n, kind in kinds.items() if n in table})
        except (OSError, ValueError, TypeError, AttributeError):
            return None


class Runner:
    """One command on the machine.

    Args:
        plan: of the rental.
        options: of the command line.
        began: when this command began, by `time.time`.
    """

    def __init__(self, plan: Plan, options: argparse.Namespace, began: float) -> None:
        self.plan, self.times, self.began = plan, plan.times, began
        self.command = plan.commands[min(options.command, len(plan.commands)) - 1]
        self.work: Path = options.work
        self.out: Path = options.out
        self.folder = Path(plan.folder)
        self.skip_checks: bool = options.skip_checks
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        found = State.read(self.work / STATE_FILE)
        self.lost = found is None and self.command.number > 1
        self.state = found or State()
        self.signalled = False
        self._brought: dict[Path, tuple[int, ...]] = {}
        self._quality: float | None = None
        self._failure = ""
        self._stepped = False
        self._set_clock(options.left)

    # The clock.

    def _set_clock(self, left: float | None) -> None:
        """When the rental ends, and when this command does."""
        command, whole = self.command, self.plan.limits.minutes * 60
        planned = (
            command.seconds
            + sum(c.seconds for c in self._later())
            + sum(c.after for c in (command, *self._later()))
        )
        known = self.state.began + whole - self.began
        # A clock that stood on another machine, or in another rental, says nothing.
        if left is None and self.state.began and 0.25 * planned < known < 1.5 * planned:
            left = known
        if left is None:
            left = planned
        self.state.began = self.began + left - whole
        self.ends = self.began + left
        longest = command.timeout - min(10.0, 0.05 * command.timeout)
        if self._later():
            seconds = command.seconds * left / planned
        else:
            seconds = left - command.after
        self.scale = left / planned
        self.deadline = self.began + max(min(seconds, longest), 0.0)
        self.train_until = self.deadline - self.times.tail

    def _later(self) -> list[Command]:
        return self.plan.commands[self.command.number :]

    def _run_minutes(self, used: float, window: float) -> float:
        """Training time of the whole run: what is used, this command's and the later ones'."""
        startup = self.state.startup or self.times.startup
        here = max(window - startup, 1.0)
        later = sum(max(0.0, c.seconds * self.scale - startup - self.times.tail) for c in self._later())
        return (used + here + later) / 60

    # The command.

    def run(self) -> int:
        """Check, train, bring home; returns the exit status: 0 if an export came home."""
        self._report(
            f"command {self.command.number} of {len(self.plan.commands)}: {self.ends - self.began:.0f} s of "
            f"the rental left, {self.deadline - self.began:.0f} s for this command"
        )
        if self.lost:
            self._report("no state on this machine: it is a fresh one")
        stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        handlers = {n: signal.signal(n, self._stop) for n in stops}
        try:
            self._guarded("ending what ran before", self._end_leftover)
            self._guarded("text", self._bring_text)
            if not self.state.checked and not self.skip_checks:
                self._guarded("checks", self._check)
            self._guarded("training", self._train)
        finally:
            self._guarded("bringing home", self.bring_home)
            self._save()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        home = (self.out / EXPORT / "manifest.json").is_file()
        self._report(
            f"command {self.command.number} ends after {time.time() - self.began:.0f} s: "
            + ("the best export is in the output" if home else "no export better than the one at home")
        )
        self._guarded("bringing home", self._bring_small)
        return 0 if home else 1

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        """Do it, and go on whatever happens."""
        try:
            work()
        except Exception as error:
            line = f"{what} failed: {type(error).__name__}: {error}"
            if line != self._failure:  # some things are tried many times a second
                self._report(line)
            self._failure = line

    def _stop(self, number: int, frame: Any) -> None:
        self.signalled = True

    def _report(self, line: str) -> None:
        """Print a line and write it to the log that comes home."""
        with contextlib.suppress(OSError):
            print(line, flush=True)
        with contextlib.suppress(OSError), open(self.work / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')}  {line}\n")

    def _save(self) -> None:
        try:
            _replace(self.work / STATE_FILE, json.dumps(dataclasses.asdict(self.state), indent=1).encode())
        except OSError as error:
            self._report(f"the state cannot be written: {one_line(error)}")

    def _end_leftover(self) -> None:
        """End a training process whose command was killed: it would keep the run's folder for itself."""
        pid, self.state.pid = self.state.pid, 0
        command_line = Path(f"/proc/{pid}/cmdline")
        until = time.time() + min(10.0, 0.5 * self.times.tail)
        number = signal.SIGTERM
        while pid and command_line.exists() and TRAINER[-1].encode() in command_line.read_bytes():
            self._report(f"training process {pid} of a command before still runs: {number.name}")
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
            while time.time() < until and command_line.exists() and command_line.read_bytes():
                time.sleep(0.05)
            if number == signal.SIGKILL:
                return
            number = signal.SIGKILL

    # The text.

    def _bring_text(self) -> None:
        """Copy the parts that came out of the tree: there they go with the next call."""
        for name in (COMMON, HOME, RESCUE, *sorted(p.name for p in self.folder.glob("part-*"))):
            source, target = self.folder / name, self.work / name
            if not source.is_dir() or (name.startswith("part-") and target.is_dir()):
                continue
            try:
                temporary = self.work / f"{name}.writing"
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(source, temporary)
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            except OSError as error:
                self._report(f"{source} cannot be copied: {one_line(error)}")
        if self.state.run == 1 and self.lost:
            self._remember_home()
        self._save()

    def _remember_home(self) -> None:
        """What the state that came home says of the machine's kind still holds."""
        old = State.read(self.work / HOME / STATE_FILE)
        if old is not None:
            self.state.level = min(old.level, WITHOUT_TRITON)
            self.state.startup = old.startup

    def _shards(self) -> list[Path]:
        """The folders to train on."""
        parts = sorted(self.work.glob("part-[0-9]*"), key=lambda p: (len(p.name), p.name))
        parts = [p for p in parts if p.suffix != ".writing"]
        if not parts and (self.work / RESCUE).is_dir():
            parts = [self.work / RESCUE]
        common = self.work / COMMON
        return ([common] if any(common.glob("*.lms.xz")) else []) + parts

    # The checks.

    def _check(self) -> None:
        """Run the checks, each in a process of its own, within the time for them."""
        until = min(time.time() + self.times.check, self.train_until)
        pending = {name: self._start_check(name) for name in ("exact", "scan")}
        first = time.time() + 0.6 * (until - time.time())
        for name, child in pending.items():
            status = child.wait_until(first, self)
            self._note_check(name, status, child.text())
        speed = self._start_check("speed")
        self._note_check("speed", speed.wait_until(until, self), speed.text())
        self.state.checked = True
        self._save()

    def _start_check(self, name: str) -> Child:
        script = [sys.executable, str(Path(__file__).resolve()), "check", name, "--device", self.plan.device]
        return Child([*script, "--config", self.plan.config], self.work / f"check-{name}.txt", _environment())

    def _note_check(self, name: str, status: int | None, text: str) -> None:
        lines = text.strip().splitlines()
        said = lines[-1][:300] if lines else ""
        if status is None:
            self._report(f"check {name}: not done, its time is over")
            return
        self._report(f"check {name}: {'passed' if status == 0 else f'FAILED (status {status})'}: {said}")
        if name == "scan" and status != 0:
            self.state.level = max(self.state.level, WITHOUT_TRITON)
            self._report(f"training goes on {LEVELS[WITHOUT_TRITON].name}")

    # Training.

    def _run_dir(self) -> Path:
        return self.work / f"run-{self.state.run}"

    def _init(self) -> Path | None:
        """The best sound export to begin a new run from, if any."""
        weights = self._config().data.weights
        candidates = [*self._exports(), self.work / HOME / EXPORT]
        rated = [
            (quality, i) for i, c in enumerate(candidates) if (quality := _quality(c, weights)) is not None
        ]
        return candidates[min(rated)[1]] if rated else None

    def _checkpoint(self) -> dict[str, Any]:
        """What the run's checkpoint says of itself; nothing if there is none."""
        run_dir = self._run_dir()
        return _document(run_dir / "checkpoint") or _document(run_dir / "checkpoint.old")

    def _config(self) -> TrainConfig:
        return load_config(Path(self.plan.config), parse_assignments(self.plan.assignments))

    def _train(self) -> None:
        """Attempts, until one reaches the end of the time."""
        if not self._shards():
            self._report(f"no text on this machine: name {self.folder}/{COMMON} and a part of it in carry")
            return
        retried = False
        for attempt in range(MAX_ATTEMPTS):
            left = self.train_until - time.time()
            # Another attempt is worth it if it gets to train.
            least = (self.state.startup or self.times.startup) if attempt else 0.0
            if self.signalled:
                return
            if left <= least:
                self._report("no time left to train")
                return
            before = self._progress()
            self._stepped = False
            try:
                status, why = self._attempt(left)
            except Exception as error:
                status, why = 1, f"could not be begun or watched: {type(error).__name__}: {error}"
            if status == 0:
                return
            self._report(f"training {why}")
            if self._progress() != before:
                retried = False  # what it did is not lost: once more the same way
            elif self._stepped and not retried:
                retried = True  # it may have been an accident
            else:
                retried = False
                self.state.level = min(self.state.level + 1, len(LEVELS) - 1)
                if LEVELS[self.state.level].anew:
                    self.state.run += 1
        self._report(f"given up after {MAX_ATTEMPTS} attempts")

    def _hear(self, line: str) -> None:
        """Pass on a line of the training process."""
        self._stepped |= STEP_LINE.search(line) is not None
        self._report(line)

    def _progress(self) -> tuple[Any, ...]:
        run_dir = self._run_dir()
        return run_dir, _stamp(run_dir / "checkpoint"), _stamp(run_dir / EXPORT)

    def _attempt(self, left: float) -> tuple[int, str]:
        """Train once; returns 0 if it ended as it should, else another status and why."""
        level, run_dir = LEVELS[self.state.level], self._run_dir()
        document = self._checkpoint()
        used = _number(document.get("seconds"))
        init = None if document else self._init()
        assignments = [
            "run.steps=1000000000",
            "run.checkpoint_minutes=2",
            "run.validate_every=1000000000",
            f"run.validate_minutes={self.times.validate / 60:.4f}",
            f"run.device={self.plan.device}",
            f"run.minutes={self._run_minutes(used, left):.4f}",
            f"run.command_minutes={left / 60:.4f}",
            "data.more=true",
            *(self._lanes(level) if self.plan.device != "cpu" else ()),
            *((f"run.init={json.dumps(str(init.resolve()))}",) if init is not None else ()),
            *self.plan.assignments,
            *level.assignments,
        ]
        self._report(
            f"training {level.name}, {left:.0f} s, "
            + (
                f"from {used:.0f} s of the run"
                if document
                else f"from {init}"
                if init
                else "from the beginning"
            )
        )
        command = [*TRAINER, self.plan.config, "--shards", os.pathsep.join(map(str, self._shards()))]
        command += ["--run-dir", str(run_dir)]
        for assignment in assignments:
            command += ["--set", assignment]
        started = time.time()
        child = Child(command, self.work / "training.txt", _environment(None if level.triton else self.work))
        self.state.pid = child.process.pid
        self._save()
        try:
            status, why = self._watch(child)
        finally:
            child.kill()  # with all that it started
            self.state.pid = 0
        trained = _number(self._checkpoint().get("seconds")) - used
        wall = time.time() - started
        if status == 0 and 0 < trained < wall:
            self.state.startup = min(wall - trained, 120.0, 0.5 * left)
        self._save()
        return status, why

    def _lanes(self, level: Level) -> list[str]:
        """Let the trainer find the lanes, and scale the rates to them; few where all else failed."""
        config = self._config()
        tokens = config.optimiser.batch or config.data.lanes * config.data.window
        return [f"data.lanes={FEW_LANES if level.anew else 0}", f"optimiser.batch={tokens}"]

    def _watch(self, child: Child) -> tuple[int, str]:
        """Relay the trainer's lines and bring exports home until it ends; end it where it does not itself."""
        tail = self.times.tail
        spoke = time.time()
        asked: float | None = None
        why = ""
        while (status := child.process.poll()) is None:
            now = time.time()
            if child.relay(self._hear):
                spoke = now
            self._guarded("bringing home", self.bring_home)
            if asked is None:
                if self.signalled:
                    why = "was stopped by a signal"
                elif now > self.train_until + 0.4 * tail:
                    why = "did not end when its time was over"
                elif now - spoke > self.times.stall:
                    why = f"said nothing for {now - spoke:.0f} s"
                if why:
                    self._report(f"training {why}: SIGTERM")
                    child.process.send_signal(signal.SIGTERM)
                    asked = now
            elif now > asked + min(0.3 * tail, 15.0) or now > self.deadline - 0.2 * tail:
                self._report("training does not answer: SIGKILL")
                child.kill()
                break
            time.sleep(0.2)
        status = child.process.wait()
        child.relay(self._hear)
        if status < 0:
            why = f"{why + ', ' if why else ''}died by {_signal_name(-status)}"
        if status == 0 and why and not self.signalled and time.time() < self.train_until:
            status = 1  # it ended because it was asked to, before its time
        return status, why or f"ended with status {status}"

    # Bringing home.

    def _exports(self) -> list[Path]:
        """Folders that may hold an export: one is set aside while another takes its place."""
        return [
            p
            for run in sorted(self.work.glob("run-*"))
            for p in (run / EXPORT, run / f"{EXPORT}.old")
            if p.is_dir()
        ]

    def bring_home(self) -> None:
        """Copy the best export to the output, if it is better than the one at home, and the small files."""
        fresh = {p: stamp for p in self._exports() if (stamp := _stamp(p)) and self._brought.get(p) != stamp}
        if not fresh:
            return
        weights = self._config().data.weights
        if self._quality is None:
            mine = self.work / HOME / EXPORT
            same = any(_document(mine).get("model") == _document(p).get("model") for p in fresh)
            at_home = _quality(mine, weights) if same else None
            self._quality = math.inf if at_home is None else at_home
        for path, stamp in fresh.items():
            quality = _quality(path, weights)
            if _stamp(path) != stamp:
                continue  # replaced meanwhile: the next look finds it
            self._brought[path] = stamp
            if quality is None:
                self._report(f"{path}: not a sound export")
            elif quality > self._quality:
                self._report(f"an export of {quality:.4f} bpb stays: at home is one of {self._quality:.4f}")
            elif self._fits(path):
                _replace_folder(path, self.out / EXPORT)
                self._quality = quality
                self._report(f"export of {quality:.4f} bpb brought to the output")
        self._bring_small()

    def _fits(self, export: Path) -> bool:
        sizes = [p.stat().st_size for p in export.iterdir()]
        limits = self.plan.limits
        if (
            len(sizes) <= limits.download_files
            and max(sizes) <= limits.download_nbytes
            and sum(sizes) <= limits.download_total_nbytes
        ):
            return True
        self._report(f"{export}: {len(sizes)} files of {sum(sizes):,} bytes: more than may come home")
        return False

    def _bring_small(self) -> None:
        """The end of the log, the curve and the state, as far as the limits have room for them."""
        limits = self.plan.limits
        there = [p.stat().st_size for p in (self.out / EXPORT).glob("*")]
        n_file, room = limits.download_files - len(there), limits.download_total_nbytes - sum(there)
        for source in (self.work / LOG_FILE, self._run_dir() / CURVE_FILE, self.work / STATE_FILE):
            target = self.out / source.name
            if not source.is_file():
                continue
            if n_file <= 0:
                target.unlink(missing_ok=True)
                continue
            most = min(limits.download_nbytes, room, SMALL_NBYTES)
            data = source.read_bytes()
            if len(data) > most:
                data = data[len(data) - most :] if source.name == LOG_FILE else b""
            _replace(target, data)
            n_file, room = n_file - 1, room - len(data)


class Child:
    """A process in a session of its own, whose output goes to a file."""

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str]) -> None:
        self.output = output
        self._at = 0
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    def wait_until(self, until: float, runner: Runner) -> int | None:
        """Its exit status; None if it did not end in time: it is killed then."""
        while (status := self.process.poll()) is None:
            if time.time() > until or runner.signalled:
                self.kill()
                return None
            time.sleep(0.05)
        return status

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def relay(self, report: Callable[[str], None]) -> bool:
        """Report the whole lines that came since the last call; returns whether there were any."""
        with open(self.output, "rb") as file:
            file.seek(self._at)
            data = file.read()
        if self.process.poll() is None:
            data = data[: data.rfind(b"\n") + 1]
        self._at += len(data)
        for line in data.decode("utf-8", "replace").splitlines():
            report(line)
        return bool(data)

    def kill(self) -> None:
        """End it, with all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _environment(no_triton: Path | None = None) -> dict[str, str]:
    """Of a child: it finds the package in the tree, and no Triton if a folder for its stand-in is named."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if no_triton is not None:
        stand_in = no_triton / "no_triton"
        (stand_in / "triton").mkdir(parents=True, exist_ok=True)
        (stand_in / "triton" / "__init__.py").write_text(
            'raise ImportError("Triton is switched off")\n', encoding="utf-8"
        )
        paths.insert(0, str(stand_in))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _replace(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(data)
    temporary.replace(path)


def _replace_folder(source: Path, target: Path) -> None:
    """Copy a folder; what stood there goes when the copy is complete.

    The copy is made beside the folder that comes home: a command killed meanwhile brings nothing else.
    """
    staging = target.parent.with_name(target.parent.name + ".staging")
    try:
        staging.mkdir(exist_ok=True)
        if staging.stat().st_dev != target.parent.stat().st_dev:
            raise OSError("another file system")
    except OSError:
        staging = target.parent
    new, old = staging / "new", staging / "old"
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    if staging != target.parent:
        shutil.rmtree(staging, ignore_errors=True)


# The checks, each run by a process of its own.


def check_exact(device: str) -> str:
    """The smallest shipped model must compute on the device what its definition says."""
    import lmcodec.models
    from lmcodec.lm.recurrent import file as recurrent_file
    from lmcodec.lm.recurrent.torch_backend import TorchNetwork

    folder = Path(lmcodec.models.__file__).parent
    path = min(folder.glob("*.lmm"), key=lambda p: p.stat().st_size)
    loaded = recurrent_file.load(path)
    answers = []
    for products in ("float32", "auto"):
        network = TorchNetwork(loaded.model, device, products)
        network.self_test(loaded.known)
        answers.append(network.products)
    return f"{path.name} on {device}: the known answer, products in {' and '.join(dict.fromkeys(answers))}"


def check_scan(device: str) -> str:
    """The scan that training uses against a loop in float64, values and gradients."""
    import torch

    from lmcodec.train.scan import linear_scan

    generator = torch.Generator().manual_seed(1)
    shape = (77, 3, 130)  # no multiple of a block's size
    a = torch.rand(shape, generator=generator)
    v, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    h0 = torch.randn(shape[1:], generator=generator)
    exact = [t.double().requires_grad_() for t in (a, v, h0)]
    states = [exact[2]]
    for t in range(shape[0]):
        states.append(exact[0][t] * states[-1] + exact[1][t])
    expected = torch.stack(states[1:])
    expected.backward(grad.double())
    there = [t.detach().to(device).requires_grad_() for t in (a, v, h0)]
    found = linear_scan(*there)
    found.backward(grad.to(device))
    pairs = [(expected, found), *((e.grad, f.grad) for e, f in zip(exact, there, strict=True))]
    worst = max(
        float((e.detach() - f.detach().cpu().double()).abs().max() / e.detach().abs().max()) for e, f in pairs
    )
    if not worst < 1e-5:
        raise ConfigError(f"the scan on {device} differs from the loop by {worst:.2g} of the largest value")
    return f"the scan on {device} equals the loop to {worst:.1g}"


def check_speed(device: str, config: str) -> str:
    """The speed of a training step."""
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "train_step.py"),
        "--device",
        device,
        "--config",
        config,
    ]
    if device != "cpu":
        script += ["--lanes", "64", "--eager"]  # compiling takes longer than a check may
    done = subprocess.run(script, capture_output=True, text=True, check=False, encoding="utf-8")
    lines = done.stdout.strip().splitlines()
    speed = [line for line in lines if "ms a step" in line]
    if done.returncode or not speed:
        raise ConfigError(((done.stderr or done.stdout).strip().splitlines() or ["no word"])[-1])
    return speed[0]


# The command line.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="action", required=True)
    plan = commands.add_parser("plan", help="cut the text into parts and print the calls to make")
    config = ROOT / "lmcodec" / "train" / "configs" / "large.toml"
    add = plan.add_argument
    add("config", type=Path, nargs="?", default=config, help="of the training run (default: large.toml)")
    add(
        "--shards",
        type=Path,
        action="append",
        help="folder of token shards, more than one if repeated (shards)",
    )
    add(
        "--to", type=Path, default=Path("shards/gpu"), help="folder of the parts, ignored by git (shards/gpu)"
    )
    add("--tree", type=Path, default=Path(), help="the checkout that travels (.)")
    add("--init", type=Path, help="export to begin from: it travels with the first command")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configuration")
    add("--device", default="cuda", help="to train on (cuda)")
    add("--commands", type=int, help="how many (default: as few as fill the time and bring enough text)")
    add("--preset", type=int, default=6, choices=range(10), help="of xz (6)")
    limits = (
        ("minutes", 15.0, "of the rental: start, transfers and idle time count"),
        ("command-minutes", 10.0, "of a command"),
        ("upload-limit", 64.0, "MiB up with a call, tree included"),
        ("download-limit", 16.0, "MiB of a file that comes home"),
        ("download-total", 64.0, "MiB of all files that come home"),
        ("start-seconds", 90.0, "until the machine is there"),
        ("upload-speed", 5.0, "MB/s"),
        ("download-speed", 5.0, "MB/s"),
        ("check-seconds", 30.0, "for the checks"),
        ("startup-seconds", 30.0, "of the training process"),
        ("tail-seconds", 25.0, "for the end of a command: checkpoint, export, copies"),
        ("reserve-seconds", 30.0, "of the rental that is left alone"),
        ("stall-seconds", 90.0, "of silence, after which training is taken to hang"),
        ("validate-seconds", 45.0, "between validations, about"),
        ("speed", 2.5, "MB of text a second, assumed"),
    )
    for name, value, text in limits:
        add(f"--{name}", type=float, default=value, help=f"{text} ({value:g})")
    add("--download-files", type=int, default=8, help="that come home with a call (8)")
    run = commands.add_parser("run", help="one command, on the machine")
    run.add_argument("--command", type=int, required=True, help="its number in the plan, from 1")
    run.add_argument("--folder", type=Path, default=Path("shards/gpu"), help="of the plan (shards/gpu)")
    run.add_argument("--out", type=Path, required=True, help="folder whose files come home")
    run.add_argument(
        "--work", type=Path, default=Path("/tmp/gpu_run"), help="folder that stays (/tmp/gpu_run)"
    )
    run.add_argument("--left", type=float, help="seconds left of the rental, if known")
    run.add_argument("--skip-checks", action="store_true", help="train at once")
    check = commands.add_parser("check", help="one check of the machine")
    check.add_argument("name", choices=CHECKS)
    check.add_argument("--device", default="cuda")
    check.add_argument("--config", default=str(config))
    return parser


def main(arguments: list[str] | None = None) -> int:
    began = time.time()
    options = _parser().parse_args(arguments)
    try:
        if options.action == "plan":
            if not all(
                getattr(options, n) > 0
                for n in ("minutes", "command_minutes", "upload_speed", "download_speed", "speed")
            ):
                raise ConfigError("minutes and speeds must be larger than 0")
            if options.commands is not None and options.commands < 1:
                raise ConfigError(f"--commands {options.commands}: at least 1")
            options.shards = options.shards or [Path("shards")]
            Planner(options).make()
            return 0
        if options.action == "check":
            if options.name == "speed":
                print(check_speed(options.device, options.config))
            else:
                print({"exact": check_exact, "scan": check_scan}[options.name](options.device))
            return 0
        if options.command < 1:
            raise ConfigError(f"--command {options.command}: commands are numbered from 1")
        if options.out == Path():
            raise ConfigError("--out is empty: name the folder whose files come home")
        plan = _find_plan(options)
        return Runner(plan, options, began).run()
    except (LmcodecError, OSError) as error:
        print(f"gpu_run: {one_line(error)}", file=sys.stderr)
        return 1


def _find_plan(options: argparse.Namespace) -> Plan:
    """The plan that came with this command, else the one that came with an earlier one."""
    try:
        return Plan.read(options.folder / COMMON / PLAN_FILE)
    except LmcodecError:
        if (options.work / COMMON / PLAN_FILE).is_file():
            return Plan.read(options.work / COMMON / PLAN_FILE)
        raise


if __name__ == "__main__":
    sys.exit(main())
