"""Language models on a GPU machine: that all executors agree there, and how fast they are.

    python3 benchmarks/gpu_executors.py --work FOLDER --out FOLDER [--wheels FOLDER] [--shape FOLDER]

Builds the package in a copy of the tree, then runs the tests that need CUDA, the self-test, and with the
config.json and tokenizer.json of a Hugging Face model (`--shape`) an import of random weights of that shape,
a decoder's steps with it, as a captured graph and without, which must give the same integers, and both
directions of the codec, kernel and CUDA, in exact arithmetic and in floats. Random weights
compress nothing, but take the time of real ones, and are not to be carried there. Every step has a time limit
and the next one runs whatever becomes of it. `report.txt` in `--out` has what each printed.

The machine needs Python, torch, NumPy, pip, a C++ compiler, CMake, Ninja, nanobind and scikit-build-core, for
the tests pytest and hypothesis, for `--shape` transformers, tokenizers and safetensors; what else the package
needs is taken from `--wheels`. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_torch_backend.py", "test_transformer_torch.py", "test_net.py", "test_executors.py")
LMZ = "from lmcodec.cli.entry import lmz; lmz()"
RANDOM_MODEL = """
import sys, torch, transformers
torch.manual_seed(1)
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_config(config).float()
model.save_pretrained(sys.argv[1], safe_serialization=True)
print(sum(p.numel() for p in model.parameters()), "parameters")
"""
# A decoder's steps: model file, device, streams.
STEP_SPEED = """
import sys, time, warnings
import numpy as np, torch
from lmcodec.lm import kinds
from lmcodec.lm.transformer.torch_backend import TorchTransformer
warnings.simplefilter("error")  # a capture that fails says so by a warning
model = kinds.open_file(sys.argv[1]).decode().model
device, n_stream = sys.argv[2], int(sys.argv[3])
tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (60, n_stream))
answers = []
for capture in (False, True):
    network = TorchTransformer(model, device, capture=capture)
    state = network.start(n_stream)
    found = [network.step(row, state).cpu().numpy() for row in tokens[:10]]
    began = time.monotonic()
    found += [network.step(row, state).cpu().numpy() for row in tokens[10:]]
    seconds = (time.monotonic() - began) / 50
    answers.append(np.stack(found))
    captured = state.replay.captured
    how = "captured" if captured else "not captured"
    print(f"{1e3 * seconds:.2f} ms a step of {n_stream} streams, {how}")
    assert captured == (capture and device != "cpu")
assert (answers[0] == answers[1]).all()
print("equal")
"""


class Steps:
    """Runs commands one after another and writes down what they said.

    Args:
        tree: where they run, and where the package is found.
        report: file of what they said.
        extra: further folders of packages.
    """

    def __init__(self, tree: Path, report: Path, extra: list[Path]) -> None:
        self.tree, self.report, self.failed = tree, report, 0
        paths = [str(p) for p in (tree, *extra)] + [p for p in [os.environ.get("PYTHONPATH")] if p]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def write(self, text: str) -> None:
        print(text, flush=True)
        with open(self.report, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def run(self, name: str, command: list[str], limit: float, expected: int = 0) -> float | None:
        """Run a command; its seconds if it ended with the expected status."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=self.tree if self.tree.is_dir() else ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=limit,
                check=False,
            )
            status, output = f"status {done.returncode}", done.stdout
            right = done.returncode == expected
        except subprocess.TimeoutExpired as error:
            status, output, right = f"not done in {limit:g} s", error.stdout or b"", False
        seconds = time.monotonic() - began
        self.failed += not right
        said = output.decode("utf-8", "replace").strip()[-4000:]
        self.write(
            f"== {name}: {'as expected' if right else 'FAILED'}, {status}, {seconds:.1f} s"
            + (f"\n{said}" if said else "")
        )
        return seconds if right else None

    def compare(self, what: str, one: Path, other: Path) -> None:
        """Say whether two files hold the same bytes."""
        same = one.read_bytes() == other.read_bytes()
        self.failed += not same
        self.write(f"== {what}: {'equal' if same else 'DIFFERENT'}")


