"""Writes what is told of specs and reports from the pydantic models that read and write them.

    python docs/references.py

`docs/pages/spec-reference.md` has every key of a spec. `docs/pages/job-report.schema.json` and
`label-report.schema.json` are the JSON Schemas of `reports/job.json`, of a job and of labels. It knows
models, and no key by name. `faults.md` is written from a record by faults.py. tests/test_docs.py checks them.
"""

from __future__ import annotations

import inspect
import json
import runpy
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.spec import JobSpec, LabelSpec, Replicas, SpecFile
from routelmt_batch.stages.job_report import JobReport

PAGES = Path(__file__).parent / "pages"
SPECS: tuple[tuple[str, str, type[SpecFile]], ...] = (
    ("Job spec", "`routelmt-batch run`, `plan` and `submit`", JobSpec),
    ("Label spec", "`routelmt-batch label` and `submit`", LabelSpec),
    ("Training spec", "`routelmt-batch train` and `submit`", TrainSpec),
)
HEAD = """\
# Spec reference

Every key of the three specs: its type, its default and what it does. This page is written from the code by
`docs/references.py`; do not edit it.

`routelmt-batch init --kind run`, `--kind label` and `--kind train` write a commented spec to start from.
`--set key=value` sets any key for one run, by the names in these tables:

```sh
routelmt-batch run jobs/demo/job.yaml --set models.large.replicas=1 --output runs/one-engine
```

A key that is not listed here is refused, and so is a key that is given twice. Relative paths of models,
tables and input start at the spec's folder. That of the output starts at the folder where you run the
command.
"""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value"}


def page() -> str:
    """The whole page."""
    seen: dict[type[BaseModel], str] = {}
    parts = [HEAD]
    for title, readers, spec in SPECS:
        parts.append(f"## {title}\n\nRead by {readers}. {_sentences(spec)}\n")
        parts += _sections(spec, "", title, seen)
    return "\n".join(parts)


def _sections(
    model: type[BaseModel], prefix: str, title: str, seen: dict[type[BaseModel], str]
) -> Iterator[str]:
    """A table of a model's own keys, then a section for each part of it."""
    fields = model.model_fields
    own = {name: field for name, field in fields.items() if _part(field) is None or _is_optional(field)}
    if own:
        rows = [_row(prefix + name, field) for name, field in own.items()]
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    for name, field in fields.items():
        if (part := _part(field)) is None:
            continue
        key = prefix + name
        yield f"### {title}: `{key}`\n\n{_sentences(part)}\n"
        if part in seen:
            yield f"The keys are those of {seen[part]}.\n"
        else:
            seen[part] = f"[`{key}`](#{_anchor(f'{title}: {key}')}) of a {title.lower()}"
            yield from _sections(part, f"{key}.", title, seen)


def _row(key: str, field: FieldInfo) -> str:
    assert field.description, f"{key} has no description"
    meaning, _, default = field.description.partition(" Default: ")
    cells = (f"`{key}`", field.title or _type(field), default.rstrip(".") or _default(field), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Replicas):
        value = value.min
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        value = str(value).lower()
    return "empty" if value in ({}, []) else f"`{value}`"


def _type(field: FieldInfo) -> str:
    return "see below" if _part(field) else _words(field.annotation) + _bounds(field)


def _words(annotation: Any) -> str:
    """A type in plain words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        titles = [one.title for one in inside[1:] if isinstance(one, FieldInfo) and one.title]
        return titles[0] if titles else _words(inside[0])
    if origin in (Union, types.UnionType):
        return ", or ".join(_words(one) for one in inside if one is not types.NoneType)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inside)
    if origin in (list, tuple):
        return f"list of {_words(inside[0])}s"
    if origin is dict:
        return "mapping"
    return _PLAIN[annotation]


def _bounds(field: FieldInfo) -> str:
    low = high = ""
    for one in field.metadata:
        match one:
            case annotated_types.Ge(ge=value):
                low = f"{value} or more"
            case annotated_types.Gt(gt=value):
                low = f"above {value}"
            case annotated_types.Le(le=value):
                high = f"at most {value}"
            case annotated_types.Lt(lt=value):
                high = f"below {value}"
            case _:
                pass
    told = ", ".join(word for word in (low, high) if word)
    return f", {told}" if told else ""


def _part(field: FieldInfo) -> type[BaseModel] | None:
    """The model that a key holds, if its keys are a section of their own."""
    if get_origin(field.annotation) is dict:
        return None
    inside = [field.annotation, *get_args(field.annotation)]
    parts = [one for one in inside if isinstance(one, type) and issubclass(one, BaseModel)]
    return parts[0] if parts and parts[0] is not Replicas else None


def _is_optional(field: FieldInfo) -> bool:
    return types.NoneType in get_args(field.annotation)


def _sentences(model: type[BaseModel]) -> str:
    told = inspect.cleandoc(model.__doc__ or "")
    assert told, f"{model.__name__} has no docstring"
    return told


def _anchor(heading: str) -> str:
    """As Markdown's table of contents makes it."""
    kept = "".join(one for one in heading.lower() if one.isalnum() or one in " -_")
    return "-".join(kept.split())


def schema(report: type[BaseModel]) -> str:
    return json.dumps(report.model_json_schema(), indent=1) + "\n"


WRITTEN = {
    "spec-reference.md": page,
    "job-report.schema.json": partial(schema, JobReport),
    "label-report.schema.json": partial(schema, LabelReport),
    "faults.md": runpy.run_path(str(Path(__file__).with_name("faults.py")))["page"],
}

if __name__ == "__main__":
    for name, write in WRITTEN.items():
        (PAGES / name).write_text(write(), encoding="utf8")
