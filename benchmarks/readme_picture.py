"""Draws README's picture, bits per byte against speed, from a committed result.

    python benchmarks/readme_picture.py [RESULT.csv] [--out lmcodec/docs/speed.png]

RESULT.csv is what `benchmarks/figures.py` wrote beside its page (by default the result that README names);
its part `compare` holds sizes and speeds of all compressors. Nothing is measured here. Needs matplotlib
(extra `plot`).
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from pathlib import Path

from lmcodec.measure import bench, peers, plots

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "2026-11-22-2.csv"
PICTURE = ROOT / "lmcodec" / "docs" / "speed.png"
SIZE_INCHES = (10.0, 5.6)
COLOURS = 64  # are enough, and make the file a third as large


def report_of(result: Path) -> bench.Report:
    """The part `compare` of a result as the report that it was made from, its files as one."""
    values: dict[str, dict[str, float]] = {}
    with result.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["part"] == "compare":
                name, _, figure = row["what"].rpartition(", ")
                values.setdefault(name, {})[figure] = float(row["value"])
    if not values:
        raise SystemExit(f"{result}: no part compare")
    page = result.with_suffix(".md").read_text("utf-8")
    inputs = re.search(r"^the first ([0-9,]+) bytes of ([0-9]+) files, ([0-9,]+) bytes:$", page, re.MULTILINE)
    if not inputs:
        raise SystemExit(f"{result.with_suffix('.md')}: does not say of what files part compare is")
    limit, n_file, nbytes = (int(number.replace(",", "")) for number in inputs.groups())
    compressors, measurements = [], []
    for name, of in values.items():
        program = name.split()[0]
        family = plots.OWN_FAMILY if program == "lmz" else program
        compressors.append(peers.Compressor(name, family, [], []))
        measurements.append(
            bench.Measurement(
                compressor=name,
                file=f"{n_file} files",
                limit=limit,
                nbytes=nbytes,
                packed_nbytes=round(of["size"]),
                compress_seconds=nbytes / 1e6 / of["compression"],
                decompress_seconds=nbytes / 1e6 / of["decompression"],
                compress_peak=None,
                decompress_peak=None,
                files=n_file,
            )
        )
    machine = dict(re.findall(r"^- ([a-zA-Z]+): (.*)$", page, re.MULTILINE))
    return bench.Report(compressors, 1, 1, machine=machine, measurements=measurements)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, nargs="?", default=RESULT)
    parser.add_argument("--out", type=Path, default=PICTURE, help="a PNG file")
    arguments = parser.parse_args()
    png = plots.render(report_of(arguments.result), "png", SIZE_INCHES)
    from PIL import Image  # matplotlib needs it, too

    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