def build(steps: Steps, work: Path, wheels: Path | None) -> bool:
    """The kernel, in the copy of the tree, and the packages that the machine lacks."""
    site, wheel = work / "site", work / "wheel"
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--no-index", "--no-deps"]
    if wheels is not None:
        names = sorted(map(str, wheels.resolve().glob("*.whl")))
        steps.run("wheels", [*pip, "install", *quiet, "--target", str(site), *names], 60)
    command = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(wheel), "."]
    if steps.run("build", command, 300) is None:
        return False
    for path in wheel.glob("lmcodec-*.whl"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if Path(member).name.startswith("_kernel.") and not member.endswith(".pyi"):
                    archive.extract(member, steps.tree)
    return True


def codec(steps: Steps, shape: Path, work: Path) -> None:
    """Both directions with an imported model, kernel and CUDA, and with the same model in floats."""
    python = sys.executable
    folder, model = work / "model", work / "model.lmm"
    folder.mkdir()
    for path in shape.glob("*.json"):
        shutil.copy(path, folder)
    if steps.run("random weights", [python, "-c", RANDOM_MODEL, str(folder)], 90) is None:
        return
    text, short = work / "text.md", work / "short.md"
    words = b"".join(p.read_bytes() for p in sorted((ROOT / "lmcodec" / "docs").glob("*.md")))
    text.write_bytes(words[: 64 << 10])
    short.write_bytes(words[: 16 << 10])
    lmz = [python, "-c", LMZ]
    command = [python, "-m", "lmcodec", "model", "import", str(folder), "--fast", "-o", str(model)]
    if steps.run("import", command, 180) is not None:
        for n_stream in ("1", "8"):
            command = [python, "-c", STEP_SPEED, str(model), "cuda", n_stream]
            steps.run(f"steps of {n_stream}, captured and not", command, 60)
        alone = ["--model", str(model), "--model-only", "--method", "lm"]
        frames = {}
        for name, executor in (("kernel", ["--executor", "kernel"]), ("cuda", ["--device", "cuda"])):
            frames[name] = work / f"{name}.lmz"
            command = [*lmz, *alone, *executor, "-f", "-o", str(frames[name]), str(text)]
            seconds = steps.run(f"compress, {name}", command, 150)
            if seconds is not None:
                steps.write(
                    f"   {text.stat().st_size / seconds / 1e3:.1f} KB/s with the start of the process"
                )
        if all(path.is_file() for path in frames.values()):
            steps.compare("frames of kernel and CUDA", frames["kernel"], frames["cuda"])
        back = work / "back.md"
        command = [*lmz, "-d", "--model", str(model), "--device", "cuda", "-f", "-o", str(back)]
        small = work / "short.lmz"
        made = [*lmz, *alone, "--executor", "kernel", "-f", "-o", str(small), str(short)]
        if steps.run("compress the short text, kernel", made, 120) is not None:
            seconds = steps.run("decompress it, CUDA", [*command, str(small)], 200)
            if seconds is not None:
                steps.compare(f"the text, at {16.384 / seconds:.2f} KB/s", back, short)
    floats = ["--model", f"hf:{folder}", "--device", "cuda"]
    bound = work / "floats.lmz"
    command = [*lmz, *floats, "--method", "lm", "-v", "-f", "-o", str(bound), str(short)]
    if steps.run("compress in floats, CUDA", command, 150) is not None:
        back = work / "back-floats.md"
        command = [*lmz, "-d", *floats, "-f", "-o", str(back), str(bound)]
        if steps.run("decompress in floats, CUDA", command, 150) is not None:
            steps.compare("the text in floats", back, short)
        command = [*lmz, "-d", "--model", f"hf:{folder}", "-f", "-o", str(back), str(bound)]
        steps.run("decompress in floats on the CPU, which must be refused", command, 90, expected=1)
    command = [python, "-m", "lmcodec", "measure", *floats, "--window", "1024", "--stride", "512", str(text)]
    steps.run("measure, CUDA", command, 90)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder that is made anew")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that the machine lacks")
    parser.add_argument("--shape", type=Path, help="folder with config.json and tokenizer.json of a model")
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    options.out.mkdir(parents=True, exist_ok=True)
    tree = work / "tree"
    left = shutil.ignore_patterns(".git", "shards", "build", "_kernel*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=left)
    steps = Steps(tree, options.out.resolve() / "executors.txt", [work / "site"])
    if not build(steps, work, options.wheels):
        return 1
    python = sys.executable
    tests = [f"tests/{name}" for name in TESTS]
    steps.run("tests", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *tests], 180)
    steps.run("self-test", [python, "-m", "lmcodec", "selftest"], 180)
    if options.shape is not None:
        codec(steps, options.shape.resolve(), work)
    steps.write(f"{steps.failed} step(s) failed")
    return 1 if steps.failed else 0


if __name__ == "__main__":
    sys.exit(main())
