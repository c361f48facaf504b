"""`lmcodec selftest`: hashes by which two people see that their machines compute the same."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.lmz import MODEL
from lmcodec.cli.table import table
from lmcodec.errors import LmcodecError

if TYPE_CHECKING:
    from lmcodec.measure.selftest import SelfTest, Tested


@click.command(
    epilog="The hashes of one model are the same on every machine. The exit status is 0 if everything that"
    " was run agrees, with the known hashes of shipped models too, else 1.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--model", multiple=True, **MODEL | {"help": "What to test (default: the models shipped)."})
@click.option("--all", "everything", is_flag=True, help="Also what takes minutes with a large model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def selftest(model: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Test that whatever can run a language model here computes the same, and what it should.

    By each executor, instruction set, batch and number of threads a text is coded and decoded. Two people
    whose lines `NAME ID HASH` are the same have machines that read each other's frames.
    """
    from lmcodec.measure import selftest as test

    found = test.run([*model] or None, everything)
    click.echo(_as_json(found) if as_json else _as_table(found), nl=False)
    if not found.agrees:
        raise LmcodecError("the self-test failed: what is marked WRONG must not be used (LMCODEC_ISA)")


def _line(tested: Tested) -> str:
    """What two people compare."""
    expected = tested.expected("network")[:16], tested.expected("frame")[:16]
    known = "as known" if tested.known else "no hash is known beforehand"
    verdict = f"all {len(tested.rows)} agree, {known}" if tested.agrees else "WRONG"
    return f"{tested.name} {tested.model_id} {expected[0]}-{expected[1]}: {verdict}\n"


def _as_table(found: SelfTest) -> str:
    rows = [("Model", "Executor", "Set", "What", "Batch", "Threads", "Hash", "")]
    for tested in found.models:
        for row in tested.rows:
            verdict = "right" if tested.is_right(row) else f"WRONG {row.error}".strip()
            numbers = str(row.batch), str(row.threads)
            rows.append(
                (tested.name, row.executor, row.isa or "-", row.what, *numbers, row.hash[:16] or "-", verdict)
            )
    text = table(rows, right=(4, 5))
    text += "".join(f"not run: {what}: {why}\n" for what, why in found.left_out)
    return text + "".join(map(_line, found.models))


def _as_json(found: SelfTest) -> str:
    from lmcodec import __version__

    def model(tested: Tested) -> dict[str, Any]:
        return {
            "name": tested.name,
            "id": tested.model_id,
            "network": tested.expected("network"),
            "frame": tested.expected("frame"),
            "known": tested.known or None,
            "agrees": tested.agrees,
            "rows": [{**row.__dict__, "right": tested.is_right(row)} for row in tested.rows],
        }

    document = {
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "agrees": found.agrees,
        "models": [model(tested) for tested in found.models],
        "not_run": [{"what": what, "why": why} for what, why in found.left_out],
    }
    return json.dumps(document, indent=1) + "\n"
