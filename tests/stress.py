"""Many short `lmz` processes on busy processors: every exit status, every output and stderr are looked at.

    python tests/stress.py [--minutes 5] [--runs 6000] [--callers 4] [--load 2] [--sanitizer thread]

Each caller takes one case after another: a text of 300 bytes to 128 KiB is compressed, decompressed and
tested through pipes and files, at all levels; some processes are interrupted; programs that use the package
end while blocks are at work. Beside them run `--load` endless loops. `--sanitizer` builds the kernel under
the address, undefined or thread sanitizer into a folder below build/, where it stays, and runs that. The
last line says how many processes ran. What went wrong is printed, with the number of the case, which
together with the seed says what was run; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALLEST, LARGEST = 300, 128 << 10
LEVELS = (*(1,) * 9, *(2,) * 5, 3, 4, 5, 6, 6, 7, 8, 9)  # as often as they are here
TIMEOUT_S = 300
LOOP = "while True: pass"

# A program that ends in the midst of what it does, with objects left about.
PROGRAMS = {
    "compressor left in a global": """
import lmcodec
left = lmcodec.Compressor(LEVEL, block_size=4096, threads=3)
left.compress(DATA)
""",
    "decompressor left in a cycle": """
import lmcodec
packed = lmcodec.compress(DATA, LEVEL, block_size=4096)
left = lmcodec.Decompressor(threads=3)
left.decompress(packed, 1)
left.itself = left
""",
    "reader left, after a damaged block": """
