"""vLLM's own arguments, by name and type, to check the `engine` keys of a spec before an engine starts.

vLLM's source is read and not imported: its import takes six seconds of CPU.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from routelmt_batch.errors import SpecError
from routelmt_batch.spec import OWN_ENGINE_KEYS, Models, near

# Types that are checked; which values others allow only vLLM knows.
_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "None": None}


def check_engines(models: Models) -> None:
    """Raises SpecError if a model's `engine` has a key that is no argument of vLLM, or a value of another
    type. Without vLLM on this machine nothing is checked."""
    for key, pool in (("models.small.engine", models.small), ("models.large.engine", models.large)):
        for name, value in pool.engine.items() if engine_arguments() else ():
            _check(f"{key}.{name}", name, value)


def _check(key: str, name: str, value: object) -> None:
    known = engine_arguments()
    if name not in known:
        hint = near(name, known.keys() - OWN_ENGINE_KEYS.keys())
        raise SpecError(f"{key}: vLLM has no such argument{hint}. Give a field of vLLM's EngineArgs")
    kinds = [kind.strip() for kind in known[name].split("|")]
    if _TYPES.keys() >= set(kinds) and not any(_is(value, _TYPES[kind]) for kind in kinds):
        raise SpecError(f"{key}: {value!r}: vLLM takes a value of type {' or '.join(kinds)} here")


def _is(value: object, kind: Any) -> bool:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@functools.cache
def engine_arguments() -> dict[str, str]:
    """The fields of vLLM's EngineArgs, each with its type as it is written there; empty without vLLM here."""
    found = importlib.util.find_spec("vllm")
    for folder in (found and found.submodule_search_locations) or ():
        tree = ast.parse((Path(folder) / "engine" / "arg_utils.py").read_text(encoding="utf8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
                fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
    return {}
