"""Models without an exact definition, whose frames only the environment that wrote them restores.

A model in floats gives other numbers with another processor, library, type or batch. Its frames carry a
`Fingerprint` (FORMAT.md section 2.5): which model it is, how its steps are made, which the decoder repeats,
and in which environment, which must be the decoder's. Knows neither a library that runs models nor how a
frame holds the bytes.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmcodec.errors import Corrupt, Unsupported
from lmcodec.lm.interface import LanguageModel

LAYOUT = 1
MAX_NBYTES = 16_384
_MEMBERS = ("environment", "layout", "model", "name", "settings")
_MAX_NAME = 200


@dataclass(frozen=True)
class Fingerprint:
    """What a frame says of the model and the environment that it is bound to.

    Attributes:
        name: what people call the model: no path; may be empty.
        model: SHA-256 of the model's weights, 64 hexadecimal digits.
        settings: how steps are made, such as type and window: JSON values by name. A decoder repeats them.
        environment: where they were made, such as device and versions of libraries: texts by name. It must
            be the decoder's, too.
    """

    name: str
    model: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]

    def pack(self) -> bytes:
        """The data of the extension field: a canonical JSON object."""
        content = {
            "layout": LAYOUT,
            "name": self.name[:_MAX_NAME],
            "model": self.model,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
        }
        return _canonical(content)

    @classmethod
    def parse(cls, data: bytes) -> Fingerprint:
        """What `pack` wrote.

        Raises:
            Corrupt: it is not of this form.
        """
        where = "the fingerprint of an environment-bound model"
        if len(data) > MAX_NBYTES:
            raise Corrupt(f"{where} has {len(data)} bytes, at most {MAX_NBYTES} are allowed")
        try:
            content = json.loads(data.decode(), parse_constant=lambda _: None)
            is_canonical = _canonical(content) == data
        except (ValueError, RecursionError):
            raise Corrupt(f"{where} is no JSON") from None
        if not isinstance(content, dict) or tuple(sorted(content)) != _MEMBERS or not is_canonical:
            raise Corrupt(f"{where} is no canonical object of {', '.join(_MEMBERS)}")
        if content["layout"] != LAYOUT or isinstance(content["layout"], bool):
            raise Corrupt(f"{where} has the layout {content['layout']!r}, expected {LAYOUT}")
        name, model = content["name"], content["model"]
        settings, environment = content["settings"], content["environment"]
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            raise Corrupt(f"{where} has a name that is none")
        if not isinstance(model, str) or not re.fullmatch("[0-9a-f]{64}", model):
            raise Corrupt(f"{where} has no SHA-256 of the weights")
        plain = (str, int, float, bool)
        if not isinstance(settings, dict) or not all(isinstance(v, plain) for v in settings.values()):
            raise Corrupt(f"{where} has settings that are none")
        if not isinstance(environment, dict) or not all(isinstance(v, str) for v in environment.values()):
            raise Corrupt(f"{where} has an environment that is none")
        return cls(name, model, settings, environment)

    def describe(self) -> str:
        """The environment, in a line."""
        return _line(self.environment)

    def full(self) -> str:
        """Model, settings and environment, in a line."""
        named = f"{_visible(self.name)}, " if self.name else ""
        return f"{named}weights {self.model[:16]}, {_line(self.settings)}, {_line(self.environment)}"


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{_visible(name)} {_visible(str(values[name]))}" for name in sorted(values))


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class OtherEnvironment(Unsupported):
    """A frame is bound to another environment than this one."""


class BoundModel(LanguageModel):
    """A language model whose integers depend on where they are computed."""

    exact = False
    steps_at_once = 1

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Of this model as it runs here."""

    @abstractmethod
    def with_settings(self, settings: Mapping[str, Any]) -> BoundModel:
        """The same weights, run as these settings of a frame say.

        Raises:
            Unsupported: it cannot be run so.
        """
