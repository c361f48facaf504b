"""Measures the figures of README and lmcodec/docs/BENCHMARKS.md and keeps the answers in a dated file.

    python benchmarks/figures.py [--parts sizes speed …] [--quick] [--rounds 3] [--jobs 1] [--out FOLDER]
    python benchmarks/figures.py --list

Writes benchmarks/results/YYYY-MM-DD.md, with machine, versions and the command of every part, and a .csv of
all figures beside it (part, what, value, unit); a second run of a day gets a number of its own. Both are
written anew after each part, so that what was measured is kept if a later one fails or is interrupted. All
parts together take more than an hour of one core: `--list` says how long each is. `--quick` takes a little of
everything, in minutes, to see that it works; its figures are none to state.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

import codec_bpb
import codec_memory
import codec_speed

import lmcodec
from lmcodec.measure import bench, machine, peers
from lmcodec.train.corpus import corpora_dir

RESULTS = Path(__file__).parent / "results"
LEVELS = [1, 2, 3, 6]
MESSAGE_NBYTES = 1000
MESSAGES = 32  # of each English file


@dataclass(frozen=True)
class Options:
    quick: bool
    rounds: int
    jobs: int
    plot: Path  # where the part that draws may do so


@dataclass
class Answer:
    """What a part found: Markdown for people, figures for programs."""

    lines: list[str] = field(default_factory=list)
    figures: list[tuple[str, float, str]] = field(default_factory=list)  # what, value, unit

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        self.lines += ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        self.lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]


def sizes(options: Options) -> Answer:
    """Frames of the first 128 KiB of the development files by kind, beside published sizes of others."""
    nbytes = 4096 if options.quick else codec_bpb.PEERS_NBYTES
    files, sums = codec_bpb.sizes_of_dev(LEVELS, nbytes, options.jobs)
    answer = Answer()
    names = [*(() if options.quick else codec_bpb.PEERS), *(f"level{level}" for level in LEVELS)]
    rows = [[kind, *(f"{row[name]:,}" for name in ("bytes", *names))] for kind, row in sums.items()]
    answer.table(["", "bytes", *names], rows)
    for kind, row in sums.items():
        answer.figures += [(f"{kind}, {name}", row[name], "bytes") for name in names]
    if not options.quick:
        for level in LEVELS:
            for others in (("ppmd", "zpaq5"), ("paq8px",)):
                won = codec_bpb.n_smaller(files, level, others)
                what = f"files that level {level} makes smaller than {' and '.join(others)}"
                answer.lines.append(f"{what}: {won} of {len(files)}.  ")
                answer.figures.append((what, won, "files"))
    return answer


def compare(options: Options) -> Answer:
    """Sizes, speeds and memory beside all compressors that are installed, every one a process, in one run."""
    paths = [str(path) for path in codec_bpb.dev_paths()]
    limit, runs = (codec_bpb.PEERS_NBYTES, options.rounds)
    if options.quick:
        paths, limit, runs = paths[::10], 16_384, 1
    found = peers.find(list(peers.FAMILIES), 1)
    compressors = [*(peers.own_level(level, 1) for level in LEVELS), *found.compressors]
    inputs, _ = bench.gather(paths, (limit,))
    report = bench.run(
        compressors, inputs, runs=runs, on_failure=lambda failure: print(failure, file=sys.stderr)
    )
    report.missing = found.missing
    answer = Answer()
    for title, measurements in bench.sections(report):
        answer.lines += [f"{title}:", ""]
        head, *rows = bench.rows(report, measurements)
        answer.table(head, rows)
    answer.lines += [f"{line}  " for line in bench.notes(report)]
    answer.lines += [f"- failed: {failure}" for failure in report.failures]
    answer.lines += ["", *(f"- {c.name}: {c.version}" for c in compressors if c.version)]
    for m in report.totals(limit):
        answer.figures += [
            (f"{m.compressor}, size", m.packed_nbytes, "bytes"),
            (f"{m.compressor}, bits per byte", m.bpb, "bits"),
            (f"{m.compressor}, compression", m.compress_speed, "MB/s"),
            (f"{m.compressor}, decompression", m.decompress_speed, "MB/s"),
        ]
        for verb, peak in (("compression", m.compress_peak), ("decompression", m.decompress_peak)):
            if peak is not None:
                answer.figures.append((f"{m.compressor}, memory of {verb}", peak / 1e6, "MB"))
    try:
        from lmcodec.measure.plots import draw

        draw(report, options.plot)
        answer.lines += ["", f"![bits per byte against speed]({options.plot.name})"]
    except lmcodec.LmcodecError as error:
        answer.lines += ["", f"No picture: {error}"]
    if report.interrupted:
        raise KeyboardInterrupt
    return answer


def message(options: Options) -> Answer:
    """Bits per byte of messages of 1,000 bytes from English files, frame and all, at the default level."""
    answer, by_file = Answer(), {}
    for path in codec_bpb.dev_paths():
        if path.name.split(".")[0] not in codec_bpb.KINDS["english"].split():
            continue
        text = path.read_bytes()
        n = 1 if options.quick else MESSAGES
        bpb = []
        for i in range(n):
            # From the line that begins next after each of n evenly spaced places.
            begin = text.find(b"\n", i * (len(text) - 2 * MESSAGE_NBYTES) // n) + 1
            piece = text[begin : begin + MESSAGE_NBYTES]
            frame = lmcodec.compress(piece)
            if lmcodec.decompress(frame) != piece:
                raise SystemExit(f"{path.name}: a message does not come back")
            bpb.append(8 * len(frame) / len(piece))
        by_file[path.name] = statistics.mean(bpb)
    answer.table(["", "bits per byte"], [[name, f"{value:.3f}"] for name, value in by_file.items()])
    mean, most = statistics.mean(by_file.values()), max(by_file.values())
    answer.lines.append(f"Mean {mean:.3f}, at most {most:.3f} in one file.")
    answer.figures = [
        ("mean of files", mean, "bits per byte"),
        ("largest mean of a file", most, "bits per byte"),
    ]
    return answer


def repeated(options: Options) -> Answer:
    """What a million equal bytes take."""
    answer = Answer()
    data = bytes(10_000 if options.quick else 1_000_000)
    for level in LEVELS:
        frame = lmcodec.compress(data, level)
        if lmcodec.decompress(frame) != data:
            raise SystemExit(f"level {level}: equal bytes do not come back")
        answer.figures.append((f"level {level}", len(frame), "bytes"))
    answer.table(["", "bytes"], [[what, f"{int(value)}"] for what, value, _ in answer.figures])
    return answer


def speed(options: Options) -> Answer:
    """Speed on text in this process, beside zpaq and PPMd; two threads on two blocks."""
    data = codec_speed.text_of_dev(1 << 16 if options.quick else 4 << 20)
    answer = Answer()
    contenders: dict[str, Callable[[], codec_speed.Timing]] = {
        f"level {level}": partial(codec_speed.time_codec, data, level) for level in LEVELS
    }
    there = [name for name in codec_speed.PEERS if codec_speed.shutil.which(name.split()[0])]
    contenders |= {name: partial(codec_speed.time_program, data, *codec_speed.PEERS[name]) for name in there}
    half = -(-len(data) // 2)
    for level in (1, 2):
        for n in (1, 2):
            name = f"level {level}, two blocks, threads {n}"
            contenders[name] = partial(codec_speed.time_codec, data, level, n, half)
    codec_speed.warm_up(data, LEVELS)
    timings = codec_speed.measure(contenders, 1 if options.quick else options.rounds)
    rows = []
    for name, (size, there_s, back_s) in timings.items():
        rates = [len(data) / 1e6 / seconds for seconds in (there_s, back_s)]
        rows.append([name, f"{size:,}", *(f"{rate:.3f}" for rate in rates)])
        answer.figures += [(f"{name}, size", size, "bytes")]
        answer.figures += [
            (f"{name}, {verb}", rate, "MB/s") for verb, rate in zip(("in", "out"), rates, strict=True)
        ]
    answer.lines += [f"{len(data):,} bytes", ""]
    answer.table(["", "bytes", "MB/s in", "MB/s out"], rows)
    for level in (1, 2):
        one, two = (timings[f"level {level}, two blocks, threads {n}"] for n in (1, 2))
        for i, verb in ((1, "in"), (2, "out")):
            gain = one[i] / two[i]
            answer.lines.append(f"Level {level}, {verb}: two threads are {gain:.2f} times as fast.  ")
            answer.figures.append((f"level {level}, two threads, {verb}", gain, "times"))
    return answer


def threads(options: Options) -> Answer:
    """Speed by kind of text and threads, the codec in this process, everything in turns."""
    mib = 1 << 14 if options.quick else 1 << 20
    texts = {"english": (codec_speed.text_of_dev(mib, ["english"]), (1, 5, 6))}
    texts["prose and technical"] = codec_speed.text_of_dev(4 * mib), (6,)
    for kind in codec_bpb.KINDS:
        texts.setdefault(kind, (codec_speed.text_of_dev(mib // 4, [kind]), (1, 5, 6)))
    answer, nbytes, contenders = Answer(), {}, {}
    for kind, (text, levels) in texts.items():
        for level in levels:
            for n in (1, 2):
                name = f"{kind}, {len(text):,} bytes, level {level}, threads {n}"
                nbytes[name] = len(text)
                contenders[name] = partial(codec_speed.time_codec, text, level, n)
    codec_speed.warm_up(texts["english"][0], (1, 5, 6))
    timings = codec_speed.measure(contenders, 1 if options.quick else options.rounds)
    rows = []
    for name, (size, *both) in timings.items():
        rates = [nbytes[name] / 1e3 / seconds for seconds in both]
        rows.append([name, f"{size:,}", *(f"{rate:.0f}" for rate in rates)])
        answer.figures += [
            (f"{name}, {v}", rate, "KB/s") for v, rate in zip(("in", "out"), rates, strict=True)
        ]
    answer.table(["", "bytes", "KB/s in", "KB/s out"], rows)
    return answer


def growth(options: Options) -> Answer:
    """How time and memory grow with the size of a text; every run is a process that may take two threads."""
    answer = Answer()
    sizes = {1: [1, 10, 100], 6: [1, 10]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        path.write_bytes(codec_memory.large_text(100_000 if options.quick else 100_000_000))
        for level, megabytes in sizes.items():
            limits = [n * (1000 if options.quick else 1_000_000) for n in megabytes]
            inputs, _ = bench.gather([str(path)], limits)
            report = bench.run([peers.own_level(level, 2)], inputs, runs=1, threads=2)
            rows = []
            for m in report.measurements:
                speeds = [m.compress_speed * 1e3, m.decompress_speed * 1e3]
                peaks = [(peak or 0) / 1e6 for peak in (m.compress_peak, m.decompress_peak)]
                rows.append([f"{m.compressor}, {m.nbytes:,} bytes", *(f"{x:.0f}" for x in (*speeds, *peaks))])
                for what, value, unit in zip(
                    ("in", "out", "memory in", "memory out"),
                    (*speeds, *peaks),
                    ("KB/s", "KB/s", "MB", "MB"),
                    strict=True,
                ):
                    answer.figures.append((f"level {level}, {m.nbytes:,} bytes, {what}", value, unit))
            answer.table(["", "KB/s in", "KB/s out", "MB in", "MB out"], rows)
            answer.lines += [f"- failed: {failure}" for failure in report.failures]
            if report.interrupted:
                raise KeyboardInterrupt
    return answer


def memory(options: Options) -> Answer:
    """Peak memory of decoding, in blocks and in a chain, as lmz chooses its threads and with two."""
    text = codec_memory.large_text(200_000 if options.quick else 12_000_000)
    answer, rows = Answer(), []
    for level in (1, 2, 6):
        part = text if level < 3 else text[: len(text) // 2]
        kinds = {"blocks": lmcodec.compress(part, level), "chain": lmcodec.compress(part, level, solid=True)}
        for kind, frame in kinds.items():
            for threads in (None, 2):
                peak, nbytes = codec_memory.peak_of_decoding([frame], threads)
                if nbytes != len(part):
                    raise SystemExit(f"level {level}, {kind}: {nbytes} of {len(part)} bytes came back")
                what = f"level {level}, {kind}, {'own choice' if threads is None else f'-T{threads}'}"
                rows.append([what, f"{len(part):,}", f"{peak / 1e6:.0f}"])
                answer.figures.append((what, peak / 1e6, "MB"))
    answer.table(["decoding", "original bytes", "peak memory, MB"], rows)
    return answer


def startup(options: Options) -> Answer:
    """How long the command line takes for next to nothing."""
    answer = Answer()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"lmz -V": ["-V"]}
        for nbytes, level in ((100, 1), (100, 6), (10_240, 6)):
            small, packed = (Path(folder) / f"{nbytes}.{end}" for end in (level, f"{level}.lmz"))
            small.write_bytes(codec_speed.text_of_dev(nbytes))
            packed.write_bytes(lmcodec.compress(small.read_bytes(), level))
            runs[f"{nbytes:,} bytes, level {level}"] = [f"-{level}", "-c", str(small)]
            runs[f"{nbytes:,} bytes and back, level {level}"] = ["-dc", str(packed)]
        for name, arguments in runs.items():
            seconds = codec_memory.seconds(arguments, 2 if options.quick else 9)
            answer.figures.append((name, seconds, "seconds"))
    answer.table(["", "seconds"], [[what, f"{value:.3f}"] for what, value, _ in answer.figures])
    return answer


def shards(options: Options) -> Answer:
    """What the training corpora take as shards."""
    if options.quick:
        return Answer(["Left out of a quick run."])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lmcodec", "train", "prepare", "--out", folder, "--processes", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        nbytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Answer([f"{nbytes:,} bytes"], [("shards", nbytes, "bytes")])


# name -> what measures it, about how long it takes on one core
PARTS: dict[str, tuple[Callable[[Options], Answer], str]] = {
    "sizes": (sizes, "6 minutes"),
    "compare": (compare, "10 minutes a round"),
    "message": (message, "20 seconds"),
    "repeated": (repeated, "1 minute"),
    "speed": (speed, "10 minutes a round"),
    "threads": (threads, "8 minutes a round"),
    "growth": (growth, "12 minutes"),
    "memory": (memory, "8 minutes"),
    "startup": (startup, "30 seconds"),
    "shards": (shards, "5 minutes"),
}


def new_name(folder: Path) -> Path:
    """The first free name of today, without suffix."""
    today = date.today().isoformat()
    names = (f"{today}{f'-{n}' if n > 1 else ''}" for n in range(1, 1000))
    return folder / next(name for name in names if not (folder / f"{name}.md").exists())


def write(path: Path, lines: list[str], figures: list[tuple[str, str, float, str]]) -> None:
    """The two files of a result."""
    path.with_name(path.name + ".md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "what", "value", "unit"])
    writer.writerows(
        [part, what, f"{value:.6g}" if value % 1 else int(value), unit] for part, what, value, unit in figures
    )
    path.with_name(path.name + ".csv").write_text(text.getvalue(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--list", action="store_true", help="say what parts there are")
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    parser.add_argument("--rounds", type=int, default=3, help="of speeds; medians count")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes for sizes, which load does not disturb"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.list:
        for name, (part, duration) in PARTS.items():
            print(f"{name:10} {duration:20} {(part.__doc__ or '').splitlines()[0]}")
        return
    if not (corpora_dir() / "dev").is_dir():
        raise SystemExit(f"{corpora_dir() / 'dev'} is missing: set LMCODEC_CORPORA")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = new_name(arguments.out)
    options = Options(arguments.quick, arguments.rounds, arguments.jobs, path.with_name(path.name + ".png"))
    lines = [f"# Figures of {path.name}", ""]
    if arguments.quick:
        lines += ["**A quick run: no figures to state.**", ""]
    lines += [f"- {key}: {value}" for key, value in machine.describe().items()]
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, encoding="utf-8", check=False
    )
    if revision.returncode == 0:
        lines.append(f"- revision: {revision.stdout.strip()}")
    figures: list[tuple[str, str, float, str]] = []
    for name in arguments.parts:
        part = PARTS[name][0]
        print(f"{name} ({PARTS[name][1]}) …", file=sys.stderr, flush=True)
        began = time.perf_counter()
        answer = part(options)
        took = time.perf_counter() - began
        own = f"python benchmarks/figures.py --parts {name}"
        own += f" --rounds {arguments.rounds}" if name in ("compare", "speed", "threads") else ""
        lines += [
            "",
            f"## {name}",
            "",
            f"{part.__doc__} `{own}{' --quick' if arguments.quick else ''}`, {took:.0f} s.",
            "",
        ]
        lines += answer.lines
        figures += [(name, *figure) for figure in answer.figures]
        write(path, lines, figures)
    print(path.with_name(path.name + ".md"))


if __name__ == "__main__":
    main()
