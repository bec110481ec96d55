"""The variables that a spec names. Their values may be secrets: no file and no message has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from routelmt_batch.errors import SpecError
from routelmt_batch.spec.parts import Part, Pool
from routelmt_batch.spec.storage import Storage


class Variable(NamedTuple):
    """A key of a spec, the variable that it sets, and the value, if the spec has it."""

    key: str
    name: str
    value: object


def variables(spec: Part, prefix: str = "") -> Iterator[Variable]:
    """Every variable that a spec names, in `env` of its pools and in `storage`."""
    for key, part in spec:
        if isinstance(part, Storage):
            for name in part.named():
                yield Variable(f"{prefix}{key}.{name}", name.upper(), getattr(part, name))
        elif isinstance(part, Part):
            yield from variables(part, f"{prefix}{key}.")
    if isinstance(spec, Pool):
        for name, value in spec.env.items():
            yield Variable(f"{prefix}env.{name}", name, value)


def check_set(spec: Part, environ: Mapping[str, str]) -> None:
    """Raises SpecError if variables have no value, neither in the spec nor in the environment."""
    unset = [each for each in variables(spec) if each.value is None and each.name not in environ]
    if unset:
        keys = "\n".join(f"  {each.key}: the variable {each.name} is not set here" for each in unset)
        raise SpecError(
            f"the spec names variables without a value:\n{keys}\nA submitted spec has no values. Set the "
            "variables where the job runs, such as on the cluster's head, or leave the keys out"
        )


def is_hidden(key: tuple[int | str, ...] | str) -> bool:
    """Whether a value at this key of a spec is that of a variable."""
    parts = key.split(".") if isinstance(key, str) else key
    return "env" in parts or parts[:1] in (("storage",), ["storage"])


def without_value(setting: str) -> str:
    """A `key=value` setting for messages; it may have its option before it, as in `--set=key=value`."""
    option = "--set=" if setting.startswith("--set=") else ""
    key, equals, _ = setting.removeprefix(option).partition("=")
    return f"{option}{key}{equals}..." if is_hidden(key) else setting
