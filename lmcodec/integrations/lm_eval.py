"""lm-evaluation-harness: the model `lmcodec`, any language model of lmcodec by its exact probabilities.

    python -m lmcodec.integrations.lm_eval --model lmcodec --model_args model=small --tasks TASK

is the harness's own command that knows it. A probability is a quotient of two integers (FORMAT.md section
6.4), the same on every machine; logarithms are natural ones, in float64.

Context and continuation are cut into tokens together, as one text from the start of a document. Tokens that
lie in the context are given. A token that begins in the context and ends in the continuation counts for the
continuation, by its probability among the tokens that begin with the bytes of it that the context has: so the
codec codes it byte by byte. What a context and its continuation take is what the whole text takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import lm_eval.models  # noqa: F401  (the registry looks for the models of the harness only while it is empty)
import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from tqdm import tqdm

from lmcodec.errors import ConfigError
from lmcodec.lm import store
from lmcodec.lm.executor import KERNEL, checked

NAME = "lmcodec"
_BATCH = 16  # texts side by side
_FREQ = 1 << 23  # frequencies in memory at once
_MAX_NEW_TOKENS = 256  # where a task does not say


class _Part(NamedTuple):
    """What is asked of a text.

    Attributes:
        tokens: (n,) uint32, of the whole text.
        first: the first that counts.
        known: bytes of that one that the context has.
        rest: bytes of the continuation.
    """

    tokens: np.ndarray
    first: int
    known: bytes
    rest: bytes


class LmcodecLM(LM):
    """A language model of lmcodec for the harness.

    Args:
        model: a shipped model's name, an id, a model file (imported ones, too), `hf:PATH` or `hf:OWNER/NAME`;
            or a `LanguageModel`.
        executor: what computes it: `kernel`, `numpy`, `torch`, `torch-cuda`.
        batch_size: texts side by side, 1 to 128; "auto" for 16. The results do not depend on it.
        max_batch_size, device: not used; the harness gives them to every model, "cuda" where there is none.

    Raises:
        ConfigError, ValueError: an argument is out of range.
        LmcodecError: the model is not there or damaged.
    """

    def __init__(
        self,
        model: store.FilePath = "base",
        executor: str = KERNEL,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size, device
        self.batch_size = _BATCH if str(batch_size or "auto").startswith("auto") else int(batch_size or 0)
        if not 1 <= self.batch_size <= 128:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 to 128 or auto")
        self._model = store.load(store.find(model), executor=checked(executor))
        self._strings = self._model.vocabulary.strings

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return f"lmcodec {self._model.model_id}"

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's report."""
        model = self._model
        return {
            "model_id": model.model_id,
            "model_num_parameters": model.n_weight,
            "model_exact": model.is_exact,
            "executor": model.executor,
        }

    # What the harness asks for

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether greedy decoding gives it.

        That is so if, after the tokens that lie in the context, taking the likeliest token (of equally likely
        ones the first) again and again spells the continuation and a token ends where it does, whatever
        tokens the continuation itself is cut into.
        """
        parts = [self._part(*map(_bytes_of, request.args)) for request in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(parts)
        for i, ll, is_greedy in self._weigh(parts, disable_tqdm, greedy=True):
            found[i] = ll, is_greedy
            self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text as a document, without windows of the harness: a stream of the codec.

        What a token sees of those before it is what it sees when the model compresses.
        """
        parts = [self._part(b"", _bytes_of(request.args[0])) for request in requests]
        found = [0.0] * len(parts)
        for i, ll, _ in self._weigh(parts, disable_tqdm, greedy=False):
            found[i] = ll
            self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, ll)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy decoding after each context, up to the first of the texts `until`, which is left out.

        Raises:
            ConfigError: a task asks for samples; only greedy decoding is exact.
        """
        found = []
        for request in tqdm(requests, desc="lmcodec: generate_until", disable=disable_tqdm):
            context, settings = request.args
            settings = settings if isinstance(settings, dict) else {}
            if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
                raise ConfigError(
                    f"task {getattr(request, 'task_name', None)}: lmcodec decodes greedily and does not draw "
                    "samples (do_sample, temperature)"
                )
            until = settings.get("until") or []
            stops = [_bytes_of(stop) for stop in ([until] if isinstance(until, str) else until) if stop]
            n_most = int(settings.get("max_gen_toks") or _MAX_NEW_TOKENS)
            found.append(self._generate(_bytes_of(context), stops, n_most))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    # How it is computed

    def _part(self, context: bytes, continuation: bytes) -> _Part:
        tokens = self._model.segment(context + continuation)
        ends = np.cumsum(self._model.vocabulary.nbytes[tokens], dtype=np.int64)
        first = int(np.searchsorted(ends, len(context), "right"))
        begin = int(ends[first - 1]) if first else 0
        return _Part(tokens, first, context[begin:], continuation)

    def _weigh(
        self, parts: Sequence[_Part], disable_tqdm: bool, *, greedy: bool
    ) -> Iterator[tuple[int, float, bool]]:
        """Number, log-likelihood and whether it is greedy of each part that has a token, long ones first."""
        order = sorted(
            (i for i, part in enumerate(parts) if part.rest), key=lambda i: len(parts[i].tokens), reverse=True
        )
        with tqdm(total=len(order), desc="lmcodec: loglikelihood", disable=disable_tqdm) as progress:
            for at in range(0, len(order), self.batch_size):
                batch = order[at : at + self.batch_size]
                found = self._weigh_batch([parts[i] for i in batch], greedy)
                for i, (ll, is_greedy) in zip(batch, found, strict=True):
                    yield i, ll, is_greedy
                progress.update(len(batch))

    def _weigh_batch(self, parts: list[_Part], greedy: bool) -> list[tuple[float, bool]]:
        n_step = max(len(part.tokens) for part in parts)
        inputs = np.zeros((n_step, len(parts)), np.uint32)  # of streams that are over, any
        for stream, part in enumerate(parts):
            n = len(part.tokens)
            inputs[0, stream], inputs[1:n, stream] = self._start(), part.tokens[:-1]
        logs: list[list[float]] = [[] for _ in parts]
        other: list[tuple[int, int] | None] = [None] * len(
            parts
        )  # where greedy decoding leaves: token, likeliest
        session = self._session(len(parts))
        begin = 0
        for end, freq in self._rows(session, inputs, min(part.first for part in parts)):
            for stream, part in enumerate(parts):
                for i in range(max(begin, part.first), min(end, len(part.tokens))):
                    token, row = int(part.tokens[i]), freq[i - begin, stream]
                    low, high = 0, len(row)
                    if i == part.first and part.known:
                        low, high = self._model.vocabulary.prefix_range(part.known)
                    total = int(row[low:high].sum(dtype=np.uint64))
                    logs[stream].append(math.log(int(row[token])) - math.log(total))
                    if greedy and other[stream] is None:
                        best = low + int(row[low:high].argmax())
                        if best != token:
                            other[stream] = i, best
            begin = end
        return [
            (math.fsum(log), where is None or (greedy and self._spells(part, *where)))
            for part, log, where in zip(parts, logs, other, strict=True)
        ]

    def _rows(self, session: Any, inputs: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frequencies of the tokens after inputs, piece by piece: where it ends, and the frequencies.

        Args:
            inputs: (T, B) uint32.
            first: the first whose frequencies are needed; those before it are a piece without any.

        Yields:
            The end of a piece of t inputs and (t, B, V) uint32.
        """
        n_step, n_stream = inputs.shape
        n_row = max(_FREQ // (n_stream * len(self._strings)), 1)
        begin = first
        if first:
            session.run(inputs[:first], None)
            yield first, np.empty((0, n_stream, 0), np.uint32)
        while begin < n_step:
            end = min(begin + n_row, n_step)
            freq = np.empty((end - begin, n_stream, len(self._strings)), np.uint32)
            session.run(inputs[begin:end], freq)
            yield end, freq
            begin = end

    def _spells(self, part: _Part, at: int, best: int) -> bool:
        """Whether greedy decoding that takes `best` for token `at` of a part still spells its text."""
        before = b"".join(self._strings[token] for token in part.tokens[part.first : at])
        rest = (part.known + part.rest)[len(before) :]
        if not rest.startswith(self._strings[best]):
            return False
        tokens = [*part.tokens[:at].tolist(), best]
        rest = rest[len(self._strings[best]) :]
        for token in self._decode(tokens) if rest else ():
            if not rest.startswith(self._strings[token]):
                return False
            rest = rest[len(self._strings[token]) :]
            if not rest:
                break
        return True

    def _generate(self, context: bytes, stops: list[bytes], n_most: int) -> str:
        text = b""
        for n, token in enumerate(self._decode(self._model.segment(context).tolist()), 1):
            text += self._strings[token]
            found = [place for stop in stops if (place := text.find(stop)) >= 0]
            if found:
                text = text[: min(found)]
                break
            if n >= n_most:
                break
        return text.decode("utf-8", "replace")

    def _decode(self, tokens: Iterable[int]) -> Iterator[int]:
        """The tokens that greedy decoding gives after these, without an end."""
        inputs = np.array([self._start(), *tokens], np.uint32)[:, None]
        session = self._session(1)
        if len(inputs) > 1:
            session.run(inputs[:-1], None)
        freq = np.empty((1, 1, len(self._strings)), np.uint32)
        following = inputs[-1:]
        while True:
            session.run(following, freq)
            token = int(freq.argmax())
            yield token
            following = np.array([[token]], np.uint32)

    def _start(self) -> int:
        return self._model.network.start_token(False)

    def _session(self, n_stream: int) -> Any:
        session = self._model.network.session(n_stream)
        for stream in range(n_stream):
            session.begin(stream, False)
        return session


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def register() -> None:
    """Tell the harness of the model `lmcodec`; again changes nothing."""
    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(LmcodecLM)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    from lmcodec.integrations import register as register_library

    register_library("lm_eval")
    cli_evaluate()
