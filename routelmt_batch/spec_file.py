"""Reading a spec file: YAML, settings from the command line, faults in words, paths resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from routelmt_batch.errors import SpecError
from routelmt_batch.spec import JobSpec, Models, Pool, near


def load(path: str | Path, settings: Iterable[str] = (), **overrides: str | None) -> JobSpec:
    """Read a spec file, apply `--set key=value` settings and overrides, and resolve its paths.

    Relative paths of models and input resolve against the spec's folder, the output against the
    working folder. Overrides are `budget_fraction` and `output_uri`.

    Raises:
        SpecError: the file cannot be read, or a key or value is wrong; one line for each fault.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such spec file; `routelmt-batch init` writes one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: a spec is a mapping of keys; `routelmt-batch init` writes one")
    raw = {key: value for key, value in raw.items() if value is not None}  # `run:` with nothing below
    for setting in settings:
        _set(raw, setting)
    for dotted, value in (
        ("budget.fraction", overrides.get("budget_fraction")),
        ("output.uri", overrides.get("output_uri")),
    ):
        if value is not None:
            _put(raw, dotted, value)
    try:
        spec = JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_explain(path, error)) from None
    return _resolve(spec, path.resolve().parent)


def _set(raw: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {setting}: give key=value, such as models.large.replicas=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {setting}: the value is not YAML: {error}") from None
    _put(raw, key, value)


def _put(raw: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        inner = raw.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SpecError(f"{dotted}: {name!r} holds a value, not keys")
        raw = inner
    raw[last] = value


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: the spec is not valid"]
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _keys_at(fault["loc"][:-1])
            lines.append(
                f"  {where}: unknown key{near(str(fault['loc'][-1]), known)} (known here: {', '.join(known)})"
            )
        elif fault["type"] == "missing":
            lines.append(f"  {where}: required, and not there")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = fault["input"]
            shown = "" if isinstance(value, Mapping) else f"{value!r}: "
            lines.append(f"  {where or 'spec'}: {shown}{message}")
    return "\n".join(lines)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = JobSpec
    for part in location:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _resolve(spec: JobSpec, folder: Path) -> JobSpec:
    def beside(source: str) -> str:
        """A folder next to the spec if there is one; else the text as it is (a hub name)."""
        candidate = (folder / Path(source).expanduser()).resolve()
        # A misspelt models/small is no hub name: the folder models is there.
        looks_like_hub = (
            source.count("/") == 1
            and not source.startswith((".", "/", "~"))
            and not candidate.parent.is_dir()
        )
        return str(candidate) if candidate.exists() or not looks_like_hub else source

    def with_source(pool: Pool) -> Pool:
        return pool.model_copy(update={"source": beside(pool.source)})

    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update={"uri": str(folder / Path(spec.input.uri).expanduser())}),
            "output": spec.output.model_copy(
                update={"uri": str(Path(spec.output.uri).expanduser().absolute())}
            ),
            "models": Models(
                small=with_source(spec.models.small),
                large=with_source(spec.models.large),
            ),
            "router": with_source(spec.router),
        }
    )
