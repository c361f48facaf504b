"""Begin or continue a run from a configuration file: what both command lines call."""

from __future__ import annotations

import os
from pathlib import Path

from lmcodec.errors import ModelNotFound


def start(
    config_path: Path,
    *,
    shards_dir: Path | str | None = None,
    run_dir: Path | None = None,
    assignments: list[str] | None = None,
    validate: bool = False,
    started: float | None = None,
) -> str:
    """Run the configuration at `config_path`.

    Args:
        config_path: of the TOML file.
        shards_dir: folder of shards, or several joined by `os.pathsep`; by default `LMCODEC_SHARDS`, else the
            configuration's.
        run_dir: folder of the run; by default `runs/NAME` in the current folder.
        assignments: "KEY=VALUE" overrides, values in TOML's notation.
        started: `time.monotonic()` when the command began, which `run.command_minutes` counts from; now by
            default.
        validate: report the validation of the run's averaged weights as they are, and train nothing.

    Returns:
        why the run ended, or "validated".

    Raises:
        LmcodecError: one of its kinds, with one line that says what to do.
    """
    try:
        from lmcodec.train.config import load_config, parse_assignments

        config = load_config(config_path, parse_assignments(assignments or []))
        from lmcodec.train.loop import Trainer, describe, write_report_line
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "tomli"):
            raise
        raise ModelNotFound("training needs torch: pip install 'lmcodec[torch]'") from None
    base = config_path.parent
    named = str(shards_dir or os.environ.get("LMCODEC_SHARDS") or "")
    folders = [Path(folder) for folder in named.split(os.pathsep) if folder]
    if not folders:
        folders = [base / folder for folder in config.data.shards.split(os.pathsep) if folder]
    folder = run_dir or Path("runs") / config.name
    report = write_report_line(folder / "log.txt")
    report(f"configuration {describe(config)}")
    trainer = Trainer(config, base=base, shards_dirs=folders, run_dir=folder, report=report, started=started)
    if not validate:
        return trainer.run()
    trainer.report_validation()
    return "validated"
