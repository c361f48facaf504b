"""Shared fixtures: hypothesis profiles, a small vocabulary, small shards."""

from __future__ import annotations

import lzma
import os
import random
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import CATEGORIES, corpora_dir

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start what runs in the background so, and children would ignore the interrupts that tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("expensive", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# No test finds what the user keeps in the models folder.
os.environ["LMCODEC_MODELS"] = os.path.join(os.path.dirname(__file__), "no models folder")

WORDS = b"the of and to a in that he was it his I with as her for had you not be she at on but".split()


def make_vocabulary(extra: list[bytes]) -> Vocabulary:
    """All single bytes and `extra`."""
    return Vocabulary(sorted({bytes([b]) for b in range(256)} | set(extra)))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return make_vocabulary(
        [b" " + w for w in WORDS] + [w for w in WORDS if len(w) > 1] + [b"\r\n", b"  ", b"    "]
    )


def write_corpus(folder: Path, seed: int = 1, n_document: int = 40) -> Path:
    """A tiny corpus of every category in `folder`/train: random words, documents of uneven length."""
    rng = random.Random(seed)
    (folder / "train").mkdir(parents=True)
    for stems in CATEGORIES.values():
        for stem in stems:
            documents = [
                b" ".join(rng.choice(WORDS) for _ in range(rng.randrange(20, 900))) + b".\n"
                for _ in range(n_document)
            ]
            (folder / "train" / f"{stem}.txt.xz").write_bytes(lzma.compress(b"\0".join(documents), preset=0))
    return folder


@pytest.fixture(scope="session")
def tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def dev_corpus() -> Path:
    folder = corpora_dir() / "dev"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: set LMCODEC_CORPORA to run this test")
    return folder
