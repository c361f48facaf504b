"""Entry points of the commands: what an interrupt finds prepared before anything large is imported.

Python turns an interrupt into an exception, whose traceback would be all that a user who changed their mind
in the first tenth of a second sees. Until a command has something to tidy up, the process simply ends.
"""

from __future__ import annotations

import signal


def _end_when_interrupted() -> None:
    """Let SIGINT end the process, unless the parent ignores it (a shell's background job)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def lmz() -> None:
    _end_when_interrupted()
    from lmcodec.cli.lmz import main

    main()


def unlmz() -> None:
    _end_when_interrupted()
    from lmcodec.cli.lmz import unlmz as main

    main()


def lmzcat() -> None:
    _end_when_interrupted()
    from lmcodec.cli.lmz import lmzcat as main

    main()


def lmzgrep() -> None:
    _end_when_interrupted()
    from lmcodec.cli.grep import main

    main()


def lmzless() -> None:
    _end_when_interrupted()
    from lmcodec.cli.view import less

    less()


def lmzdiff() -> None:
    _end_when_interrupted()
    from lmcodec.cli.view import diff

    diff()


def lmcodec() -> None:
    _end_when_interrupted()
    from lmcodec.cli.main import main

    # Training and measuring end in their own ways; `enter` keeps the exception from the user.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
