"""The file of rates: the measured speed of one GPU of each pool, and its price."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pydantic import Field, model_validator

from routelmt_batch.spec.parts import Part, SpecFile

_HOUR_S = 3600.0


class Work(NamedTuple):
    rows: int
    prompt_tokens: int


class Rate(Part):
    """The measured speed of one GPU of a pool, in rows or in prompt tokens (the time includes the output),
    the pool's number of GPUs, and the price of one GPU per hour.

    A budget in seconds or money needs `tokens_per_second_per_gpu` of the large model: prompt and output
    tokens together.
    """

    rows_per_second_per_gpu: float | None = Field(None, gt=0, allow_inf_nan=False)
    prompt_tokens_per_second_per_gpu: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_second_per_gpu: float | None = Field(None, gt=0, allow_inf_nan=False)
    start_seconds: float = Field(0, ge=0, allow_inf_nan=False)  # until its engines take the first row
    gpus: int = Field(ge=1)
    price_per_gpu_hour: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_measure(self) -> Rate:
        if (self.rows_per_second_per_gpu is None) == (self.prompt_tokens_per_second_per_gpu is None):
            raise ValueError("give either rows_per_second_per_gpu or prompt_tokens_per_second_per_gpu")
        return self

    def hours(self, work: Work) -> float:
        """From the start of the pool's engines to its last row; 0 without rows."""
        if not work.rows:
            return 0.0
        if self.rows_per_second_per_gpu is not None:
            seconds = work.rows / self.rows_per_second_per_gpu
        else:
            assert self.prompt_tokens_per_second_per_gpu is not None
            seconds = work.prompt_tokens / self.prompt_tokens_per_second_per_gpu
        return (self.start_seconds + seconds / self.gpus) / _HOUR_S


class Rates(SpecFile):
    """The file that `plan --rates` and `budget.rates` read."""

    command: ClassVar[str] = "plan"

    router: Rate
    small: Rate
    large: Rate
    metric: Rate | None = None  # for a guard that measures

    @classmethod
    def starter(cls) -> str:
        return "`routelmt-batch report OUTPUT --rates` writes one"

    @model_validator(mode="after")
    def _metric_by_rows(self) -> Rates:
        if self.metric and self.metric.rows_per_second_per_gpu is None:
            raise ValueError("metric: give rows_per_second_per_gpu, because a metric reads no prompt")
        return self
