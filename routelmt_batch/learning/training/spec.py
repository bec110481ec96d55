"""The training spec. It imports neither torch nor Ray and opens no table."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from routelmt_batch.files.uris import is_remote
from routelmt_batch.spec import Part, Prompt, SpecFile, Storage, file
from routelmt_batch.spec.values import Fraction, Source, Uri


class Output(Part):
    """Where the router goes."""

    uri: Uri = Field(
        title="path",
        description="Router folder to write, on a disk. A relative path starts at the folder where you run "
        "the command. `--output` replaces it.",
    )

    @field_validator("uri")
    @classmethod
    def _on_a_disk(cls, uri: str) -> str:
        if is_remote(uri):
            raise ValueError(
                "a training writes its checkpoints to a disk that its workers share: give a path, and copy "
                "the finished router to the store"
            )
        return uri


class Base(Part):
    """The model that is trained."""

    source: Source = Field(
        min_length=1, description="Model folder, on a disk or in an object store, or Hugging Face name."
    )
    architecture: Literal["decoder", "encoder"] = Field(
        "decoder",
        description="`decoder`: the small translation model itself. `encoder`: any Hugging Face encoder.",
    )

    @property
    def name(self) -> str:
        return short_name(self.source)


class Lora(Part):
    """The LoRA adapter. Its defaults are RouteLMT's (section 4.1): rank 8, alpha 32, all linear layers."""

    rank: int = Field(8, ge=1, description="Rank of the adapter's matrices.")
    alpha: float = Field(32, gt=0, allow_inf_nan=False, description="Scale of the adapter.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Layers that get an adapter, as peft names them."
    )


class Split(Part):
    """How rows are divided into training, validation and test."""

    by: str = Field(
        "source",
        min_length=1,
        description="Rows with the same value in this column stay on one side. `source` is the source text, "
        "whatever the name of its column.",
    )
    validation_fraction: Fraction = Field(
        Decimal("0.1"), description="Share of the rows for validation, which decides when training stops."
    )
    test_fraction: Fraction = Field(
        Decimal("0.1"), description="Share of the rows for the test, if there are no `test_tables`."
    )
    seed: int = Field(0, ge=0, description="Seed of the split.")

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Split:
        if self.validation_fraction <= 0:
            raise ValueError("validation_fraction must be above 0: early stopping needs rows")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay below 1: training needs rows")
        return self


class Training(Part):
    """Optimizer and schedule."""

    epochs: int = Field(3, ge=1, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, allow_inf_nan=False, description="Highest learning rate.")
    batch_rows: int = Field(64, ge=1, description="Rows of one optimizer step, over all workers.")
    micro_batch_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of one forward pass of one worker. Default: the worker's share of `batch_rows`.",
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight decay of the optimizer.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate changes after the warm-up."
    )
    evaluations_per_epoch: int = Field(
        4, ge=1, description="How often an epoch is interrupted to measure the validation rows."
    )
    patience: int | None = Field(
        6,
        ge=1,
        description="Evaluations without a better validation Spearman before training stops. `null`: never.",
    )
    max_length_tokens: int = Field(
        512,
        ge=8,
        description="Longest example. A decoder leaves longer ones out, an encoder cuts them.",
    )
    gradient_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Gradients are clipped to this norm."
    )
    weigh_references: bool = Field(
        True,
        description="Whether a row counts in the loss as often as it has references (`gain_by_reference`). "
        "Rows of a table without that column count once.",
    )
    autocast: Literal["bfloat16", "none"] = Field(
        "bfloat16",
        description="Number format of the computation. The weights in training are float32 either way.",
    )
    seed: int = Field(0, ge=0, description="Seed of the training.")


class Workers(Part):
    """Ray Train workers. All of them must see the output folder."""

    count: int = Field(1, ge=1, description="Number of workers.")
    cpus: int | None = Field(
        None, ge=1, description="CPUs of one worker. Default: the machine's cores, divided among the workers."
    )
    gpus: int = Field(0, ge=0, le=1, description="GPUs of one worker. For more GPUs set a larger `count`.")


class TrainSpec(SpecFile):
    """A router that is trained on label tables."""

    command = "train"

    name: str = Field(min_length=1, description="Name of the router. Its model card shows it.")
    tables: list[Uri] = Field(
        title="list of paths or URIs",
        min_length=1,
        description="Label tables to train on: folders, globs or Parquet files. A relative path starts at "
        "the spec's folder.",
    )
    test_tables: list[Uri] = Field(
        title="list of paths or URIs",
        default=[],
        description="Label tables for the test only. Default: `split.test_fraction` of `tables`.",
    )
    output: Output
    base: Base
    target: Literal["gain", "quality"] = Field(
        "gain",
        description="What the router predicts. `gain`: quality of the large minus the small translation. "
        "`quality`: quality of the small translation (RouteLMT-Q).",
    )
    method: Literal["lora", "head_only", "full"] = Field(
        "lora",
        description="What is trained: a LoRA adapter and the head, the head alone, or all weights.",
    )
    lora: Lora = Lora()
    split: Split = Split()
    training: Training = Training()
    workers: Workers = Workers()
    prompt: Prompt = Prompt()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _some_rows_for_the_test(self) -> TrainSpec:
        if not self.test_tables and self.split.test_fraction <= 0:
            raise ValueError("give test_tables, or a split.test_fraction above 0: a router needs a test")
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


def short_name(source: str) -> str:
    """A hub name unchanged; of a folder only its last part, because other machines read this name."""
    return Path(source).name if Path(source).is_absolute() else source


def load_train_spec(
    path: str | Path, settings: Iterable[str] = (), output_uri: str | None = None
) -> TrainSpec:
    """Read a training spec. Tables and base model resolve against the spec's folder, the output
    against the working folder.

    Raises:
        SpecError: see spec.file.read.
    """
    overrides = [] if output_uri is None else [("output.uri", output_uri)]
    spec = file.read(Path(path), settings, TrainSpec, overrides)
    folder = Path(path).resolve().parent

    base = spec.base.model_copy(update={"source": file.beside(spec.base.source, folder)})
    output = Output(uri=file.from_here(spec.output.uri))
    resolved: dict[str, Any] = {"base": base, "output": output}
    for key, uris in (("tables", spec.tables), ("test_tables", spec.test_tables)):
        resolved[key] = [file.at(uri, folder) for uri in uris]
    return spec.model_copy(update=resolved)
