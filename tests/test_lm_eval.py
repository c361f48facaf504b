"""lm-evaluation-harness with models of lmcodec: against direct computations and by its own small tasks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_vocabulary
from test_lm_codec import TEXT, model_file  # noqa: F401

from lmcodec.errors import ConfigError, ModelNotFound
from lmcodec.lm import store
from lmcodec.lm.interface import LanguageModel, Session
from lmcodec.measure.bpb import bits_per_byte

pytest.importorskip("lm_eval", reason="lm-evaluation-harness (lm_eval) is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

STORY = TEXT.decode()
PAIRS = [
    (STORY[:40], STORY[40:60]),
    (STORY[:41], STORY[41:42]),
    ("", STORY[:30]),
    (STORY[:50], ""),
    ("", ""),
    ("x" * 5, "é漢🙂\0 and more"),
    (STORY[:120], STORY[120:130]),
    ("the cat and t", "he"),
]


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="own") for each in arguments]


@pytest.fixture(scope="module")
def files(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    """Models of every origin: the codec's own, an imported transformer, one of transformers in floats."""
    import hugging_face_models
    import transformer_models

    from lmcodec.lm.transformer import file as transformer_file

    folder = tmp_path_factory.mktemp("models")
    (folder / "transformer.lmm").write_bytes(
        b"".join(transformer_file.pack(transformer_models.random_model()))
    )
    return {
        "recurrent": str(model_file),
        "transformer": str(folder / "transformer.lmm"),
        "floats": f"hf:{hugging_face_models.write_model(folder / 'hf', 'llama')}",
    }


KINDS = ("recurrent", "transformer", "floats")


def language_model(files: dict[str, str], kind: str = "recurrent", **options: Any) -> Any:
    from lmcodec.integrations.lm_eval import LmcodecLM

    return LmcodecLM(files[kind], **options)


class Direct:
    """What a model says, a step at a time, from its frequencies alone."""

    def __init__(self, name: str) -> None:
        self.model = store.load(store.find(name))
        self.strings = self.model.vocabulary.strings
        self.known: dict[tuple[int, ...], list[int]] = {}

    def frequencies(self, tokens: list[int]) -> list[int]:
        """Of every token after these."""
        if tuple(tokens) not in self.known:
            session = self.model.network.session(1)
            session.begin(0, False)
            for n, token in enumerate([self.model.network.start_token(False), *tokens]):
                session.step(np.array([token], np.uint32))
                self.known[tuple(tokens[:n])] = session.frequencies()[0].tolist()
        return self.known[tuple(tokens)]

    def greedy(self, tokens: list[int], known: bytes = b"") -> int:
        freq = self.frequencies(tokens)
        fitting = [t for t in range(len(freq)) if self.strings[t].startswith(known)]
        return max(fitting, key=lambda t: (freq[t], -t))

    def weigh(self, context: bytes, continuation: bytes) -> tuple[float, bool]:
        tokens = self.model.segment(context + continuation).tolist()
        ll, at, given, known = 0.0, 0, None, b""
        for i, token in enumerate(tokens):
            end = at + len(self.strings[token])
            if end > len(context):
                freq = self.frequencies(tokens[:i])
                shared = context[at:]
                if given is None:
                    given, known = tokens[:i], shared
                fitting = [f for s, f in zip(self.strings, freq, strict=True) if s.startswith(shared)]
                ll += math.log(freq[token] / sum(fitting))
            at = end
        text, decoded = known, given or []
        while given is not None and len(text) < len(known + continuation):
            token = self.greedy(decoded, known if decoded == given else b"")
            text = (b"" if decoded == given else text) + self.strings[token]
            decoded = [*decoded, token]
        return ll, text == known + continuation


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_those_of_the_frequencies(kind: str, files: dict[str, str]) -> None:
    lm, direct = language_model(files, kind), Direct(files[kind])
    found = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (context, continuation), (ll, is_greedy) in zip(PAIRS, found, strict=True):
        expected = direct.weigh(context.encode(), continuation.encode())
        assert ll == pytest.approx(expected[0], rel=1e-12, abs=1e-12)
        assert is_greedy == expected[1]
    assert found[3] == found[4] == (0.0, True)
    for batch in (3,):
        assert language_model(files, kind, batch_size=batch).loglikelihood(requests(*PAIRS), True) == found


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_border_costs_nothing(kind: str, files: dict[str, str]) -> None:
    """Wherever a text is cut in two, the halves take what the whole takes: inside tokens, too."""
    lm, freq_of = language_model(files, kind), Direct(files[kind])
    text = STORY[:24]
    (whole,) = lm.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    straddled = 0
    for at in range(len(text) + 1):
        context, continuation = text[:at], text[at:]
        part = lm._part(context.encode(), continuation.encode())
        straddled += bool(part.known)
        ((ll, _),) = lm.loglikelihood(requests((context, continuation)), True)
        # What is in the context, by the tokens of the whole text.
        total = 0.0
        tokens = part.tokens.tolist()
        for i in range(part.first):
            freq = freq_of.frequencies(tokens[:i])
            total += math.log(freq[tokens[i]] / sum(freq))
        if part.known:
            freq = freq_of.frequencies(tokens[: part.first])
            fitting = [f for s, f in zip(freq_of.strings, freq, strict=True) if s.startswith(part.known)]
            total += math.log(sum(fitting) / sum(freq))
        assert total + ll == pytest.approx(whole, rel=1e-9)
    assert straddled


