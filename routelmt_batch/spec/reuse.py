"""Which earlier jobs a job takes scores and translations from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from routelmt_batch.spec.parts import Part
from routelmt_batch.spec.values import Uri

_WILDCARDS = "*?["


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Reuse(Part):
    """Earlier jobs whose scores and translations stand where text, languages, prompt, weights and settings
    are the same. A list of outputs is enough: `reuse: [runs/monday, runs/tuesday]`."""

    outputs: Annotated[tuple[Uri, ...], BeforeValidator(_as_tuple)] = Field(
        (),
        title="list of paths or URIs",
        description="Outputs of finished jobs; the first that has a text counts. The last name may be a "
        "glob, `runs/2026-11-*`, of which the last by name comes first. A relative path starts at the folder "
        "where you run the command.",
    )
    latest: int | None = Field(
        None,
        ge=1,
        description="Instead of `outputs`: so many of the finished jobs beside the output, those whose names "
        "come last before its own.",
    )
    upgrade: bool = Field(
        True,
        description="Take a large translation that is already there also for a row that the plan sends to "
        "the small model.",
    )

    @model_validator(mode="before")
    @classmethod
    def _outputs_alone(cls, value: object) -> object:
        return {"outputs": value} if isinstance(value, str | list | tuple) else value

    @model_validator(mode="after")
    def _one_way(self) -> Reuse:
        if bool(self.outputs) == (self.latest is not None):
            raise ValueError("give either outputs or latest")
        for uri in self.outputs:
            if any(mark in uri.rpartition("/")[0] for mark in _WILDCARDS):
                raise ValueError(f"{uri}: only the last name may be a glob")
        return self
