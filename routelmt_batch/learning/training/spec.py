"""The training spec: what a router is made of. It imports neither torch nor Ray and opens no table."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from routelmt_batch.spec import Part, Prompt, SpecFile, file
from routelmt_batch.spec.text import dump
from routelmt_batch.spec.values import Fraction, Uri


class Output(Part):
    uri: Uri  # the router folder to write


class Base(Part):
    """The model that learns: `decoder` is the small translator itself, `encoder` any other model."""

    source: str = Field(min_length=1)
    architecture: Literal["decoder", "encoder"] = "decoder"

    @property
    def name(self) -> str:
        return short_name(self.source)


class Lora(Part):
    """RouteLMT, section 4.1: rank 8 and alpha 32 on all linear layers."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class Split(Part):
    """Rows with the same value in column `by` stay on one side; `source`: the source text, whatever its
    column."""

    by: str = Field("source", min_length=1)
    validation_fraction: Fraction = Decimal("0.1")
    test_fraction: Fraction = Decimal("0.1")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Split:
        if self.validation_fraction <= 0:
            raise ValueError("validation_fraction must be above 0: early stopping needs rows")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay below 1: training needs rows")
        return self


class Training(Part):
    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    batch_rows: int = Field(64, ge=1)  # of one optimizer step, over all workers
    micro_batch_rows: int | None = Field(None, ge=1)  # of one forward pass of one worker; None: its share
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    evaluations_per_epoch: int = Field(4, ge=1)
    # Evaluations without a better validation Spearman before training stops; None: never.
    patience: int | None = Field(6, ge=1)
    max_length_tokens: int = Field(512, ge=8)
    gradient_norm: float = Field(1.0, gt=0)
    autocast: Literal["bfloat16", "none"] = "bfloat16"  # weights being trained are float32 either way
    seed: int = Field(0, ge=0)


class Workers(Part):
    """Ray Train workers. They share the output folder's file system."""

    count: int = Field(1, ge=1)
    cpus: int | None = Field(None, ge=1)  # of each; None: this machine's cores, shared out
    gpus: int = Field(0, ge=0, le=1)  # of each; more GPUs are more workers


class TrainSpec(SpecFile):
    command = "train"

    name: str = Field(min_length=1)
    tables: list[Uri] = Field(min_length=1)
    test_tables: list[Uri] = Field(default=[])  # held out whole; else `split.test_fraction` of `tables`
    output: Output
    base: Base
    target: Literal["gain", "quality"] = "gain"
    method: Literal["lora", "head_only", "full"] = "lora"
    lora: Lora = Lora()
    split: Split = Split()
    training: Training = Training()
    workers: Workers = Workers()
    prompt: Prompt = Prompt()

    @model_validator(mode="after")
    def _some_rows_for_the_test(self) -> TrainSpec:
        if not self.test_tables and self.split.test_fraction <= 0:
            raise ValueError("give test_tables, or a split.test_fraction above 0: a router is tested once")
        return self

    @model_validator(mode="after")
    def _steps_share_out(self) -> TrainSpec:
        share, rest = divmod(self.training.batch_rows, self.workers.count)
        if rest or share % (self.training.micro_batch_rows or share):
            raise ValueError(
                f"training.batch_rows {self.training.batch_rows} must be a multiple of workers.count "
                f"{self.workers.count} x micro_batch_rows {self.training.micro_batch_rows or 1}"
            )
        return self

    @property
    def kind(self) -> str:
        """The router's kind, as kinds names it."""
        if self.base.architecture == "encoder":
            return "encoder"
        return "routelmt" if self.target == "gain" else "routelmt-q"

    @property
    def worker_rows(self) -> int:
        """Rows of one forward pass of one worker."""
        return self.training.micro_batch_rows or self.training.batch_rows // self.workers.count

    def dump(self) -> str:
        return dump(self.model_dump(mode="json"))


def short_name(source: str) -> str:
    """A hub name as it is; of a folder its last part, for what is read on other machines."""
    return Path(source).name if Path(source).is_absolute() else source


def load_train_spec(
    path: str | Path, settings: Iterable[str] = (), output_uri: str | None = None
) -> TrainSpec:
    """Read a training spec. Tables and base model resolve against the spec's folder, the output
    against the working folder.

    Raises:
        SpecError: see spec_file.read.
    """
    overrides = [] if output_uri is None else [("output.uri", output_uri)]
    spec = file.read(Path(path), settings, TrainSpec, overrides)
    folder = Path(path).resolve().parent

    def tables(uris: list[str]) -> list[str]:
        return [str(folder / Path(uri).expanduser()) for uri in uris]

    base = spec.base.model_copy(update={"source": file.beside(spec.base.source, folder)})
    output = Output(uri=file.from_here(spec.output.uri))
    found: dict[str, Any] = {"base": base, "output": output}
    found |= {"tables": tables(spec.tables), "test_tables": tables(spec.test_tables)}
    return spec.model_copy(update=found)
