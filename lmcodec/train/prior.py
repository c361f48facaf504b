"""What a profile's adaptive state begins with: learned by coding a sample of training text, file after file.

Adaptive maps and mixer weights are carried from one piece of text to the next; tables, history and counters
start anew at each, as they do at the start of a file. Final maps start anew without a language model and are
carried with one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec import _kernel
from lmcodec.profile import build
from lmcodec.train.corpus import CATEGORIES, VALIDATION_SHARE, category_files, document_hash, documents

if TYPE_CHECKING:
    from lmcodec.lm.store import Model

# Documents of each category: what profiles are for weighs more than its share of the corpora.
N_DOCUMENT = {
    "english_books": 80,
    "tech_docs": 180,
    "encyclopedic": 80,
    "web_short": 140,
    "source_code": 280,
    "structured": 320,
    "multilingual": 180,
    "html_pages": 100,
}
_DECISIONS_PER_CALL = 1 << 18


def sample(
    folder: Path | None = None, seed: int = 11, nbytes: int | None = None, piece_nbytes: int | None = None
) -> list[bytes]:
    """Pieces of 2 to 128 KiB of documents that are not held out, seven of ten from their start, shuffled.

    Args:
        folder: of the corpora.
        seed: of the choice.
        nbytes: of all pieces together, at most (but for the last one); None for all.
        piece_nbytes: of each piece, at most.

    Raises:
        ModelNotFound, Corrupt: as `corpus.category_files`, `corpus.documents`.
    """
    rng = random.Random(seed)
    pieces = []
    for category in CATEGORIES:
        candidates = [
            document
            for path in category_files(category, folder)
            for document in documents(path)
            if len(document) > 2000 and document_hash(document) >= VALIDATION_SHARE
        ]
        for document in rng.sample(candidates, min(N_DOCUMENT[category], len(candidates))):
            length = int(2 ** rng.uniform(11, 17))
            begin = 0
            if rng.random() >= 0.7 and len(document) > length:
                begin = rng.randrange(len(document) - length)
            pieces.append(document[begin : begin + length])
    rng.shuffle(pieces)
    pieces = [piece[:piece_nbytes] for piece in pieces]
    before = accumulate(map(len, pieces), initial=0)
    return [piece for piece, n in zip(pieces, before, strict=False) if nbytes is None or n < nbytes]


def learn(
    spec: dict[str, Any],
    pieces: Iterable[bytes],
    model: Model | None = None,
    begin: np.ndarray | None = None,
) -> np.ndarray:
    """The learned state (n_learned,) uint32 of a profile (`lmcodec.profile.build`) after coding `pieces`.

    Args:
        spec: of the profile.
        pieces: texts, at least one.
        model: the language model that the profile mixes in, if its number `lm` is 1.
        begin: (n_learned,) uint32, the state before the first piece; None for a neutral one.
    """
    profile = build(spec).kernel
    if begin is not None:
        profile.set_learned(begin)
    bits = np.empty(_DECISIONS_PER_CALL, np.uint8)
    p16 = np.empty(_DECISIONS_PER_CALL, np.uint16)
    loop = _kernel.TokenLoop(model.coding, profile) if model else _kernel.BlockLoop(profile)
    for piece in pieces:
        block = np.frombuffer(piece, np.uint8)
        loop.reset()
        if isinstance(loop, _kernel.BlockLoop):
            loop.begin(len(block))
            while loop.encode(block, bits, p16):
                pass
        else:
            assert model is not None
            loop.begin_encode(block, model.segment(block), True)
            while loop.encode(bits, p16):
                pass
        profile.set_learned(loop.learned)
    return loop.learned
