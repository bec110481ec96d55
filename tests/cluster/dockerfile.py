"""A strict reader of container files: the instructions that cluster/ uses, any other refused."""

import re
from dataclasses import dataclass

KNOWN = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER"}


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a file, continued lines joined.

    Raises:
        ValueError: an unknown or empty instruction, a line that goes on and does not, no FROM at the start.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[-1].endswith("\\"):
        raise ValueError(f"{lines[-1]!r} goes on, and nothing follows")
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, value = line.partition(" ")
        if name not in KNOWN or not value.strip():
            raise ValueError(f"{line!r}: no instruction of {sorted(KNOWN)} with a value")
        found.append(Instruction(name, value.strip()))
    if not found or found[0].name not in ("FROM", "ARG"):
        raise ValueError("a container file begins with FROM")
    return found


def environment(instructions: list[Instruction]) -> dict[str, str]:
    pairs = (pair for one in instructions if one.name == "ENV" for pair in one.value.split())
    return dict(pair.split("=", 1) for pair in pairs)
