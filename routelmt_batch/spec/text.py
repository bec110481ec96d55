"""Reads and writes YAML 1.2 with ruamel.yaml.

A key that is given twice is an error. The line of each value is known.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

Location = tuple[int | str, ...]


class NotYaml(ValueError):
    """The text is not YAML. The message is one line: where, and why."""


@dataclass(frozen=True)
class Document:
    """A parsed text: its `value` in plain Python types, and the `lines` of its keys and items, from 1."""

    value: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """The line of a value, or of the nearest part that should contain it."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return None


def parse(text: str) -> Document:
    """Parse YAML. Raises NotYaml."""
    reader = YAML(typ="rt", pure=True)
    try:
        loaded = reader.load(text)
        document = Document(_plain(loaded), dict(_lines(loaded, ())))
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1]
        raise NotYaml(f'line {error.problem_mark.line + 1}: the key "{key}" is given twice') from None
    except MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise NotYaml(at + str(error.problem).splitlines()[0]) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None
    except (YAMLError, ValueError) as error:
        raise NotYaml(str(error).splitlines()[0]) from None
    return document


def dump(value: Any) -> str:
    writer = YAML(typ="rt", pure=True)
    writer.width = 4096
    file = io.StringIO()
    writer.dump(value, file)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """The value in plain Python types, without ruamel's own."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _lines(value: Any, location: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(value, CommentedMap):
        for key, inner in value.items():
            if key in value.lc.data:  # a key that came by `<<` has no line
                yield (*location, key), value.lc.key(key)[0] + 1
            yield from _lines(inner, (*location, key))
    elif isinstance(value, CommentedSeq):
        for place, inner in enumerate(value):
            yield (*location, place), value.lc.item(place)[0] + 1
            yield from _lines(inner, (*location, place))