def test_rolling_is_what_measure_says(files: dict[str, str]) -> None:
    lm = language_model(files)
    texts = [STORY[:700], "", "é漢🙂"]
    found = lm.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    assert found[1] == 0.0
    for text, ll in zip(texts, found, strict=True):
        bits = bits_per_byte(
            text.encode(), model=files["recurrent"], streams=1, network_only=True
        ).network_bits
        assert bits is not None
        # Coded lengths come from binary decisions of 16 bits, log-likelihoods from the frequencies.
        assert -ll / math.log(2) == pytest.approx(bits, abs=2e-3 * 9 * len(text.encode()) + 1e-9)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_greedy_text_is_greedy_whatever_its_tokens(kind: str, files: dict[str, str]) -> None:
    """What greedy decoding gives is flagged, though longest match may cut it otherwise."""
    lm, direct = language_model(files, kind), Direct(files[kind])
    for context in (STORY[:40], "the cat", ""):
        tokens = direct.model.segment(context.encode()).tolist()
        decoded: list[int] = []
        for _ in range(12):
            decoded.append(direct.greedy(tokens + decoded))
            given = b"".join(direct.strings[token] for token in decoded)
            part = lm._part(context.encode(), given)
            if part.tokens[: part.first].tolist() != tokens or part.known:
                continue  # the border is within a token of the whole text
            ((_, _, is_greedy),) = lm._weigh([part], True, greedy=True)
            assert is_greedy
            other = lm._part(context.encode(), given[:-1] + bytes([given[-1] ^ 1]))
            ((_, _, is_greedy),) = lm._weigh([other], True, greedy=True)
            assert not is_greedy


class Cyclic(LanguageModel):
    """What always expects the next byte of `the the the …`, as a token of its own."""

    def __init__(self) -> None:
        self.vocabulary = make_vocabulary([b"the", b"he", b" the"])
        self.start_tokens = (len(self.vocabulary), len(self.vocabulary))
        self.model_id = "cyclic"

    def session(self, n_stream: int) -> Session:
        strings, cycle = self.vocabulary.strings, b"the "

        class Steps(Session):
            def begin(self, stream: int, cut: bool) -> None: ...

            def step(self, tokens: np.ndarray) -> np.ndarray:
                logits = np.zeros((len(tokens), len(strings)), np.int32)
                for row, token in zip(logits, tokens.tolist(), strict=True):
                    last = strings[token][-1] if token < len(strings) else cycle[-1]
                    follows = cycle[(cycle.find(last) + 1) % 4]
                    row[strings.index(bytes([follows]))] = 800
                return logits

        return Steps()


