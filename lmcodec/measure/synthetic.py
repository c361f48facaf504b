"""Seeded text for tests and speed measurements: the same bytes on every machine and in every Python.

All choices come from SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA
2014; constants of the public-domain reference by S. Vigna) in integers; nothing of `random`, hashing or
floating point is used. What a kind and a seed give is frozen: tests hold it. None of it says how well real
text compresses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate

from lmcodec.errors import ConfigError

_MASK = (1 << 64) - 1
_PIECE_NBYTES = 1 << 16
_REPEATED_NBYTES = 251  # a prime, so that no block size is in step with it


class SplitMix64:
    """The generator: a 64-bit counter and a mixing function.

    Args:
      seed: any integer; its 64 low bits count.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """A number from 0 to n − 1; n ≤ 2^32, so that the bias of the scaling stays below 2^-32."""
        return ((self.next() >> 32) * n) >> 32


class _Zipf:
    """Indices 0 to n − 1 with frequencies proportional to 1 / (i + shift)."""

    def __init__(self, n: int, shift: int) -> None:
        self._sums = list(accumulate((1 << 24) // (i + shift) for i in range(n)))

    def draw(self, rng: SplitMix64) -> int:
        return bisect_right(self._sums, rng.below(self._sums[-1]))


def _words(text: str) -> list[str]:
    return text.split()


_NOUNS = _words(
    "time man day way year house world life hand part place case week company system room work door "
    "night word water head street letter morning light road question city name story window river "
    "garden voice book field paper office friend family child woman father mother brother reason "
    "answer evening country village train summer winter market island captain stranger doctor lawyer "
    "teacher tree stone fire wind snow rain boat bridge tower church school kitchen corner journey "
    "promise silence shadow memory number figure picture machine engine method result problem matter "
    "change order point line form state law art history music"
)
_VERBS = _words(
    "saw took found left knew made heard kept told held brought lost met sent paid built read wrote "
    "carried followed watched opened closed turned reached crossed passed called asked answered "
    "wanted needed liked feared remembered forgot believed understood noticed expected offered "
    "refused changed moved touched studied measured"
)
_ADJECTIVES = _words(
    "old little great young long good new small large dark quiet strange white black cold warm heavy "
    "empty early late high low clear simple common whole single second first last narrow broken "
    "distant public certain"
)
_ADVERBS = _words("then now again soon never always often slowly suddenly once still almost perhaps at last")
_PREPOSITIONS = _words("in on at by with from to through under over near behind after before without against")
_DETERMINERS = _words("the the the the a a his her their this that every no some")
_PRONOUNS = _words("he she they it we you I he she")
_JOINTS = _words("and but and so because when while though until")
_ONSETS = _words("b br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl sp st t th tr v w")
_VOWELS = _words("a e i o u a e i o ea ou ai oo")
_CODAS = _words("n r s t l d m ck nd nt st ss ng sh rt ll p th y")


def _content_words(n: int) -> list[str]:
    """Invented words of one to three syllables; the same ones for every seed."""
    rng = SplitMix64(0x6C6D636F646563)
    words: dict[str, None] = {}
    while len(words) < n:
        word = ""
        for _ in range(1 + rng.below(3)):
            word += _ONSETS[rng.below(len(_ONSETS))] + _VOWELS[rng.below(len(_VOWELS))]
        word += _CODAS[rng.below(len(_CODAS))]
        words[word] = None
    return list(words)


class _Lexicon:
    """Words with frequencies as natural text has them, and sentences of a small grammar."""

    def __init__(self) -> None:
        self.words = _content_words(3000)
        self._content = _Zipf(3000, 8)
        self._ranks = {
            id(words): _Zipf(len(words), 4)
            for words in (_NOUNS, _VERBS, _ADJECTIVES, _ADVERBS, _PREPOSITIONS)
        }

    def content(self, rng: SplitMix64) -> str:
        return self.words[self._content.draw(rng)]

    def _one(self, rng: SplitMix64, words: list[str]) -> str:
        return words[self._ranks[id(words)].draw(rng)]

    def _noun_phrase(self, rng: SplitMix64) -> str:
        kind = rng.below(16)
        if kind < 4:
            return _PRONOUNS[rng.below(len(_PRONOUNS))]
        if kind == 4:
            return self.content(rng).title()
        noun = self.content(rng) if kind == 5 else self._one(rng, _NOUNS)
        adjective = self._one(rng, _ADJECTIVES) + " " if rng.below(3) == 0 else ""
        determiner = _DETERMINERS[rng.below(len(_DETERMINERS))]
        if determiner == "a" and (adjective or noun)[0] in "aeiou":
            determiner = "an"
        return f"{determiner} {adjective}{noun}"

    def _clause(self, rng: SplitMix64) -> str:
        adverb = self._one(rng, _ADVERBS) + " " if rng.below(5) == 0 else ""
        text = f"{self._noun_phrase(rng)} {adverb}{self._one(rng, _VERBS)} {self._noun_phrase(rng)}"
        while rng.below(3) == 0:
            text += f" {self._one(rng, _PREPOSITIONS)} {self._noun_phrase(rng)}"
        return text

    def sentence(self, rng: SplitMix64) -> str:
        """One to three clauses."""
        text = self._clause(rng)
        for _ in range(rng.below(3)):
            comma = "," if rng.below(2) else ""
            text += f"{comma} {_JOINTS[rng.below(len(_JOINTS))]} {self._clause(rng)}"
        return text[0].upper() + text[1:] + (".", ".", ".", ".", "?", "!")[rng.below(6)]


def _prose(rng: SplitMix64) -> Iterator[str]:
    """Paragraphs of sentences, wrapped at 72 columns."""
    lexicon = _Lexicon()
    while True:
        sentences = [lexicon.sentence(rng) for _ in range(2 + rng.below(6))]
        if rng.below(4) == 0:
            sentences[0] = f"“{sentences[0]}”"
        line, lines = "", []
        for word in " ".join(sentences).split(" "):
            if line and len(line) + 1 + len(word) > 72:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        yield "\n".join([*lines, line]) + "\n\n"


def _timestamp(seconds: int) -> str:
    """Seconds since 2024-01-01 in a calendar of 28-day months, which keeps the date simple."""
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    months, d = divmod(days, 28)
    years, month = divmod(months, 12)
    return f"{2024 + years}-{month + 1:02}-{d + 1:02}T{h:02}:{m:02}:{s:02}Z"


def _json(rng: SplitMix64) -> Iterator[str]:
    """Records, one a line."""
    lexicon = _Lexicon()
    states = ("active", "pending", "closed", "archived")
    number = 1000
    while True:
        number += 1 + rng.below(3)
        first, last = lexicon.content(rng), lexicon.content(rng)
        tags = ", ".join(f'"{lexicon.content(rng)}"' for _ in range(rng.below(5)))
        state = states[min(rng.below(8), 3)]
        score = f"{rng.below(1000)}.{rng.below(100):02}"
        note = "null" if rng.below(2) else f'"{lexicon.sentence(rng)}"'
        yield (
            f'{{"id": {number}, "name": "{first.title()} {last.title()}",'
            f' "email": "{first}.{last}@example.org",'
            f' "state": "{state}", "score": {score}, "tags": [{tags}], "note": {note}}}\n'
        )


def _csv(rng: SplitMix64) -> Iterator[str]:
    """Prices that walk, with a heading."""
    yield "date,symbol,open,high,low,close,volume\n"
    symbols = ["".join(chr(65 + rng.below(26)) for _ in range(3)) for _ in range(8)]
    prices = [5000 + rng.below(20_000) for _ in symbols]  # cents
    day = 0
    while True:
        date = _timestamp(day * 86_400)[:10]
        for i, symbol in enumerate(symbols):
            opened = prices[i]
            prices[i] = closed = max(100, opened + rng.below(401) - 200)
            high, low = max(opened, closed) + rng.below(100), min(opened, closed) - rng.below(100)
            cells = ",".join(f"{p // 100}.{p % 100:02}" for p in (opened, high, low, closed))
            yield f"{date},{symbol},{cells},{1000 * (10 + rng.below(990))}\n"
        day += 1


def _log(rng: SplitMix64) -> Iterator[str]:
    """A server's log: few templates, times that go on, some numbers at random."""
    lexicon = _Lexicon()
    paths = ["/" + "/".join(lexicon.content(rng) for _ in range(1 + rng.below(3))) for _ in range(40)]
    hosts = [f"10.{rng.below(4)}.{rng.below(256)}.{rng.below(256)}" for _ in range(30)]
    which, who = _Zipf(len(paths), 2), _Zipf(len(hosts), 3)
    now = 0
    while True:
        now += rng.below(4)
        host, path, kind = hosts[who.draw(rng)], paths[which.draw(rng)], rng.below(20)
        if kind < 16:
            status = (200, 200, 200, 304, 404)[rng.below(5)]
            request = f'{host} "GET {path}" {status}'
            text = f"INFO  [http-{rng.below(8)}] {request} {rng.below(65_536)} {rng.below(400)}ms"
        elif kind < 19:
            table = path[1:].replace("/", "_")
            text = f"WARN  [pool-{rng.below(4)}] slow query on {table}: {200 + rng.below(5000)}ms"
        else:
            text = f"ERROR [http-{rng.below(8)}] {host} connection reset by peer (session {rng.next():016x})"
        yield f"{_timestamp(now)} {text}\n"


def _code(rng: SplitMix64) -> Iterator[str]:
    """Functions of a language like C."""
    lexicon = _Lexicon()
    types = ("int", "int", "char *", "size_t", "double ", "void *")

    def name() -> str:
        return lexicon.content(rng) + ("_" + lexicon.content(rng) if rng.below(2) else "")

    def value(names: list[str]) -> str:
        return names[rng.below(len(names))] if rng.below(3) else str(rng.below(100))

    while True:
        function = name()
        arguments = list(dict.fromkeys(name() for _ in range(1 + rng.below(3))))
        types_of = [types[rng.below(len(types))].rstrip() for _ in arguments]
        head = ", ".join(f"{t} {a}" for t, a in zip(types_of, arguments, strict=True))
        lines = [f"/* {lexicon.sentence(rng)} */", f"static int {function}({head})", "{"]
        names = list(arguments)
        for _ in range(3 + rng.below(8)):
            kind = rng.below(5)
            if kind == 0:
                names.append(name())
                lines.append(f"    int {names[-1]} = {value(names[:-1])};")
            elif kind == 1:
                lines.append(f"    if ({value(names)} < {value(names)})")
                lines.append(f"        return {('-1', '0', value(names))[rng.below(3)]};")
            elif kind == 2:
                i = "ijk"[rng.below(3)]
                lines.append(f"    for (int {i} = 0; {i} < {value(names)}; {i}++) {{")
                lines.append(f"        {names[rng.below(len(names))]} += {name()}({i}, {value(names)});")
                lines.append("    }")
            else:
                lines.append(
                    f"    {names[rng.below(len(names))]} = {name()}({value(names)}, {value(names)});"
                )
        yield "\n".join([*lines, f"    return {value(names)};", "}", "", ""])


def _random(rng: SplitMix64) -> Iterator[bytes]:
    while True:
        yield b"".join(rng.next().to_bytes(8, "little") for _ in range(1024))


def _repeated(rng: SplitMix64) -> Iterator[bytes]:
    """One piece of random letters over and over."""
    piece = bytes(97 + rng.below(26) for _ in range(_REPEATED_NBYTES))
    while True:
        yield piece * 64


KINDS: dict[str, Callable[[SplitMix64], Iterator[str] | Iterator[bytes]]] = {
    "prose": _prose,
    "json": _json,
    "csv": _csv,
    "log": _log,
    "code": _code,
    "random": _random,
    "repeated": _repeated,
}


def pieces(kind: str, nbytes: int, seed: int = 1) -> Iterator[bytes]:
    """Text of a kind, in pieces.

    Args:
      kind: of KINDS.
      nbytes: how much in all; the end may cut a character.
      seed: other seeds, other text.

    Raises:
      ConfigError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind of text is called {kind!r}: {', '.join(KINDS)}")
    made, buffer = 0, bytearray()
    for part in KINDS[kind](SplitMix64(seed)):
        if made >= nbytes:
            return
        buffer += part.encode() if isinstance(part, str) else part
        if len(buffer) >= _PIECE_NBYTES or made + len(buffer) >= nbytes:
            piece = bytes(buffer[: nbytes - made])
            made += len(piece)
            buffer.clear()
            yield piece


def generate(kind: str, nbytes: int, seed: int = 1) -> bytes:
    """All of `pieces` at once."""
    return b"".join(pieces(kind, nbytes, seed))
