"""`python -m lmcodec.train CONFIG.toml`: the trainer without the command line's dependencies.

For machines where the package is a folder and only torch and numpy are installed. The options are those of
`lmcodec train run`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from lmcodec.errors import LmcodecError, one_line
from lmcodec.train.start import start


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lmcodec.train", description="Train a network.")
    parser.add_argument("config", type=Path, help="TOML file of the run")
    parser.add_argument("--shards", help=f"folder of token shards, or several joined by {os.pathsep!r}")
    parser.add_argument("--run-dir", type=Path, help="folder of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    parser.add_argument(
        "--validate", action="store_true", help="only report the validation of the run's weights"
    )
    started = time.monotonic()  # before torch is loaded, which takes seconds
    options = parser.parse_args(arguments)
    try:
        start(
            options.config,
            shards_dir=options.shards,
            run_dir=options.run_dir,
            assignments=options.set,
            validate=options.validate,
            started=started,
        )
    except (LmcodecError, OSError) as error:
        print(f"lmcodec train: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
