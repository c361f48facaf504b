"""Learn a vocabulary on the training mixture.

Byte-pair merges over pre-split chunks propose more strings than are wanted (`tokenizers` does the merging);
then strings are dropped a few at a time, those whose loss costs the fewest tokens under the segmentation that
the codec uses (longest match), until the wanted number is left. Bytes are handled as Latin-1 characters, so
nothing depends on the text being valid UTF-8.

The pre-split keeps words (with the space before them), digits, indentation and line ends apart, and breaks
camelCase; a string never crosses such a border.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, ModelNotFound
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import CATEGORIES, VALIDATION_SHARE, category_files, document_hash, documents

# Over Latin-1 characters: 3-byte sequences of UTF-8 in runs of up to 6 (CJK has no spaces), else words in
# which any byte >= 0x80 counts as a letter.
_HIGH = "\x80-\xff"
_WORD = rf"[A-Z]?[a-z{_HIGH}]{{1,20}}|[A-Z]{{1,16}}"
PRESPLIT = "|".join(
    (
        r"'(?:s|t|re|ve|m|ll|d)(?![a-z])",
        "(?:[\xe3-\xed][\x80-\xbf][\x80-\xbf]){1,6}",
        rf" ?(?:{_WORD})",
        r"[0-9]{1,3}",
        r"[\r\n]{1,8}",
        r" {2,32}",
        r"\t{1,8}",
        r" ?[!-/:-@\[-`{-~]{1,16}",
        r"[\s\S]",
    )
)


def sample_text(
    weights: Mapping[str, float],
    nbytes: int,
    seed: int,
    *,
    folder: Path | None = None,
    transform: Callable[[bytes], bytes] | None = None,
) -> Iterator[bytes]:
    """Training documents (validation ones left out), about `nbytes` in all, shared out by category weight.

    Documents are taken apart into pieces of 64 KiB, and pieces in random order, so that no book dominates.
    """
    total = sum(weights.values())
    rng = random.Random(seed)
    for category, weight in weights.items():
        budget = nbytes * weight / total
        pieces = []
        for path in category_files(category, folder):
            for document in documents(path):
                if document_hash(document) < VALIDATION_SHARE:
                    continue
                for start in range(0, len(document), 1 << 16):
                    pieces.append(document[start : start + (1 << 16)])
        if not pieces:
            raise Corrupt(f"category '{category}' has no document to learn from")
        rng.shuffle(pieces)
        while budget > 0:
            for piece in pieces:
                budget -= len(piece)
                yield piece if transform is None else transform(piece)
                if budget <= 0:
                    break


def learn(
    size: int,
    weights: Mapping[str, float],
    *,
    folder: Path | None = None,
    sample_nbytes: int = 100_000_000,
    seed: int = 1,
    surplus: float = 2.0,
    transform: Callable[[bytes], bytes] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Vocabulary:
    """A vocabulary of `size` tokens.

    Args:
        size: number of tokens, more than 256.
        weights: weight of each category of the mixture.
        folder: of the corpora; by default `LMCODEC_CORPORA`.
        sample_nbytes: how much text to learn on.
        seed: of the sample.
        surplus: how many times `size` strings the merging proposes.
        transform: applied to each piece of text first (for experiments with text transforms).
        report: receives progress lines.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise ModelNotFound("learning a vocabulary needs tokenizers: pip install 'lmcodec[vocab]'")
    pieces = list(sample_text(weights, sample_nbytes, seed, folder=folder, transform=transform))
    report(f"sample of {sum(map(len, pieces)):,} bytes in {len(pieces):,} pieces")
    proposed = _merge(pieces, int(size * surplus))
    report(f"{len(proposed):,} strings proposed")
    if len(proposed) < size:
        raise ConfigError(f"the text gives {len(proposed):,} strings, fewer than the {size:,} asked for")
    return _prune(proposed, pieces, size, report)


def _merge(pieces: list[bytes], size: int) -> set[bytes]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PRESPLIT), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=[chr(b) for b in range(256)],
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator((p.decode("latin-1") for p in pieces), trainer)
    return {s.encode("latin-1") for s in tokenizer.get_vocab()}


def _prune(strings: set[bytes], pieces: list[bytes], size: int, report: Callable[[str], None]) -> Vocabulary:
    """Drop strings until `size` are left: each round those whose removal adds the fewest tokens."""
    while True:
        vocabulary = Vocabulary(sorted(strings))
        count = np.zeros(len(vocabulary), dtype=np.int64)
        for piece in pieces:
            count += np.bincount(vocabulary.segment(piece), minlength=len(vocabulary))
        report(f"{len(vocabulary):,} strings: {sum(map(len, pieces)) / count.sum():.4f} bytes per token")
        excess = len(vocabulary) - size
        if excess <= 0:
            return vocabulary
        # What a removal costs: the token's string falls apart into that of its longest proper prefix tokens.
        cost = np.array(
            [
                count[t] * (_parts_without(vocabulary, s) - 1) if len(s) > 1 else np.iinfo(np.int64).max
                for t, s in enumerate(vocabulary.strings)
            ]
        )
        n_drop = excess if excess <= size // 64 else max(excess // 3, size // 64)
        for t in np.argsort(cost, kind="stable")[:n_drop]:
            strings.discard(vocabulary.strings[t])


def _parts_without(vocabulary: Vocabulary, s: bytes) -> int:
    """Into how many tokens `s` falls by longest match if it is not a token itself."""
    known = vocabulary.index
    parts = 0
    position = 0
    while position < len(s):
        for end in range(len(s) if position else len(s) - 1, position, -1):
            if s[position:end] in known:
                position = end
                break
        parts += 1
    return parts


def bytes_per_token(
    vocabulary: Vocabulary, folder: Path | None = None, document_nbytes: int = 1 << 16
) -> dict[str, float]:
    """Bytes per token in the validation documents of each category, at most `document_nbytes` of each."""
    result = {}
    for category in CATEGORIES:
        n_bytes = n_tokens = 0
        for path in category_files(category, folder):
            for document in documents(path):
                if document_hash(document) < VALIDATION_SHARE:
                    n_bytes += len(document[:document_nbytes])
                    n_tokens += len(vocabulary.segment(document[:document_nbytes]))
        result[category] = n_bytes / n_tokens if n_tokens else float("nan")
    return result
