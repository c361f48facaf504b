"""Measuring many texts: in this process, or in several at once.

The others are Python processes of their own that take tasks and give answers as lines of JSON: one that is
killed for its memory takes only its text along, and none outlives the one that asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lmcodec.errors import LmcodecError, one_line
from lmcodec.measure.bpb import Measurement, Meter
from lmcodec.measure.records import field_texts
from lmcodec.measure.texts import READ_NBYTES, STDIN, Documents


class Task(NamedTuple):
    """A text to measure, or of its documents those whose number is `share` modulo `n_share`.

    Attributes:
        path: of a file, `-` for standard input.
        documents: measure what zero bytes separate apart.
        field: measure apart the texts in this field of the file's records (`measure.records`).
    """

    path: str
    documents: bool = False
    share: int = 0
    n_share: int = 1
    field: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        texts: the number and measurement of every document; number 0 for a text as a whole.
        error: why there are none, a line; None if all went well.
        n_without: records without a text: null, or empty.
    """

    texts: tuple[tuple[int, Measurement], ...] = ()
    error: str | None = None
    n_without: int = 0


Progress = Callable[[int], object]  # called with the bytes of each block that is done


class _Worker(Protocol):
    def measure(self, task: Task, progress: Progress) -> Outcome: ...

    def close(self) -> None: ...


def measure_all(
    tasks: Sequence[Task],
    options: dict[str, Any],
    *,
    n_process: int = 1,
    meter: Meter | None = None,
    progress: Progress = lambda nbytes: None,
) -> list[Outcome]:
    """Measure texts; returns what came of each, in their order.

    Args:
        tasks: what to measure.
        options: keyword arguments of `Meter`, which JSON can hold.
        n_process: at most; 1 for this one alone. Standard input is always read by this one.
        meter: made with these options, for this process to use.
        progress: may be called by several threads.
    """
    if not sys.executable:
        n_process = 1
    outcomes = [Outcome(error="was not measured")] * len(tasks)
    here = deque(i for i, task in enumerate(tasks) if task.path == STDIN or n_process == 1)
    there = deque(i for i in range(len(tasks)) if i not in set(here))

    def work(queue: deque[int], new: Callable[[], _Worker]) -> None:
        worker = new()
        try:
            while queue:
                try:
                    number = queue.popleft()
                except IndexError:  # another thread took it
                    break
                outcomes[number] = worker.measure(tasks[number], progress)
        finally:
            worker.close()

    threads = [
        threading.Thread(target=work, args=(there, lambda: _Process(options)), daemon=True)
        for _ in range(min(n_process, len(there)))
    ]
    for thread in threads:
        thread.start()
    if here:
        work(here, lambda: _Here(meter or Meter(**options)))
    for thread in threads:
        thread.join()
    return outcomes


def measure_task(meter: Meter, task: Task, progress: Progress = lambda nbytes: None) -> Outcome:
    """Measure a text; whatever goes wrong is the outcome's error."""
    try:
        texts = tuple(_texts(meter, task, progress))
        measured = tuple((number, m) for number, m in texts if m is not None)
        return Outcome(measured, n_without=len(texts) - len(measured))
    except MemoryError:
        return Outcome(error="out of memory")
    except OSError as error:
        return Outcome(error=error.strerror or str(error))
    except LmcodecError as error:
        return Outcome(error=one_line(error))
    except Exception as error:  # our bug; the other texts are still measured
        return Outcome(error=f"internal error, please report it: {type(error).__name__}: {error}")


def _texts(meter: Meter, task: Task, progress: Progress) -> Iterator[tuple[int, Measurement | None]]:
    """Number and measurement of each text; None for a record without one."""
    with open(0 if task.path == STDIN else task.path, "rb", closefd=task.path != STDIN) as file:

        def read() -> bytes:
            return file.read(READ_NBYTES)

        if task.field is not None:
            for number, text in field_texts(file, task.field, task.share, task.n_share):
                yield number, meter.measure([text], progress=progress) if text else None
            return
        if not task.documents:
            yield 0, meter.measure(iter(read, b""), progress=progress)
            return
        for number, pieces in enumerate(Documents(read)):
            if number % task.n_share == task.share:
                yield number, meter.measure(pieces, progress=progress)


class _Here:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def measure(self, task: Task, progress: Progress) -> Outcome:
        return measure_task(self._meter, task, progress)

    def close(self) -> None: ...


# What the other process runs: it sees the modules that this one sees, and it is the same lmcodec, even if
# another one has come before it on the path since this one was imported.
_PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # the asker's end is theirs
    "import json, sys; path = json.loads(sys.argv[1]); sys.path[:] = [sys.argv[3], *path]; import lmcodec; "
    "sys.path[:] = path; from lmcodec.measure.processes import serve; serve(json.loads(sys.argv[2]))"
)
_PACKAGES = str(Path(__file__).resolve().parents[2])  # the folder that this lmcodec lies in


class _Process:
    """Another process that measures; a new one after it died."""

    def __init__(self, options: dict[str, Any]) -> None:
        arguments = json.dumps(sys.path), json.dumps(options), _PACKAGES
        self._command = [sys.executable, "-I", "-c", _PROGRAM, *arguments]
        self._child: subprocess.Popen[str] | None = None

    def measure(self, task: Task, progress: Progress) -> Outcome:
        try:
            return self._ask(task, progress)
        except OSError as error:
            self.close()
            return Outcome(error=f"no process to measure it in: {error.strerror or error}")

    def _ask(self, task: Task, progress: Progress) -> Outcome:
        if self._child is None:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii"
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):  # its output has ended, too
            self._child.stdin.write(json.dumps(task) + "\n")
            self._child.stdin.flush()
        for line in self._child.stdout:
            answer = json.loads(line)
            if isinstance(answer, int):
                progress(answer)
                continue
            texts = tuple((n, Measurement(**m)) for n, m in answer["texts"])
            return Outcome(texts, answer["error"], answer["n_without"])
        status = self._child.wait()
        self.close()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Outcome(error=f"the process that measured it ended by {how} (--jobs 1 needs less memory)")

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def serve(options: dict[str, Any]) -> None:
    """Measure what the lines of standard input ask for until it ends, which is when the asker ends."""
    answers, asked = os.dup(1), sys.stdin
    os.dup2(2, 1)  # nothing else may write between the answers
    lines: deque[str] = deque()
    there_is_one = threading.Semaphore(0)

    def listen() -> None:
        for line in asked:
            lines.append(line)
            there_is_one.release()
        os._exit(0)  # from within the kernel, too

    def say(what: Any) -> None:
        os.write(answers, (json.dumps(what) + "\n").encode())

    threading.Thread(target=listen, daemon=True).start()
    warnings.simplefilter("ignore")  # the asker has made such a meter, too
    meter = Meter(**options)
    while True:
        there_is_one.acquire()
        task = Task(*json.loads(lines.popleft()))
        outcome = measure_task(meter, task, say)
        say({**asdict(outcome), "texts": [(n, asdict(m)) for n, m in outcome.texts]})
