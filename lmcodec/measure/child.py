"""Runs one command and says what it took: the small process between the benchmark and a compressor.

Started as a file (`python -I -S child.py`), so that it imports next to nothing: on Linux the peak memory that
wait4 reports of a process counts the image it was forked from, too (kernel/fork.c, fs/exec.c:
setmax_mm_hiwater_rss), and this one is a few megabytes where the benchmark's own would be dozens. What cannot
be told apart from that image is reported as the floor.

    child.py RESULT STDIN STDOUT STDERR PROGRAM [ARGUMENT ...]

STDIN and STDOUT are files or empty, for nothing. RESULT becomes a JSON object: status (as subprocess reports
it), seconds, user_seconds, system_seconds, peak_nbytes, floor_nbytes. Knows nothing of compression.
"""

from __future__ import annotations

import json
import os
import sys
import time

EXEC_FAILED = 127


def _fork_and_exec(program: str, arguments: list[str], descriptors: tuple[int, int, int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            os.execv(program, arguments)
        except OSError as error:
            os.write(2, f"{program}: {error.strerror}\n".encode())
        finally:
            os._exit(EXEC_FAILED)
    return pid


def main(arguments: list[str]) -> None:
    """Run the command and write RESULT."""
    result, stdin, stdout, stderr, *command = arguments
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    nothing = os.open(os.devnull, os.O_RDWR)
    # What a process weighs that could not even start its program.
    pid = _fork_and_exec("", [""], (nothing, nothing, nothing))
    floor = os.wait4(pid, 0)[2].ru_maxrss
    files = (
        os.open(stdin, os.O_RDONLY) if stdin else nothing,
        os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if stdout else nothing,
        os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    )
    began = time.perf_counter()
    pid = _fork_and_exec(command[0], command, files)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    document = {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "peak_nbytes": usage.ru_maxrss * unit,
        "floor_nbytes": floor * unit,
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(document, file)


if __name__ == "__main__":
    main(sys.argv[1:])
