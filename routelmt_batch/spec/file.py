"""Reads spec files: parses YAML, applies settings of the command line, explains errors, resolves paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from routelmt_batch.errors import SpecError
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Location
from routelmt_batch.files.uris import is_remote, locate, without_login
from routelmt_batch.kinds import KINDS, SMALL_MODEL
from routelmt_batch.spec import COMET, Input, JobSpec, LabelSpec, Models, Pool, SpecFile, near
from routelmt_batch.spec.text import Document, NotYaml, parse
from routelmt_batch.spec.variables import is_hidden, without_value

Spec = TypeVar("Spec", bound=SpecFile)


_OPTIONS = {
    "budget.fraction": "--budget",
    "budget.amount": "--budget",
    "budget.rates": "--rates",
    "budget.threshold": "--threshold",
    "budget.cap": "--cap",
    "output.uri": "--output",
}


def load(path: str | Path, settings: Iterable[str] = (), **overrides: str | None) -> JobSpec:
    """Read a job's spec file, apply `--set key=value` settings and overrides, resolve its paths.

    Overrides are `budget_fraction` (a fraction or an amount), `budget_rates`, `budget_threshold`,
    `budget_cap` and `output_uri`.

    Raises:
        SpecError: see read.
    """
    given = [key for name, value in overrides.items() if value is not None for key in _override(name, value)]
    spec = resolve(read(Path(path), settings, JobSpec, given), Path(path))
    if not spec.router.source and KINDS[spec.router.kind] is SMALL_MODEL:
        router = spec.router.model_copy(update={"source": spec.models.small.source})
        spec = spec.model_copy(update={"router": router})
    return spec


def read_written(text: str, kind: type[Spec]) -> Spec:
    """The spec that a job wrote into its output: its paths are resolved. Raises ValueError if it is none."""
    return kind.model_validate(parse(text).value)


def load_label(path: str | Path, settings: Iterable[str] = (), output_uri: str | None = None) -> LabelSpec:
    """Read a label spec; as load.

    Raises:
        SpecError: see read.
    """
    given = [] if output_uri is None else [("output.uri", output_uri)]
    return resolve(read(Path(path), settings, LabelSpec, given), Path(path))


def _override(name: str, value: str) -> list[tuple[str, str | None]]:
    """The keys that an option of the command line sets. A fraction and an amount replace each other."""
    if name == "budget_rates":
        return [("budget.rates", from_here(value))]
    if name != "budget_fraction":
        return [(name.replace("_", ".", 1), value)]
    if re.fullmatch(r"\d.*[a-z]", value):
        return [("budget.amount", value), ("budget.fraction", None), ("budget.unit", None)]
    return [("budget.fraction", value), ("budget.amount", None)]


def read(
    path: Path | Location,
    settings: Iterable[str],
    kind: type[Spec],
    overrides: Iterable[tuple[str, object]] = (),
) -> Spec:
    """Read a spec file of any kind, with `--set key=value` settings and then overrides (dotted key, value).

    Raises:
        SpecError: the file cannot be read, or a key or value is wrong; one line for each fault.
    """
    settings, overrides = list(settings), list(overrides)
    document = _document(path, kind)
    raw = {key: value for key, value in document.value.items() if value is not None}  # such as `run:`
    for setting in settings:
        _set(raw, setting)
    for dotted, value in overrides:
        _put(raw, dotted, value)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        given = {setting.partition("=")[0]: f"--set {without_value(setting)}" for setting in settings}
        given |= {
            dotted: f"{_OPTIONS.get(dotted, dotted)} {value}"
            for dotted, value in overrides
            if value is not None
        }
        raise SpecError(_explain(path, document, error, kind, given)) from None


def kind_of(path: Path, kinds: Iterable[type[Spec]]) -> type[Spec]:
    """The kind of spec with the fewest unknown or missing keys for a file; the first of equals.

    Raises:
        SpecError: the file cannot be read.
    """
    first, *others = kinds
    keys = _document(path, first).value.keys()

    def faults(kind: type[SpecFile]) -> int:
        required = {name for name, field in kind.model_fields.items() if field.is_required()}
        return len(keys - kind.model_fields.keys()) + len(required - keys)

    return min((first, *others), key=faults)


def _document(path: Path | Location, kind: type[SpecFile]) -> Document:
    """Parse a file that must hold a mapping. Raises SpecError, which names how to get a `kind` of spec."""
    try:
        document = parse(path.read_bytes().decode("utf8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such spec file; {kind.starter()} to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    except NotYaml as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document.value, dict):
        raise SpecError(f"{path}: a spec is a mapping of keys; {kind.starter()}")
    return document


def _set(raw: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {without_value(setting)}: give key=value, such as models.large.replicas=4")
    try:
        value = parse(text).value
    except NotYaml as error:
        raise SpecError(f"--set {without_value(setting)}: the value is not YAML: {error}") from None
    _put(raw, key, value)


def _put(raw: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        inner = raw.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SpecError(f"{dotted}: {name!r} holds a value, not keys")
        raw = inner
    raw[last] = value


def _explain(
    path: Path | Location,
    document: Document,
    error: ValidationError,
    kind: type[BaseModel],
    given: Mapping[str, str],
) -> str:
    """The message about an invalid spec: the file or the `given` options at fault, then a line for each
    fault with its line in the file."""
    lines, origins = [], []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        origin = next((option for key, option in given.items() if f"{where}.".startswith(f"{key}.")), None)
        origins.append(origin)
        line = None if origin else document.line(fault["loc"])
        at = "" if line is None else f"line {line}: "
        if fault["type"] == "extra_forbidden":
            known = _keys_at(kind, fault["loc"][:-1])
            message = f"unknown key{near(str(fault['loc'][-1]), known)} (known here: {', '.join(known)})"
        elif fault["type"] == "missing":
            message = "required, but missing"
        else:
            value = fault["input"]
            shown = "" if isinstance(value, Mapping) or is_hidden(fault["loc"]) else f"{value!r}: "
            message = shown + _rule(fault, kind)
        lines.append(f"  {at}{where or 'spec'}: {message}")
    options = [origin for origin in dict.fromkeys(origins) if origin]
    head = f"{path}: the spec is not valid" if None in origins else f"{', '.join(options)}: not valid"
    return without_login("\n".join([head, *lines]))


def _rule(fault: ErrorDetails, kind: type[BaseModel]) -> str:
    """What a value should have been. pydantic's own words for these types name Python's."""
    match fault["type"]:
        case "string_type":
            return "give a text; a number needs quotes"
        case "dict_type":
            return "give a mapping of names to values"
        case "list_type":
            return "give a list"
        case "model_type":
            return f"give a mapping of these keys: {', '.join(_keys_at(kind, fault['loc']))}"
    return fault["msg"].removeprefix("Value error, ")


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    here: Any = kind
    for part in location:
        if get_origin(here) is dict:
            here = get_args(here)[1]
            continue
        annotation = here.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            here = annotation
            continue
        models = [inner for inner in (annotation, *get_args(annotation)) if _is_model(inner)]
        if not models:
            return []
        here = models[0]
    return list(here.model_fields) if _is_model(here) else []


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


PassSpecs = TypeVar("PassSpecs", JobSpec, LabelSpec)


def resolve(spec: PassSpecs, path: Path) -> PassSpecs:
    """Resolve relative paths: models and input against the spec's folder, the output against the working
    folder."""
    folder = path.resolve().parent

    def with_source(pool: _Pool) -> _Pool:
        return pool.model_copy(update={"source": beside(pool.source, folder)}) if pool.source else pool

    resolved: dict[str, Any] = {
        "input": spec.input.model_copy(update={"uri": _inputs(spec.input, folder)}),
        "output": spec.output.model_copy(update={"uri": from_here(spec.output.uri)}),
        "models": Models(small=with_source(spec.models.small), large=with_source(spec.models.large)),
    }
    if spec.metric and spec.metric.source.startswith(COMET):
        source = COMET + beside(spec.metric.checkpoint, folder)
        resolved["metric"] = spec.metric.model_copy(update={"source": source})
    if isinstance(spec, JobSpec):
        resolved["router"] = with_source(spec.router)
        if spec.translation_memory:
            resolved["translation_memory"] = from_here(spec.translation_memory)
        if spec.reuse:
            outputs = tuple(map(from_here, spec.reuse.outputs))
            resolved["reuse"] = spec.reuse.model_copy(update={"outputs": outputs})
        files = {"rates": spec.budget.rates, "fitted_on": spec.budget.fitted_on}
        resolved["budget"] = spec.budget.model_copy(
            update={key: uri and at(uri, folder) for key, uri in files.items()}
        )
        if spec.guard.router:
            resolved["guard"] = spec.guard.model_copy(update={"router": with_source(spec.guard.router)})
    return spec.model_copy(update=resolved)


def _inputs(given: Input, folder: Path) -> str | tuple[str, ...]:
    uris = tuple(at(uri, folder) for uri in given.uris)
    return uris[0] if isinstance(given.uri, str) else uris


def at(uri: str, folder: Path) -> str:
    """A URI, or the absolute path of a path in a folder."""
    if is_remote(uri):
        return uri
    location = locate(uri)
    path = location.path if isinstance(location, DiskLocation) else Path(uri)
    return str(folder / expanded(path))


def expanded(path: Path) -> Path:
    """The path with its `~`. Raises SpecError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise SpecError(
            f"{path}: there is no user {path.parts[0].removeprefix('~')!r} here; give an absolute path, or "
            "begin it with ./ if its name begins with ~"
        ) from None


_Pool = TypeVar("_Pool", bound=Pool)


def beside(source: str, folder: Path) -> str:
    """The path of a model's folder next to the spec if there is one; else `source` unchanged: a hub name or
    a URI."""
    if is_remote(source):
        return source
    given = expanded(Path(at(source, folder) if "://" in source else source))
    if given.is_absolute():  # links are kept: they may lead elsewhere on a cluster's nodes
        return str(given)
    candidate = (folder / given).resolve()
    # A misspelt models/small is not a hub name, because the folder models exists.
    looks_like_hub = (
        source.count("/") == 1 and not source.startswith((".", "/", "~")) and not candidate.parent.is_dir()
    )
    return str(candidate) if candidate.exists() or not looks_like_hub else source


def from_here(uri: str) -> str:
    """A URI in its one spelling, or the absolute path of an output, resolved against the working folder;
    links are kept.

    Raises:
        UsageError: see files.uris.locate.
    """
    return str(locate(uri)) if is_remote(uri) else os.path.abspath(at(uri, Path.cwd()))  # noqa: PTH100