import io, lmcodec
packed = bytearray(lmcodec.compress(DATA, LEVEL, block_size=4096))
packed[len(packed) // 2] ^= 1
left = lmcodec.open(io.BytesIO(packed), threads=2)
try: left.read()
except lmcodec.LmcodecError as error: kept = error
""",
    "daemon thread at work": """
import threading, time, lmcodec
def work():
    while True: lmcodec.decompress(lmcodec.compress(DATA, LEVEL, threads=2))
threading.Thread(target=work, daemon=True).start()
time.sleep(DELAY)
""",
    "daemon thread in the kernel": """
import threading, time, lmcodec
from lmcodec import engine
def work():
    while True: engine.Engine(1).encode(DATA)
for _ in range(2): threading.Thread(target=work, daemon=True).start()
time.sleep(DELAY)
""",
    "exit in the midst of a block": """
import sys, threading, time, lmcodec
threading.Thread(target=lambda: lmcodec.compress(DATA * 20, LEVEL), daemon=True).start()
time.sleep(DELAY)
sys.exit(0)
""",
}


class Failed(Exception):
    """A process did not do what it should."""


class Stress:
    """Runs cases until it is told to stop, in several threads; counts and collects what went wrong."""

    def __init__(
        self, seed: int, package: Path | None, environment: dict[str, str], wrapper: Sequence[str]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._seed, self._environment = seed, environment
        # The build that is asked for comes before any other installed one.
        others = "[f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]"
        find = f"import sys; sys.meta_path[:] = {others}; sys.path.insert(0, {str(package)!r}); "
        self._find = find if package else ""
        self._python = [*wrapper, sys.executable, "-I", "-c"]
        self._lock = threading.Lock()
        self._next = 0
        self._texts = [
            path.read_bytes() for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("lmcodec/**/*.py"))
        ]

    def n_run(self) -> int:
        with self._lock:
            return sum(self.counts.values())

    def text(self, rng: random.Random, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            whole = rng.choice(self._texts)
            at = rng.randrange(len(whole) + 1)
            data += whole[at : at + rng.randrange(200, 20_000)]
            if rng.random() < 0.1:
                data += rng.randbytes(rng.randrange(200)) + bytes(rng.randrange(5000))
        return data[:nbytes]

    def cases(self, until: float, most: int) -> None:
        """Take cases until that time, or until so many processes ran."""
        while time.monotonic() < until and self.n_run() < most:
            with self._lock:
                self._next += 1
                number = self._next
            with tempfile.TemporaryDirectory() as folder:
                try:
                    self._case(random.Random(f"{self._seed} {number}"), Path(folder))
                except Exception as error:
                    with self._lock:
                        self.failures.append(
                            f"case {number} of seed {self._seed}: {type(error).__name__}: {error}"
                        )
                        print(self.failures[-1], flush=True)

    def _case(self, rng: random.Random, folder: Path) -> None:
        nbytes = int(SMALLEST * (LARGEST / SMALLEST) ** (rng.random() ** 2.5))  # short ones more often
        data, level = self.text(rng, nbytes), rng.choice(LEVELS)
        if rng.random() < 0.15:
            self._program(rng, data, level, folder)
            return
        options = [f"-{level}"]
        if rng.random() < 0.3:
            options += ["-T", str(rng.randrange(1, 5))]
        if rng.random() < 0.3:
            options += ["--block-size", "16K"]
        path, packed_path = folder / "text", folder / "text.lmz"
        path.write_bytes(data)
        if rng.random() < 0.25:
            self._interrupted(rng, [*options, "text"], folder, packed_path)
        if rng.random() < 0.5:
            packed = self._run("compress, pipe", options, folder, data)
            packed_path.write_bytes(packed)
        else:
            packed_path.unlink(missing_ok=True)
            self._run("compress, file", [*options, "text"], folder)
            packed = packed_path.read_bytes()
        path.unlink()
        if rng.random() < 0.5:
            self._same(data, self._run("decompress, pipe", ["-d"], folder, packed), options)
        else:
            self._run("decompress, file", ["-d", "text.lmz"], folder)
            self._same(data, path.read_bytes(), options)
        if rng.random() < 0.3:
            self._run("test", ["-t", "text.lmz"], folder)

    def _same(self, data: bytes, out: bytes, options: list[str]) -> None:
        if data != out:
            raise Failed(f"{' '.join(options)}: {len(data)} bytes came back as {len(out)} others")

    def _start(self, code: str, arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._python, self._find + code, *arguments],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _end(
        self, kind: str, process: subprocess.Popen[bytes], data: bytes = b"", good: Sequence[int] = (0,)
    ) -> bytes:
        try:
            out, err = process.communicate(data, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        with self._lock:
            self.counts[kind] += 1
        if process.returncode not in good or err:
            shown = err.decode(errors="replace")[:6000]
            raise Failed(f"{kind}: {process.args!r}: status {process.returncode}, stderr:\n{shown}")
        return out

    def _run(self, kind: str, arguments: list[str], folder: Path, data: bytes = b"") -> bytes:
        process = self._start("from lmcodec.cli.lmz import main; main()", arguments, folder)
        return self._end(kind, process, data)

    def _interrupted(self, rng: random.Random, arguments: list[str], folder: Path, packed: Path) -> None:
        process = self._start("from lmcodec.cli.lmz import main; main()", arguments, folder)
        delay = rng.random() * 0.8
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGINT)
        try:
            self._end("interrupted", process, good=(-signal.SIGINT,))
        except Failed:
            # It was done already, or Python had not begun to run our code: what it says itself is no fault.
            early = process.returncode in (1, -signal.SIGINT) and not packed.exists()
            if process.returncode != 0 and not early:
                raise
        if process.returncode != 0 and packed.exists():
            raise Failed(f"interrupted: {packed.name} was left")

    def _program(self, rng: random.Random, data: bytes, level: int, folder: Path) -> None:
        name = rng.choice(list(PROGRAMS))
        (folder / "data").write_bytes(data[: 8 << 10])
        code = f"DATA = open('data', 'rb').read(); LEVEL = {level}; DELAY = {rng.random() * 0.3}\n"
        self._end(f"program: {name}", self._start(code + PROGRAMS[name], [], folder))


def build(sanitizer: str) -> Path:
    """The folder with the package whose kernel is built under a sanitizer."""
    folder = ROOT / "build" / f"sanitizer-{sanitizer}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--upgrade",
    ]
    settings = {
        "cmake.define.LMCODEC_SANITIZE": sanitizer,
        "cmake.build-type": "RelWithDebInfo",
        "build-dir": f"build/objects-{sanitizer}",
    }
    chosen = [f"-C{name}={value}" for name, value in settings.items()]
    subprocess.run([*pip, *chosen, "--target", str(folder), str(ROOT)], check=True)
    return folder


def runtime(sanitizer: str) -> tuple[dict[str, str], list[str]]:
    """What a sanitizer needs: changes of the environment, and what the command begins with."""
    if sanitizer == "undefined":
        return {"UBSAN_OPTIONS": "print_stacktrace=1"}, []
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    compiler = os.environ.get("CXX") or "g++"
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    environment = {
        "LD_PRELOAD": found.stdout.strip(),
        "PYTHONMALLOC": "malloc",
        # The interpreter keeps what it has to its end.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        "TSAN_OPTIONS": "second_deadlock_stack=1:report_signal_unsafe=0:exitcode=66",
    }
    return environment, ["setarch", "-R"] if sanitizer == "thread" else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long, at most")
    parser.add_argument("--runs", type=int, default=sys.maxsize, help="how many processes, at most")
    parser.add_argument("--callers", type=int, default=4, help="processes at once")
    parser.add_argument("--load", type=int, default=2, help="endless loops beside them")
    parser.add_argument("--sanitizer", choices=("address", "undefined", "thread"))
    parser.add_argument("--package", type=Path, help="folder that holds the package to run")
    parser.add_argument("--verbose", action="store_true", help="count on stderr")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes inherit one that is ignored

    environment = {k: v for k, v in os.environ.items() if not k.startswith("LMCODEC_")}
    # The C library looks after its own memory.
    environment |= {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "OPENBLAS_NUM_THREADS": "1"}
    package: Path | None = given.package and given.package.resolve()
    wrapper: list[str] = []
    if given.sanitizer:
        package = package or build(given.sanitizer)
        more, wrapper = runtime(given.sanitizer)
        environment |= more
    stress = Stress(given.seed, package, environment, wrapper)
    loops = [subprocess.Popen([sys.executable, "-I", "-c", LOOP]) for _ in range(given.load)]
    began = time.monotonic()
    try:
        until = began + 60 * given.minutes
        callers = [
            threading.Thread(target=stress.cases, args=(until, given.runs)) for _ in range(given.callers)
        ]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            time.sleep(1)
            if given.verbose:
                print(f"\r{stress.n_run():,} ", end="", file=sys.stderr, flush=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    for kind, n in sorted(stress.counts.items()):
        print(f"{n:7,}  {kind}")
    what = f" under the {given.sanitizer} sanitizer" if given.sanitizer else ""
    print(
        f"{stress.n_run():,} processes{what} in {time.monotonic() - began:.0f} s, seed {given.seed}, "
        f"{len(stress.failures)} went wrong"
    )
    return 1 if stress.failures else 0


if __name__ == "__main__":
    sys.exit(main())
