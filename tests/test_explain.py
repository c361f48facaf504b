"""Where the bits go: the parts add up to the trace, and the page shows all of the text, as text only."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmcodec.errors import ConfigError
from lmcodec.lm import store
from lmcodec.measure import explain as explain_module
from lmcodec.measure import page, scale, visible
from lmcodec.measure.explain import Explanation, Totals, Unit, _passages, as_json_object, explain
from lmcodec.measure.trace import trace
from lmcodec.measure.visible import Kind

PROSE = (
    b"It was the best of times, it was the worst of times, it was the age of wisdom, it was the age\r\n"
    b"of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season\r\n\n"
)
HOSTILE = (
    '</script><script>document.body.remove()</script><img src=x onerror="document.body.remove()"> </style>'
    "</span></div></body> &lt;b&gt; &amp; \" onmouseover=\"document.body.remove()' ' <!-- ]]> "
    "<svg/onload=1>\n"
)
SCRIPTS = (
    "العربية: القانون (مختلط) mixed 123. שלום עולם\nمی‌خواهم\n中文：原文地址。日本語テキスト、한국어\n"
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ é à̖́̂ हिन्दी क्षत्रिय ไทย\n"
)
UNSEEN = (
    b"\x00\x01\x1b[31m\x7f \xc2\x85 \xe2\x80\xaeevil\xe2\x80\xac \xe2\x80\x8b\xef\xbb\xbf"
    b"\xc2\xa0x\xe3\x80\x80\n\xcc\x81\xff\xfe\x80\xe4\xbd cut \xed\xa0\x80 \xf4\x90\x80\x80\r\n"
    b"tab\there  two   \rlone\r\xee\x80\x80\n"
)
MIXED = PROSE + HOSTILE.encode() + SCRIPTS.encode() + UNSEEN + b"x" * 700 + PROSE
NOISE = random.Random(5).randbytes(3000)
needs_model = pytest.mark.skipif(
    not any(shipped.name == "small" for shipped in store.SHIPPED.values()), reason="small is not shipped"
)

# What bytes look like


bytes_of_all_kinds = st.one_of(st.binary(), st.text().map(str.encode), st.just(MIXED)) | st.lists(
    st.sampled_from(["a", " ", "\n", "\r", "\u0301", "\u200d", "👩", "🏽", "🇩", "क", "्", "\u1161"]),
    max_size=40,
).map(lambda parts: "".join(parts).encode())


@given(bytes_of_all_kinds)
@example(MIXED)
def test_cuts_lie_between_characters_and_change_no_look(data: bytes) -> None:
    text = visible.decode(data)
    assert visible.widths(text).sum() == len(data)
    cuts = visible.cluster_begins(data).tolist()
    assert cuts == sorted(set(cuts))
    assert cuts[:1] == [0][: len(data)]
    ends = {0, *np.cumsum(visible.widths(text)).tolist()}
    assert set(cuts) <= ends
    clusters = [data[a:b] for a, b in pairwise([*cuts, len(data)])]
    previous, shown = "", []
    for cluster in clusters:
        shown += list(visible.pieces(cluster, previous))
        previous = visible.decode(cluster)[-1]
    assert _merged(shown) == _merged(list(visible.pieces(data)))


def _merged(pieces: list[visible.Piece]) -> list[tuple[Kind, str]]:
    out: list[tuple[Kind, str]] = []
    for kind, text in pieces:
        if out and kind is out[-1][0] and kind in (Kind.TEXT, Kind.SPACE):
            text = out.pop()[1] + text
        out.append((kind, text))
    return out


@given(bytes_of_all_kinds)
@example(MIXED)
def test_nothing_is_lost_and_nothing_unseen_is_shown(data: bytes) -> None:
    text = visible.decode(data)
    for kind, shown in visible.pieces(data):
        if kind is Kind.BYTE:
            assert text[0] == bytes.fromhex(shown).decode("utf-8", "surrogateescape")
            text = text[1:]
        elif kind is Kind.NAMED:
            assert visible.name_of(text[0]) == shown
            assert shown.isascii()
            text = text[1:]
        else:
            assert text.startswith(shown)
            text = text[len(shown) :]
        if kind is Kind.TEXT:
            assert all(c in "\u200c\u200d" or unicodedata.category(c)[0] not in "CZ" for c in shown)
    assert text == ""
    label = visible.label(data)
    assert all(c in "\u200c\u200d" or (c.isprintable() and not c.isspace()) for c in label)


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("e\u0301a", 2),
        ("\r\n\n", 2),
        ("👩\u200d👩\u200d👧", 1),
        ("👍🏽👍", 2),
        ("🇩🇪🇫🇷🇮", 3),
        ("한", 1),
        ("हिन्दी", 3),
        ("\n\u0301", 2),
        ("a" + "\u0301" * 40, 3),
        ("بب", 2),
    ],
)
def test_clusters(text: str, clusters: int) -> None:
    assert len(visible.cluster_begins(text.encode())) == clusters


def test_labels() -> None:
    assert visible.label(b" the\r\n\t\x00\xe4\xbd") == "␣the␍↵⇥⟨NUL⟩⟨E4⟩⟨BD⟩"
    assert visible.label("\u202eevil\u0301".encode()) == "⟨RLO⟩evil\u0301"
    assert visible.label(b"ab" * 400) == "ab" * 30 + "…"
    assert visible.label("\u0301".encode()) == "◌\u0301"


# Colours


@pytest.mark.parametrize("dark", [False, True])
def test_the_scale_is_uniform_and_readable(dark: bool) -> None:
    lab = scale.oklab_steps(dark)
    lightness = np.diff(lab[:, 0]) * (1 if dark else -1)
    assert (lightness > 0.02).all()
    distance = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert distance.max() / distance.min() < 1.1
    rgb = scale.oklab_to_linear_rgb(lab)
    assert rgb.min() > -0.005
    assert rgb.max() < 1.005
    for step in scale.steps(dark):
        high, low = sorted([_luminance(step.background), _luminance(step.foreground)], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    page_luminance = _luminance(scale.steps(dark)[0].background)
    assert page_luminance < 0.02 if dark else page_luminance > 0.9


def _luminance(colour: str) -> float:
    srgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return scale.luminance(
        np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb])
    )


# Numbers


CASES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "mixed": (MIXED, {"level": 3}),
    "noise": (NOISE, {"level": 3}),
    "without-a-network": (MIXED, {"level": 1}),
    "several-blocks": (MIXED + NOISE + PROSE * 6, {"level": 3, "block_size": 1024, "whole": True}),
    "range": (PROSE * 30, {"level": 3, "block_size": 2048, "begin": 3001, "end": 3333}),
    "from": (PROSE * 120, {"level": 1, "begin": 200}),
    "one-byte": (b"a", {"level": 3}),
    "empty": (b"", {"level": 3}),
}


@pytest.fixture(scope="module")
def explained() -> dict[str, Explanation]:
    return {name: explain(data, name=f"{name}.txt", **how) for name, (data, how) in CASES.items()}


@needs_model
@pytest.mark.parametrize("case", CASES)
def test_units_cover_what_is_shown_and_add_up_to_the_trace(
    case: str, explained: dict[str, Explanation]
) -> None:
    e, (data, how) = explained[case], CASES[case]
    first = how.get("begin", 0)
    last = min(how.get("end", first + explain_module.SHOWN_NBYTES), len(data))
    assert [e.begin, *(unit.end for unit in e.units)] == [*(unit.begin for unit in e.units), e.end]
    assert first - 255 <= e.begin <= first
    assert last <= e.end <= last + 255
    assert e.data == data[e.begin : e.end]
    assert e.line == data[: e.begin].count(b"\n") + 1
    options = {key: how[key] for key in ("level", "block_size") if key in how}
    traced = trace(data, begin=e.begin, end=e.end, alternatives=5, **options)
    assert np.array_equal(e.bits, traced.bits)
    assert np.array_equal(e.lm_bits, traced.lm_bits, equal_nan=True)
    bits = math.fsum(traced.bits)
    assert math.fsum(unit.bits for unit in e.units) == pytest.approx(bits, rel=1e-12)
    assert e.shown.bits == pytest.approx(bits, rel=1e-12)
    lm_bits = math.fsum(traced.lm_bits[~np.isnan(traced.lm_bits)])
    assert e.shown.lm_bits == pytest.approx(lm_bits, rel=1e-12)
    assert (e.shown_series.coded * np.diff(e.shown_series.edges)).sum() == pytest.approx(bits, rel=1e-12)
    # The tokens that begin in the range are the trace's, with the same alternatives.
    inside = (e.tokens.begin >= e.begin) & (e.tokens.begin < e.end)
    assert np.array_equal(e.tokens.begin[inside], traced.token_begin)
    assert np.array_equal(e.tokens.ids[inside], traced.token_id)
    assert e.shown.n_token == len(traced.token_id)
    for mine, other in (
        (e.tokens.p, traced.token_p),
        (e.tokens.alternative_id, traced.alternative_id),
        (e.tokens.alternative_p, traced.alternative_p),
    ):
        assert other is not None
        assert np.array_equal(mine[inside], other)


@needs_model
@pytest.mark.parametrize("case", CASES)
def test_units_are_tokens_or_characters(case: str, explained: dict[str, Explanation]) -> None:
    e = explained[case]
    characters = {e.begin + at for at in [*visible.cluster_begins(e.data).tolist(), len(e.data)]}
    begins = dict(zip(e.tokens.begin.tolist(), e.tokens.end.tolist(), strict=True))
    n_token = 0
    for unit in e.units:
        assert unit.begin in characters
        assert unit.end in characters
        assert math.isnan(unit.lm_bits) == (unit.last == unit.first)
        if begins.get(unit.begin) == unit.end:
            n_token += 1
            assert unit.last - unit.first == 1
        else:  # one character: no cut inside
            assert not characters & set(range(unit.begin + 1, unit.end))
        own = e.tokens.begin[unit.first : unit.last], e.tokens.end[unit.first : unit.last]
        if unit.last > unit.first and case != "several-blocks":
            assert own[0][0] <= unit.begin
            assert own[1][-1] >= unit.end
    if case == "range":
        assert n_token == len(e.units) > 80
    if case == "several-blocks":
        assert {block.method for block in e.blocks} >= {"stored", "lm+cm"}
        assert 0 < e.shown.lm_nbytes < e.shown.end


@needs_model
def test_what_was_coded_is_the_blocks_of_the_range(explained: dict[str, Explanation]) -> None:
    e = explained["range"]
    assert (e.coded.begin, e.coded.end) == (2048, 4096)
    assert [block.offset for block in e.blocks] == [2048]
    assert e.frame_nbytes is None
    e = explained["several-blocks"]
    assert (e.coded.begin, e.coded.end) == (0, e.nbytes)
    whole = trace(CASES["several-blocks"][0], level=3, block_size=1024)
    assert list(whole.blocks) == e.blocks
    assert e.coded.bits == pytest.approx(math.fsum(whole.bits), rel=1e-12)
    assert e.coded.n_token == len(whole.token_id)
    # A file of one block: the frame that compress writes.
    assert explained["mixed"].frame_nbytes == trace(MIXED, level=3).frame_nbytes


@needs_model
@pytest.mark.parametrize("seed", range(6))
def test_a_range_shows_what_the_whole_shows_there(seed: int) -> None:
    data = SCRIPTS.encode() + PROSE
    whole = explain(data, level=3)
    begin = random.Random(seed).randrange(1, len(data) - 40)
    part = explain(data, level=3, begin=begin, end=begin + 37)
    expected = [unit for unit in whole.units if unit.end > begin and unit.begin < begin + 37]
    places = [(unit.begin, unit.end) for unit in expected]
    assert [(unit.begin, unit.end) for unit in part.units] == places
    assert [unit.bits for unit in part.units] == pytest.approx([unit.bits for unit in expected], rel=1e-12)
    for mine, other in zip(part.units, expected, strict=True):
        ids = [e.tokens.ids[u.first : u.last].tolist() for e, u in ((part, mine), (whole, other))]
        assert ids[0] == ids[1]


@needs_model
def test_alternatives_in_blocks_of_several_streams() -> None:
    data = PROSE * 2
    traced = trace(data, level=3, streams=3, alternatives=3)
    assert [block.streams for block in traced.blocks] == [3]
    window = explain_module._Window(memoryview(data), 150, 300, 3)
    window.add(trace(data, level=3, streams=3))
    tokens = window.tokens(traced.model)
    inside = np.searchsorted(traced.token_begin, [tokens.begin[0], tokens.begin[-1] + 1])
    here = slice(*inside)
    assert tokens.begin[0] <= 150 < tokens.end[0]
    assert tokens.begin[-1] < 300 <= tokens.end[-1]
    assert traced.token_p is not None
    assert np.array_equal(tokens.ids, traced.token_id[here])
    assert np.array_equal(tokens.p, traced.token_p[here])
    assert traced.alternative_id is not None
    assert np.array_equal(tokens.alternative_id, traced.alternative_id[here])


def test_a_range_too_large_for_a_page() -> None:
    with pytest.raises(ConfigError, match="1,048,577 bytes is too large for a page"):
        explain(bytes((1 << 20) + 1), level=1, end=(1 << 20) + 1)


@pytest.mark.parametrize("seed", range(30))
def test_passages_exceed_the_mean_by_most(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "MAX_PASSAGES", 1000)
    rng = random.Random(seed)
    n = rng.randrange(1, 40)
    units = [Unit(3 * i, 3 * i + 3, 0, 0, float(rng.choice([0, 1, 2, 9, 30])), math.nan) for i in range(n)]
    totals = Totals(0, 3 * n, 0, sum(unit.bits for unit in units), 0.0, 0)
    found = _passages(units, totals)

    def excess(first: int, last: int) -> float:
        allowed = explain_module.PASSAGE_FACTOR * totals.bits / (3 * n)
        return sum(unit.bits - 3 * allowed for unit in units[first:last])

    # The definition of Ruzzo and Tompa: the best run, then the same left and right of it.
    def maximal(first: int, last: int) -> list[tuple[int, int]]:
        runs = [(a, b) for a in range(first, last) for b in range(a + 1, last + 1)]
        best = max(runs, key=lambda run: (round(excess(*run), 6), run[0] - run[1]), default=None)
        if best is None or round(excess(*best), 6) <= 0:
            return []
        return [*maximal(first, best[0]), best, *maximal(best[1], last)]

    by_excess = [excess(p.first, p.last) for p in found]
    assert by_excess == pytest.approx(sorted(by_excess, reverse=True), abs=1e-6)
    expected = maximal(0, n)
    assert sum(by_excess) == pytest.approx(sum(excess(*run) for run in expected), abs=1e-6)
    spans = sorted((p.first, p.last) for p in found)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for p in found:
        assert (p.begin, p.end) == (units[p.first].begin, units[p.last - 1].end)
        assert p.bits == sum(unit.bits for unit in units[p.first : p.last])


@needs_model
@pytest.mark.parametrize("case", CASES)
def test_json_says_the_same(case: str, explained: dict[str, Explanation]) -> None:
    e = explained[case]
    document = json.loads(json.dumps(as_json_object(e), allow_nan=False))
    assert document["shown"]["bits"] == e.shown.bits
    assert sum(document["bits"]) == pytest.approx(e.shown.bits, abs=1e-4 * len(e.data) + 1e-9)
    assert [bits is None for bits in document["network_bits"]] == np.isnan(e.lm_bits).tolist()
    assert len(document["tokens"]) == np.count_nonzero((e.tokens.end > e.begin) & (e.tokens.begin < e.end))
    for token in document["tokens"]:
        data = token["text"].encode() if "text" in token else bytes.fromhex(token["hex"])
        assert CASES[case][0][token["begin"] : token["end"]] == data
        assert len(token["alternatives"]) == 5
        best = [other["p"] for other in token["alternatives"]]
        assert best == sorted(best, reverse=True)
        assert token["network_p"] <= best[0]


# The page


class Parsed(HTMLParser):
    """Collects a page and refuses what it must not hold.

    Attributes:
        shown: the text pane as it reads: names of unseen characters in ⟨⟩, bytes in hexadecimal.
        about: of every unit, what hovering shows.
    """

    TAGS = frozenset(
        re.findall(
            r"\w+",
            "html head meta title style body h1 h2 p div b span fieldset legend label input figure "
            "figcaption svg path rect a i table tr th td bdi details summary dl dt dd sub code footer",
        )
    )
    VOID = frozenset({"meta", "input", "path"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.shown, self.title, self.style = "", "", ""
        self.about: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in self.TAGS | {"title"}, tag
        values = dict(attributes)
        assert len(values) == len(attributes)
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "action", "background")
            if name == "style":
                assert re.fullmatch(r"(left|bottom):[0-9.e+-]+%", value or "")
            if name == "href":
                assert tag == "a"
                assert value is not None
                assert value.startswith("#")
                self.links.append(value[1:])
            if name == "id":
                self.ids.append(str(value))
        if tag == "rect" and self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            return
        if "data-i" in values:
            self.about.append(str(values["data-i"]))
        if tag not in self.VOID:
            self.open.append((tag, values))
        if tag == "i" and values.get("class") in ("x", "h"):
            self.shown += "⟨"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        opened, values = self.open.pop()
        assert opened == tag
        if tag == "i" and values.get("class") in ("x", "h"):
            self.shown += "⟩"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if tags[-1:] == ["style"]:
            self.style += data
        elif tags[-1:] == ["title"] and "head" in tags:
            self.title += data
        elif any("data-i" in values for _, values in self.open):
            self.shown += data
        elif any(values.get("class") == "text" for _, values in self.open):
            raise AssertionError(f"text outside units: {data!r}")
        else:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError("a declaration")


def as_read(data: bytes) -> str:
    """What the text pane must read."""
    out, previous = "", ""
    for kind, text in visible.pieces(data, previous):
        if kind is Kind.LINE_END:
            out += "\n"
        elif kind in (Kind.NAMED, Kind.BYTE):
            out += f"⟨{text}⟩"
        else:
            out += text
    return out


@needs_model
@pytest.mark.parametrize("case", CASES)
def test_the_page_is_the_text_and_stands_alone(case: str, explained: dict[str, Explanation]) -> None:
    e = explained[case]
    text = page.render(e)
    parsed = Parsed(text)
    assert parsed.shown == as_read(e.data)
    assert parsed.title == f"{case}.txt: where the bits go"
    # Nothing from elsewhere, and no script from anywhere.
    assert not re.search(r"@import|url\(|https?:|expression|javascript", parsed.style)
    assert "<script" not in text.replace("&lt;script", "")
    assert "default-src 'none'" in text
    assert "script-src" not in text
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
    assert not set(text) & {chr(c) for c in [0x7F, *range(0x80, 0xA0), 0x202E, 0x202D, 0x200B, 0xFEFF]}
    # Links lead to places that are there, and a place is there once.
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert set(parsed.links) <= set(parsed.ids)
    assert all(f"passage{i + 1}" in parsed.links for i in range(len(e.passages)))
    # The figures are those of the units.
    bits = [float(re.findall(r"^(\d+\.\d\d) bits", about, re.M)[0]) for about in parsed.about]
    assert bits == [float(f"{unit.bits:.2f}") for unit in e.units]
    words = " ".join(parsed.words)
    if e.nbytes:
        assert f"{e.shown.bits:,.0f}" in words
        assert f"{e.coded.bpb:.3f}" in words
    assert ("The file is empty" in words) == (not e.nbytes)
    assert ("--range" in words) == (not e.is_whole)


@needs_model
def test_hovering_tells_what_was_expected(explained: dict[str, Explanation]) -> None:
    e = explained["range"]
    about = Parsed(page.render(e)).about
    for unit, text in zip(e.units, about, strict=True):
        lines = text.split("\n")
        assert lines[0].endswith(f"bytes {unit.begin:,} to {unit.end:,}, line {lines[0].split()[-1]}") or (
            f"byte {unit.begin:,}," in lines[0]
        )
        assert lines[3] == "Expected"
        assert 5 <= len(lines[4:]) <= 6
        came = [line for line in lines[4:] if line.endswith(" ◂")]
        assert len(came) == 1
        token = e.tokens.strings[e.tokens.ids[unit.first]]
        assert came[0].split(maxsplit=2 if " %" in came[0] else 1)[-1] == f"{visible.label(token)} ◂"


@needs_model
def test_the_text_of_plain_files_can_be_copied(explained: dict[str, Explanation]) -> None:
    e = explained["range"]
    assert Parsed(page.render(e)).shown == e.data.decode().replace("\r\n", "\n")


@settings(max_examples=20)
@given(st.text(max_size=80))
@example("a\udcff\n<b>&\"'$x^2$\x1b\u202e.txt")
@example("")
def test_any_name_is_text(name: str) -> None:
    e = explain(b"<a>", level=1, name=name)
    parsed = Parsed(page.render(e))
    assert "\n" not in parsed.title
    assert all(c.isprintable() for c in parsed.title.replace("\u200c", "").replace("\u200d", ""))
    json.dumps(as_json_object(e))


@needs_model
def test_a_page_of_20_kb_takes_at_most_2_mb() -> None:
    rng = random.Random(3)
    words = [bytes(rng.choices(b"etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(900)]
    data = b" ".join(rng.choice(words) for _ in range(4000))[:20_000]
    assert len(data) == 20_000
    e = explain(data, level=3)
    assert e.is_whole
    assert len(page.render(e).encode()) <= 2_000_000


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (1.0, "  100 %"),
        (0.9997, "99.97 %"),
        (0.5, " 50.0 %"),
        (0.0123, " 1.23 %"),
        (0.0005, "1:2,000"),
        (1e-7, "  1:1e7"),
        (0.0, "      0"),
    ],
)
def test_probabilities_are_short(p: float, text: str) -> None:
    assert page._percent(p) == text


# The picture


@needs_model
@pytest.mark.parametrize("case", ["several-blocks", "empty"])
def test_the_picture(case: str, explained: dict[str, Explanation]) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from lmcodec.measure import picture

    for coded in (True, False):
        data = picture.draw(explained[case], coded=coded)
        pixels = imread(io.BytesIO(data))
        assert pixels.shape[:2] == (546, 1300)
        drawn = (np.abs(pixels[..., :3] - np.array([0x8A, 0x0F, 0x57]) / 255) < 0.01).all(axis=2)
        assert drawn.any() == (case != "empty")


def test_a_picture_of_any_name() -> None:
    pytest.importorskip("matplotlib")
    from lmcodec.measure import picture

    assert picture.draw(explain(b"abc", level=1, name="$x_$ 文字\n\udcff.txt")).startswith(b"\x89PNG")


# The command


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-m", "lmcodec", "explain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_the_command(tmp_path: Path) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "a.html"
    source.write_bytes(MIXED)
    source.chmod(0o600)
    done = run(source, "-o", out, "--level", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    expected = page.render(explain(MIXED, level=1, name="a.txt")).encode()
    assert out.read_bytes() == expected
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask
    # An output that is there stays, unless -f says otherwise; the input stays in any case.
    out.write_bytes(b"mine")
    done = run(source, "-o", out, "--level", "1")
    assert done.returncode == 1
    assert done.stderr.decode() == f"lmcodec: {out}: exists already (-f overwrites it)\n"
    assert out.read_bytes() == b"mine"
    assert run(source, "-f", "-o", out, "--level", "1").returncode == 0
    assert out.read_bytes() == expected
    assert b"is the input itself" in run(source, "-f", "-o", source, "--level", "1").stderr
    assert source.read_bytes() == MIXED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.txt"]


def test_the_command_in_a_pipe() -> None:
    done = run("-", "--level", "1", "--json", "--range", "100:150", input=MIXED)
    document = json.loads(done.stdout)
    assert (document["file"], document["shown"]["begin"], document["shown"]["end"]) == ("(stdin)", 100, 150)
    done = run("-", "-o", "-", env={**os.environ, "LMCODEC_LEVEL": "1"}, input=PROSE * 120)
    assert done.returncode == 0
    assert done.stdout == page.render(explain(PROSE * 120, level=1, name="(stdin)")).encode()
    assert done.stderr.decode().startswith("lmcodec: (stdin): 20,000 of ")
    assert run("-", "-q", "--level", "1", input=PROSE * 120).stderr == b""
    closed = subprocess.run(
        f"'{sys.executable}' -I -m lmcodec explain - --level 1 | head -c 20",
        shell=True,
        capture_output=True,
        input=PROSE * 120,
        check=False,
    )
    assert closed.stdout == b"<!DOCTYPE html>\n<htm"
    assert b"Traceback" not in closed.stderr


def test_the_command_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source, png = tmp_path / "a.txt", tmp_path / "a.png"
    source.write_bytes(PROSE * 120)
    done = run(source, "--png", png, "--level", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert png.read_bytes().startswith(b"\x89PNG")
    both = run(source, "--png", "-", "-o", tmp_path / "a.html", "-q", "--level", "1")
    assert both.stdout == png.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt", "-o", "x"], "none.txt: No such file or directory"),
        ([".", "-o", "x"], ".: is a directory; name a file in it"),
        (["a.txt", "-o", "no/x"], "no: No such file or directory"),
        (["a.txt", "-o", "."], ".: is a directory"),
        (["a.txt", "-o", "x", "--png", "./x"], "x cannot hold both the page and the picture"),
        (["a.txt", "-o", "x", "--range", "5M:"], "--range begins at byte 5,242,880, but a.txt has 3 bytes"),
        (
            ["a.txt", "-o", "x", "--level", "1", "--model", "small"],
            "--model does not go together with --level 1",
        ),
        (["a.txt", "-o", "x", "--model", "none"], "none: neither a shipped model"),
        (["a.txt", "-o", "x", "--level", "2", "--method", "lm"], "--method lm does not go together with"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.decode().startswith(f"lmcodec: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("text", ["1000", "5:2", "a:b", "-5:", "1:2:3"])
def test_ranges_that_are_none(text: str) -> None:
    done = run("-", "--range", text, input=b"")
    assert done.returncode == 1
    assert b"--range" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_without_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    code = "import sys; sys.modules['matplotlib'] = None; from lmcodec.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "explain", "a.txt", "--png", "a.png", "--level", "1"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr == "lmcodec: pictures need matplotlib: pip install 'lmcodec[plot]'\n"
    assert done.returncode == 1


# In a browser


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@needs_model
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(theme: str, explained: dict[str, Explanation], tmp_path: Path) -> None:
    """Chromium shows the colours of the scale, and nothing of the text runs."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium on the PATH")
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    # The theme is chosen as a reader would, with its button.
    text = page.render(explained["mixed"]).replace('id="theme-auto" checked', 'id="theme-auto"')
    assert "onerror=" in text
    (tmp_path / "a.html").write_text(
        text.replace(f'id="theme-{theme}"', f'id="theme-{theme}" checked'), "utf-8"
    )
    command = [chromium, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--window-size=900,2400"]
    command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-extensions"]
    url = (tmp_path / "a.html").as_uri()
    done = subprocess.run(
        [*command, f"--screenshot={tmp_path / 'a.png'}", url], capture_output=True, timeout=120, check=False
    )
    if not (tmp_path / "a.png").exists():
        pytest.skip(f"Chromium does not start here: {done.stderr[-200:]!r}")
    pixels = np.round(imread(tmp_path / "a.png")[..., :3] * 255).astype(int)
    assert pixels.shape == (2400, 900, 3)
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    for step in scale.steps(theme == "dark"):
        assert tuple(bytes.fromhex(step.background[1:])) in colours
    corner = (0x17, 0x17, 0x1A) if theme == "dark" else (255, 255, 255)
    assert tuple(pixels[5, 5]) == corner