def test_greedy_text_that_is_cut_otherwise() -> None:
    """Decoding gives single bytes, segmentation finds longer tokens: the same text is greedy all the same."""
    from lmcodec.integrations.lm_eval import LmcodecLM

    lm = LmcodecLM(Cyclic())
    pairs = {
        ("", "the the"): True,
        ("", "th"): True,
        ("", "thx"): False,
        ("", "the thx"): False,
        ("", "he"): False,
        ("the t", "he"): True,
        ("the t", "he x"): False,
        ("the", " the the "): True,
        ("the x", " the"): False,
    }
    assert len(lm._part(b"", b"the the").tokens) == 2
    found = lm.loglikelihood(requests(*pairs), True)
    assert [is_greedy for _, is_greedy in found] == list(pairs.values())
    for settings, text in (
        ({"until": ["e t"], "max_gen_toks": 20}, "h"),
        ({"until": "none", "max_gen_toks": 5}, "he th"),
        ({"until": ["the", "e"], "max_gen_toks": 20}, "h"),
    ):
        assert lm.generate_until(requests(("the t", settings)), True) == [text]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_generation_is_greedy(kind: str, files: dict[str, str]) -> None:
    lm, direct = language_model(files, kind), Direct(files[kind])
    tokens = direct.model.segment(STORY[:40].encode()).tolist()
    decoded: list[int] = []
    for _ in range(20):
        decoded.append(direct.greedy(tokens + decoded))
    text = b"".join(direct.strings[token] for token in decoded).decode("utf-8", "replace")
    (found,) = lm.generate_until(requests((STORY[:40], {"until": [], "max_gen_toks": 20})), True)
    assert found == text
    for settings in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(ConfigError, match="decodes greedily"):
            lm.generate_until(requests(("a", settings)), True)


def test_arguments_that_are_refused(files: dict[str, str]) -> None:
    from lmcodec.integrations.lm_eval import LmcodecLM

    for batch_size in (129, -1):
        with pytest.raises(ConfigError, match="expected"):
            LmcodecLM(files["recurrent"], batch_size=batch_size)
    with pytest.raises(ModelNotFound):
        LmcodecLM("none")
    assert LmcodecLM(files["recurrent"], device="cuda", batch_size="auto:4").batch_size == 16


# The harness itself

CHOICES = """task: own_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
metadata:
  version: 1
"""
ROLLING = """task: own_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: bits_per_byte
metadata:
  version: 1
"""


def test_the_harness_runs_tasks_of_its_own(files: dict[str, str], tmp_path: Path) -> None:
    """Its command with our model: accuracy and bits per byte are those of the model asked directly."""
    documents = [
        {"question": STORY[at : at + 30], "choices": [STORY[at + 30 : at + 40], " zzqq", " of"], "answer": 0}
        for at in range(0, 240, 30)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
    (tmp_path / "tasks").mkdir()
    for name, task in (("choices", CHOICES), ("rolling", ROLLING)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task.format(data=data), "utf-8")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "home"),
    }
    run = subprocess.run(
        [
            *(sys.executable, "-m", "lmcodec.integrations.lm_eval", "--model", "lmcodec"),
            *("--model_args", f"model={files['recurrent']}", "--tasks", "own_choices,own_rolling"),
            *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")),
        ],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    (report,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(report.read_text("utf-8"))
    lm = language_model(files)
    right, bits, nbytes = 0, 0.0, 0
    for document in documents:
        question, choices = str(document["question"]), list(document["choices"])  # type: ignore[call-overload]
        # The harness joins them with a space unless a choice begins with one.
        asked = [(question, choice if choice.startswith(" ") else " " + choice) for choice in choices]
        lls = [ll for ll, _ in lm.loglikelihood(requests(*asked), True)]
        right += int(np.argmax(lls)) == 0
        bits -= lm.loglikelihood_rolling(requests((question,)), True)[0] / math.log(2)
        nbytes += len(question.encode())
    assert results["results"]["own_choices"]["acc,none"] == pytest.approx(right / len(documents))
    assert results["results"]["own_rolling"]["bits_per_byte,none"] == pytest.approx(bits / nbytes)
    assert results["config"]["model_id"] == lm._model.model_id
