"""An explanation as one HTML page that needs nothing else: no script, no font, no style from elsewhere.

Everything that comes from the file is escaped, and the page forbids scripts and requests to itself besides
(Content-Security-Policy), so that no text can become more than text. Hovering, themes and the choice of
colours are CSS.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import resources

import numpy as np

from lmcodec import __version__
from lmcodec.lm import store
from lmcodec.measure import scale, visible
from lmcodec.measure.explain import Explanation, Passage, Series, Totals, Unit
from lmcodec.measure.visible import Kind

_TOKEN_TOP, _CHARACTER_TOP = 16, 8  # bits at which the scale ends
_CONTEXT_NBYTES = 40  # of text on both sides of a passage
_EXCERPT_CHARACTERS = 160
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(explanation: Explanation) -> str:
    """The page."""
    return "".join(_Page(explanation).parts())


class _Page:
    def __init__(self, explanation: Explanation) -> None:
        self.e = explanation
        self.has_network = explanation.shown.lm_nbytes > 0
        self.top = _TOKEN_TOP if len(explanation.tokens) else _CHARACTER_TOP
        # Where the plot leads to: the unit that holds the first byte of a bin, and of other bins, perhaps.
        edges = explanation.shown_series.edges[:-1]
        begins = np.array([unit.begin for unit in explanation.units], np.int64)
        units = np.searchsorted(begins, edges, side="right") - 1
        self._unit_at = dict(zip(edges.tolist(), units.tolist(), strict=True))
        self._linked = set(units.tolist())

    def parts(self) -> Iterator[str]:
        e = self.e
        title = visible.title(e.name, 200)
        yield (
            "<!DOCTYPE html>\n"
            '<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">\n'
            f'<meta name="generator" content="lmcodec {__version__}">\n'
            f"<title>{escape(title)}: where the bits go</title>\n<style>\n{_style()}</style></head>\n<body>\n"
        )
        yield f"<h1>{escape(title)}</h1>\n"
        yield f'<p class="faint">Where its bits go when lmcodec compresses it {self._how()}.</p>\n'
        yield self._choices(
            "theme", "Page", (("auto", "as the system"), ("light", "light"), ("dark", "dark"))
        )
        yield from self._notices()
        yield from self._cards()
        yield from self._plots()
        yield from self._passages()
        yield from self._text()
        yield from self._totals()
        yield from self._blocks()
        yield _resource("page_notes.html")
        yield f"<footer>lmcodec {__version__} explain</footer>\n</body></html>\n"

    def _how(self) -> str:
        e = self.e
        how = f"at level {e.level}"
        if e.model is None:
            return how + ", without a language model"
        known = store.SHIPPED.get(e.model.number) if e.model.number is not None else None
        name = known.name if known else e.model.path.name
        return f"{how}, with the language model {escape(visible.label(name.encode('utf-8', 'replace')))}"

    def _choices(self, name: str, legend: str, values: tuple[tuple[str, str], ...]) -> str:
        buttons = "".join(
            f'<label><input type="radio" name="{name}" id="{name}-{value}"'
            f"{' checked' if i == 0 else ''}>{text}</label>\n"
            for i, (value, text) in enumerate(values)
        )
        return f'<div class="choices {name}"><fieldset><legend>{legend}:</legend>{buttons}</fieldset></div>\n'

    def _notices(self) -> Iterator[str]:
        e = self.e
        if not e.nbytes:
            yield '<p class="notice">The file is empty: there is nothing to explain.</p>\n'
        if not e.is_whole:
            text = (
                f"The file has {e.nbytes:,} bytes. Shown are {e.end - e.begin:,} of them, from byte "
                f"{e.begin:,} to {e.end:,} (<code>--range</code> chooses others)"
            )
            if (e.coded.begin, e.coded.end) != (0, e.nbytes):
                text += (
                    f"; coded were the blocks that these lie in, from byte {e.coded.begin:,} to "
                    f"{e.coded.end:,}"
                )
            yield f'<p class="notice">{text}.</p>\n'
        stray = sum(map(visible.is_stray, visible.decode(e.data)))
        if stray:
            each = "byte is" if stray == 1 else "bytes are"
            yield (
                f'<p class="notice">{stray:,} {each} not UTF-8 text and shown in hexadecimal, in dotted '
                "frames.</p>\n"
            )

    def _cards(self) -> Iterator[str]:
        e, coded = self.e, self.e.coded
        if not e.nbytes:
            return
        compressed = e.frame_nbytes or sum(block.frame_nbytes for block in e.blocks)
        nbytes = coded.end - coded.begin
        where = "" if nbytes == e.nbytes else " of the coded part"
        rows = [
            (f"{nbytes:,}", f"bytes{where}"),
            (f"{compressed:,}", "bytes compressed" + ("" if e.frame_nbytes else ", headers and index apart")),
            (f"{8 * compressed / nbytes:.3f}", "bits per byte, compressed"),
            (f"{coded.bpb:.3f}", "bits per byte as coded" + (": the mixture" if coded.lm_nbytes else "")),
        ]
        if coded.lm_bpb is not None:
            rows.append((f"{coded.lm_bpb:.3f}", "bits per byte, network alone"))
            rows.append(
                (f"{coded.n_token:,}", f"tokens of {coded.lm_nbytes / max(coded.n_token, 1):.2f} bytes")
            )
        yield '<div class="cards">'
        yield from (f"<div><b>{figure}</b><span>{text}</span></div>" for figure, text in rows)
        yield "</div>\n"

    def _plots(self) -> Iterator[str]:
        e = self.e
        if not e.nbytes:
            return
        is_part = (e.begin, e.end) != (e.coded.begin, e.coded.end)
        yield "<h2>Bits by position</h2>\n"
        if is_part:
            borders = [block.offset for block in e.blocks[1:]]
            yield self._plot(
                e.coded_series, "All that was coded; what is shown is shaded", borders, linked=False
            )
        if e.end > e.begin:
            yield self._plot(e.shown_series, "What is shown" if is_part else "", [], linked=True)

    def _plot(self, series: Series, caption: str, borders: list[int], linked: bool) -> str:
        e = self.e
        first, last = int(series.edges[0]), int(series.edges[-1])
        values = np.concatenate([series.coded, series.network])
        top = max(float(np.nanmax(values)), 0.5)
        ticks = _ticks(0, top * 1.04, 5)
        top = max(top * 1.04, ticks[-1])
        has_network = bool(np.isfinite(series.network).any())
        mean_nbytes = (last - first) / len(series.coded)

        def x(at: float) -> float:
            return round(1000 * (at - first) / (last - first), 2)

        def y(value: float) -> float:
            return round(100 * (1 - value / top), 2)

        def line(bpb: np.ndarray) -> str:
            path, pen = "", "M"
            for a, b, value in zip(
                series.edges[:-1].tolist(), series.edges[1:].tolist(), bpb.tolist(), strict=True
            ):
                if math.isnan(value):
                    pen = "M"
                    continue
                path += f"{pen}{x((a + b) / 2):g} {y(value):g}"
                pen = "L"
            return path if path.count("L") else path + "h.01"

        parts = ["<figure><figcaption>"]
        parts.append(f"<span>{caption}</span>" if caption else "")
        parts.append('<span class="key coded">as coded</span>')
        parts.append('<span class="key network">network alone</span>' if has_network else "")
        parts.append(
            f'<span class="faint">bits per byte, means of {mean_nbytes:,.0f} bytes</span></figcaption>\n'
        )
        parts.append(
            '<div class="plot"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
            'aria-label="Bits per byte by position">'
        )
        parts += (f'<path class="grid" d="M0 {y(t):g}H1000"/>' for t in ticks)
        if not linked:
            width = max(x(e.end) - x(e.begin), 2)
            parts.append(f'<rect class="window" x="{x(e.begin):g}" width="{width:g}" height="100"/>')
        parts += (f'<path class="border" d="M{x(at):g} 0V100"/>' for at in borders)
        if has_network:
            parts.append(f'<path class="network" d="{line(series.network)}"/>')
        parts.append(f'<path class="coded" d="{line(series.coded)}"/>')
        for i, (a, b) in enumerate(zip(series.edges[:-1].tolist(), series.edges[1:].tolist(), strict=True)):
            text = f"bytes {a:,} to {b:,}: {series.coded[i]:.2f} bits per byte as coded"
            if not math.isnan(series.network[i]):
                text += f", {series.network[i]:.2f} by the network alone"
            rect = (
                f'<rect class="bin" x="{x(a):g}" width="{x(b) - x(a):.4g}" height="100">'
                f"<title>{text}</title></rect>"
            )
            parts.append(f'<a href="#unit{self._unit_at[a]}">{rect}</a>' if linked else rect)
        parts.append("</svg>\n")
        parts += (f'<i class="tick-y" style="bottom:{100 * t / top:.4g}%">{t:g}</i>' for t in ticks)
        places = [t for t in _ticks(first, last, 8) if t >= first]
        for i, t in enumerate(places):
            minor = " minor" if i % 2 else ""
            parts.append(f'<i class="tick-x{minor}" style="left:{x(t) / 10:g}%">{t:,.0f}</i>')
        parts.append("</div></figure>\n")
        return "".join(parts)

    def _passages(self) -> Iterator[str]:
        e = self.e
        if not e.passages:
            return
        yield "<h2>Costliest passages</h2>\n"
        share = sum(p.bits for p in e.passages) / e.shown.bits
        nbytes = sum(p.end - p.begin for p in e.passages) / (e.end - e.begin)
        yield (
            f'<p class="faint">These {len(e.passages)} take {share:.1%} of the bits of what is shown and are '
            f"{nbytes:.1%} of its bytes.</p>\n"
            if len(e.passages) > 1
            else ""
        )
        yield (
            '<div class="scroll"><table class="passages"><tr><th>Bits</th><th>Bits per byte</th>'
            '<th>From byte</th><th class="l excerpt">Text</th></tr>\n'
        )
        for i, p in enumerate(e.passages):
            yield (
                f"<tr><td>{p.bits:,.0f}</td><td>{p.bits / (p.end - p.begin):.2f}</td>"
                f'<td><a href="#passage{i + 1}">{p.begin:,}</a></td>'
                f'<td class="l excerpt">{self._excerpt(p)}</td></tr>\n'
            )
        yield "</table></div>\n"

    def _excerpt(self, passage: Passage) -> str:
        e = self.e
        begins = [
            unit.begin for unit in e.units[: passage.first] if unit.begin >= passage.begin - _CONTEXT_NBYTES
        ]
        ends = [u.end for u in e.units[passage.last :] if u.end <= passage.end + _CONTEXT_NBYTES]

        def text(begin: int, end: int) -> str:
            shown = visible.label(e.data[begin - e.begin : end - e.begin], _EXCERPT_CHARACTERS)
            return f"<bdi>{escape(shown.replace('␣', ' '))}</bdi>"

        before = text(begins[0], passage.begin) if begins else ""
        after = text(passage.end, ends[-1]) if ends else ""
        return f"<span>{before}</span>{text(passage.begin, passage.end)}<span>{after}</span>"

    def _text(self) -> Iterator[str]:
        e = self.e
        if not e.units:
            return
        each = "token" if len(e.tokens) else "character"
        yield '<h2 id="text">The text</h2>\n<div class="bar">\n'
        if self.has_network:
            values = (("coded", "as coded"), ("network", "under the network alone"))
            yield self._choices("by", f"Coloured by bits per {each}", values)
        else:
            yield f'<div class="choices">Coloured by bits per {each}</div>\n'
        yield '<div class="scale">'
        for level in range(scale.N_LEVEL):
            bits = level * self.top / (scale.N_LEVEL - 1)
            last = level == scale.N_LEVEL - 1
            yield f'<span class="c{level}">{bits:g}{"+ bits" if last else ""}</span>'
        yield '</div></div>\n<div class="text" translate="no" spellcheck="false">'
        starts = {p.first: i + 1 for i, p in enumerate(e.passages)}
        stops = {p.last for p in e.passages}
        line, previous = e.line, "" if e.begin == 0 else "?"
        for i, unit in enumerate(e.units):
            if i in stops:
                yield "</span>"
            if i in starts:
                yield f'<span class="p" id="passage{starts[i]}">'
            data = e.data[unit.begin - e.begin : unit.end - e.begin]
            yield self._unit(unit, data, line, previous, f' id="unit{i}"' if i in self._linked else "")
            line += data.count(b"\n")
            previous = visible.decode(data)[-1]
        if len(e.units) in stops:
            yield "</span>"
        yield "</div>\n"

    def _unit(self, unit: Unit, data: bytes, line: int, previous: str, anchor: str) -> str:
        classes = f"c{self._level(unit.bits)}"
        if self.has_network:
            classes += " nx" if math.isnan(unit.lm_bits) else f" n{self._level(unit.lm_bits)}"
        about, text = self._about(unit, data, line), _shown(data, previous)
        return f'<span class="{classes}"{anchor} tabindex=-1 data-i="{about}">{text}</span>'

    def _level(self, bits: float) -> int:
        return min(int(bits * (scale.N_LEVEL - 1) / self.top), scale.N_LEVEL - 1)

    def _about(self, unit: Unit, data: bytes, line: int) -> str:
        """What hovering shows, escaped for an attribute."""
        tokens = self.e.tokens
        place = (
            f"byte {unit.begin:,}" if unit.end == unit.begin + 1 else f"bytes {unit.begin:,} to {unit.end:,}"
        )
        has_network = not math.isnan(unit.lm_bits)
        lines = [
            f"{_label(data)}  {place}, line {line:,}",
            f"{unit.bits:.2f} bits{' as coded' if has_network else ''}, p {_chance(unit.bits)}",
        ]
        if has_network:
            lines.append(f"{unit.lm_bits:.2f} bits by the network, p {_chance(unit.lm_bits)}")
        if unit.last - unit.first == 1:
            lines.append("Expected")
            came = int(tokens.ids[unit.first])
            others = tokens.alternative_id[unit.first].tolist()
            for other, p in zip(others, tokens.alternative_p[unit.first].tolist(), strict=True):
                lines.append(f"{_percent(p)}  {_label(tokens.strings[other])}{' ◂' if other == came else ''}")
            if came not in others:
                lines.append(f"{_percent(float(tokens.p[unit.first]))}  {_label(tokens.strings[came])} ◂")
        elif unit.last > unit.first:
            lines.append("Expected, token by token")
            for i in range(unit.first, unit.last):
                lines.append(f"{_percent(float(tokens.p[i]))}  {_label(tokens.strings[tokens.ids[i]])}")
        return escape("\n".join(lines), quote=False).replace('"', "&quot;")

    def _totals(self) -> Iterator[str]:
        e = self.e
        if not e.nbytes:
            return
        yield (
            '<h2>Totals</h2>\n<div class="scroll"><table><tr><th></th><th>Bytes</th><th>Tokens</th>'
            "<th>Bits as coded</th><th>per byte</th><th>Bits, network alone</th><th>per byte</th></tr>\n"
        )
        coded_name = "whole file" if (e.coded.begin, e.coded.end) == (0, e.nbytes) else "coded blocks"
        rows = [("shown", e.shown), (coded_name, e.coded)]
        for name, totals in rows[1:] if e.is_whole else rows:
            yield f'<tr><th class="l">{name}</th>{_totals_cells(totals)}</tr>\n'
        yield "</table></div>\n"

    def _blocks(self) -> Iterator[str]:
        e = self.e
        if not e.blocks:
            return
        yield (
            '<h2>Blocks</h2>\n<div class="scroll"><table><tr><th>From byte</th><th>Bytes</th>'
            '<th class="l">Method</th><th>Streams</th>'
            "<th>Compressed bytes</th><th>Bits per byte</th></tr>\n"
        )
        for block in e.blocks:
            method = _METHODS.get(block.method, block.method)
            yield (
                f"<tr><td>{block.offset:,}</td><td>{block.nbytes:,}</td>"
                f'<td class="l">{method}</td><td>{block.streams or "–"}</td>'
                f"<td>{block.frame_nbytes:,}</td><td>{8 * block.frame_nbytes / block.nbytes:.3f}</td></tr>\n"
            )
        yield "</table></div>\n"


_METHODS = {
    "stored": "stored",
    "cm": "cm: context models",
    "lm+cm": "lm+cm: network and context models",
    "lm": "lm: network",
    "tensor": "tensor: numbers by planes",
}


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@cache
def _style() -> str:
    rules = []
    for i, (light, dark) in enumerate(zip(scale.steps(False), scale.steps(True), strict=True)):
        select = f".c{i},:root:has(#by-network:checked) .n{i}"
        rules.append(
            f"{select}{{--b:{light.background};--f:{light.foreground};--u:{_underline(i)}}}\n"
            f"@supports (color:light-dark(#000,#fff)){{{select}{{--b:light-dark({light.background},"
            f"{dark.background});--f:light-dark({light.foreground},{dark.foreground})}}}}\n"
        )
    rules.append(":root:has(#by-network:checked) .nx{--b:var(--panel);--f:var(--faint);--u:none}\n")
    return _resource("page.css") + "".join(rules)


def _underline(level: int) -> str:
    """How text of a level is underlined where colours are not to be had."""
    if level < 3:
        return "none"
    return "underline " + ("dotted 1px" if level < 6 else "solid 1px" if level < 10 else "solid 2.5px")


def _shown(data: bytes, previous: str) -> str:
    """The text of a unit as HTML."""
    parts = []
    items = list(visible.pieces(data, previous))
    for i, (kind, text) in enumerate(items):
        if kind is Kind.TEXT:
            parts.append(escape(text, quote=False))
        elif kind is Kind.SPACE:
            # One space between words needs no dot.
            plain = text == " " and not (i + 1 < len(items) and items[i + 1].kind is Kind.LINE_END)
            plain = plain and previous not in ("", "\n", " ") if i == 0 else plain
            parts.append(text if plain else f"<i class=s>{text}</i>")
        elif kind is Kind.TAB:
            parts.append("<i class=t>\t</i>")
        elif kind is Kind.LINE_END:
            # A carriage return in HTML would be a line feed more.
            parts.append(
                ("<i class=r></i>" if "\r" in text else "") + ("<i class=n></i>" if "\n" in text else "")
            )
            parts.append("\n")
        else:
            parts.append(f"<i class={'h' if kind is Kind.BYTE else 'x'}>{text}</i>")
    return "".join(parts)


def _label(data: bytes) -> str:
    text = visible.label(data)
    # Isolated, so that right-to-left text does not reorder the line.
    return text if text.isascii() or not any(map(_is_rtl, text)) else f"\u2068{text}\u2069"


def _is_rtl(c: str) -> bool:
    return unicodedata.bidirectional(c) in ("R", "AL", "AN")


def _chance(bits: float) -> str:
    return _percent(2.0**-bits).strip()


def _percent(p: float) -> str:
    """A probability in 7 characters or more, to the right."""
    if p >= 0.9995:
        text = f"{100 * p:.2f} %" if p < 0.99995 else "100 %"
    elif p >= 0.001:
        text = f"{100 * p:.{1 if p >= 0.1 else 2}f} %"
    elif p > 0 and (odds := 1 / p) < 1e6:
        text = f"1:{odds:,.0f}"
    else:
        text = f"1:{1 / p:.0e}".replace("e+0", "e").replace("e+", "e") if p > 0 else "0"
    return text.rjust(7)


def _totals_cells(totals: Totals) -> str:
    def figure(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:,.{digits}f}"

    cells = [
        f"{totals.end - totals.begin:,}",
        f"{totals.n_token:,}",
        figure(totals.bits, 0),
        figure(totals.bpb, 3),
        figure(totals.lm_bits if totals.lm_nbytes else None, 0),
        figure(totals.lm_bpb, 3),
    ]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` + 1 of them."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step > most:
        step *= 2 if round(step / 10 ** math.floor(math.log10(step))) in (1, 5) else 2.5
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
