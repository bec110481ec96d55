"""What a row costs the large model in tokens, and how much of that a budget buys at its rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from routelmt_batch.directions import PLACES, number
from routelmt_batch.errors import OutputError, SpecError, UsageError
from routelmt_batch.files.record import Record
from routelmt_batch.files.uris import locate
from routelmt_batch.spec import JobSpec
from routelmt_batch.spec.file import read
from routelmt_batch.spec.rates import Rates
from routelmt_batch.spec.values import Unit
from routelmt_batch.stages.lengths import Lengths
from routelmt_batch.store.folder import Folder, read_json

# Costs are whole millionths of a token: so sums are exact, whatever the order of the parts. An int64 holds
# 9 x 10^12 tokens of them.
MICRO = 1_000_000
_HOUR_S = 3600
_FEWEST_ROWS = 30  # of a direction with a line of its own


class Line(Record):
    """Expected output tokens, in millionths: `intercept` + `slope` x prompt tokens.

    `rows` is how many it was fitted on (0: it was not), `r2` the share of the variance of their lengths that
    it explains, and `error` its root mean square error as a share of their mean length.
    """

    slope: int
    intercept: int
    rows: int = 0
    r2: float | None = None
    error: float | None = None

    @classmethod
    def fitted(cls, lengths: Lengths) -> Line:
        """The least-squares line; its slope is not negative."""
        n, x, y = lengths.rows, lengths.prompt, lengths.output
        spread = n * lengths.prompt_squared - x * x
        slope = Fraction(n * lengths.prompt_output - x * y, spread) if spread else Fraction(0)
        slope = max(slope, Fraction(0))
        intercept = (y - slope * x) / n
        of_all = Fraction(n * lengths.output_squared - y * y, n)
        # With this intercept the residuals' sum is 0.
        left = of_all - 2 * slope * Fraction(n * lengths.prompt_output - x * y, n) + slope**2 * spread / n
        return cls(
            slope=round(slope * MICRO),
            intercept=round(intercept * MICRO),
            rows=n,
            r2=float(1 - left / of_all) if of_all else None,
            error=math.sqrt(left / n) / (y / n) if y else None,
        )


AS_LONG_AS_THE_PROMPT = Line(slope=MICRO, intercept=0)


class Costs(Record):
    """A line for each direction with enough translations, and one for the others. No translation has more
    than `longest` tokens."""

    lines: dict[str, Line]
    others: Line
    longest: int

    @classmethod
    def fitted(cls, lengths: Mapping[str, Lengths], longest: int) -> Costs:
        """Lines fitted by direction, and on all directions together for the others."""
        lines = {name: Line.fitted(some) for name, some in lengths.items() if some.rows >= _FEWEST_ROWS}
        return cls(lines=lines, others=Line.fitted(Lengths.sum(lengths.values())), longest=longest)

    def __call__(
        self, prompt_tokens: npt.NDArray[np.int64], direction: npt.NDArray[np.int16]
    ) -> npt.NDArray[np.int64]:
        """Each row's prompt tokens and expected output tokens, in millionths of a token.

        Args:
            direction: its number; -1 if it has none.
        """
        # The last place is no direction's, so -1 finds the line of the others.
        slope, intercept = (np.full(PLACES**2, value) for value in (self.others.slope, self.others.intercept))
        for name, line in self.lines.items():
            slope[number(name)], intercept[number(name)] = line.slope, line.intercept
        output = intercept[direction] + slope[direction] * prompt_tokens
        return np.asarray(MICRO * prompt_tokens + np.clip(output, MICRO, MICRO * self.longest))


class Spending(Record):
    """A budget in tokens, seconds or money: rows cost tokens, and a unit buys `tokens_per_unit`."""

    unit: Unit
    tokens_per_unit: float
    costs: Costs

    @classmethod
    def of_job(cls, spec: JobSpec) -> Spending | None:
        """How a job's budget is spent; None if it counts calls.

        Raises:
            StoreError: a store does not answer or denies access.
            SpecError: there are no rates for the unit.
            OutputError: `budget.fitted_on` has no translations to fit on.
        """
        unit = spec.budget.measure
        if unit == "calls":
            return None
        return cls(unit=unit, tokens_per_unit=_tokens_per_unit(spec, unit), costs=_costs(spec))

    def micro(self, amount: Decimal) -> int:
        """The most millionths of a token that an amount of the unit buys."""
        return math.floor(Fraction(amount) * Fraction(self.tokens_per_unit) * MICRO)

    def units(self, micro: int) -> float:
        """Millionths of a token in the unit."""
        return micro / MICRO / self.tokens_per_unit

    def value(self, gain_per_unit: float) -> float:
        """A gain per unit as a gain per millionth of a token, which orders rows: see selection.Gains."""
        return gain_per_unit / self.tokens_per_unit / MICRO

    def gain_per_unit(self, value: float) -> float:
        return value * self.tokens_per_unit * MICRO


def _tokens_per_unit(spec: JobSpec, unit: Unit) -> float:
    if unit == "tokens":
        return 1.0
    uri = spec.budget.rates
    if uri is None:
        raise UsageError(
            f"a budget in {unit} needs the large model's rates: give --rates FILE, or budget.rates; "
            "`routelmt-batch report OUTPUT --rates` of a finished job writes one"
        )
    rate = read(locate(uri), (), Rates).large
    if rate.tokens_per_second_per_gpu is None:
        raise SpecError(
            f"{uri}: a budget in {unit} needs large.tokens_per_second_per_gpu, prompt and output tokens "
            "together; `routelmt-batch report OUTPUT --rates` of a finished job measures it"
        )
    if unit == "seconds":
        return rate.tokens_per_second_per_gpu * rate.gpus
    if not rate.price_per_gpu_hour:
        raise SpecError(f"{uri}: a budget in money needs large.price_per_gpu_hour, a price above 0")
    return rate.tokens_per_second_per_gpu * _HOUR_S / rate.price_per_gpu_hour


def _costs(spec: JobSpec) -> Costs:
    longest, uri = spec.models.large.max_output_tokens, spec.budget.fitted_on
    if uri is None:
        return Costs(lines={}, others=AS_LONG_AS_THE_PROMPT, longest=longest)
    folder = Folder.at(uri)
    if not folder.is_finished():
        raise OutputError(
            f"budget.fitted_on {uri}: nothing finished there; give the output of a job or of labels"
        )
    known = read_json(folder.job_report).get("lengths", {})
    lengths = {name: Lengths.model_validate(sums) for name, sums in known.items()}
    if not any(some.rows for some in lengths.values()):
        raise OutputError(
            f"budget.fitted_on {uri}: its report has no lengths of translations by the large model; give "
            "another output, or leave it out"
        )
    return Costs.fitted(lengths, longest)
