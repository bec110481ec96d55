"""Options that commands share, each declared once: in groups that a command takes whole, or alone.

A group is a dataclass. `grouped` spreads its fields over a command's options and builds it again when the
command is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class SpecOptions:
    """A spec, and what a command line changes in it: a field is a key of the spec, but for `path` and
    `settings`."""

    path: Annotated[str, typer.Argument(metavar="SPEC", help="Spec, a YAML file.")]
    output_uri: Annotated[
        str | None, typer.Option("--output", metavar="URI", help="Output folder; output.uri.")
    ] = None
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the spec; may be given again."),
    ] = field(default_factory=list)

    def read(self, load: Callable[..., Spec]) -> Spec:
        """The spec, by the function that loads its kind.

        Raises:
            SpecError: see spec.file.read.
        """
        keys = {name: value for name, value in vars(self).items() if name not in ("path", "settings")}
        given = {name: value for name, value in keys.items() if value is not None}
        return load(self.path, self.settings, **given)


@dataclass(frozen=True)
class PlanSpecOptions(SpecOptions):
    """A job's spec, where its budget is only looked at."""

    budget_fraction: Annotated[
        str | None,
        typer.Option("--budget", metavar="P", help="Fraction of rows for the large model; budget.fraction."),
    ] = None


@dataclass(frozen=True)
class RunSpecOptions(PlanSpecOptions):
    """A job's spec."""

    budget_threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Send rows that score at least this, or `calibrated`, to the large model, however many: a "
            "row's route depends on its own score alone.",
        ),
    ] = None
    budget_cap: Annotated[
        str | None, typer.Option("--cap", metavar="P", help="With --threshold: at most this fraction.")
    ] = None


@dataclass(frozen=True)
class ScopeOptions:
    """How much of the input is worked on."""

    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows of the input.")
    ] = None
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="GLOB", help="Only shards whose name matches.")
    ] = None


@dataclass(frozen=True)
class FailIfOptions:
    """What a scheduler takes for a failure of a job that is done."""

    fail_if: Annotated[
        list[str],
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="End with 4 when the job is done and this holds: 'failed>0.01'; for `run` also "
            "'unused_budget>0.05', 'psi>0.25', 'ks>0.2'. May be given again.",
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class DriftOptions(FailIfOptions):
    """The same of a job with scores, which may drift."""

    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="An earlier job's output, for psi and ks of --fail-if; default: the router's calibration.",
        ),
    ] = None


@dataclass(frozen=True)
class ScheduleOptions:
    """What a scheduler wants of every command that takes long."""

    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            metavar="DURATION",
            help="Stop after 6h, 90m, 1h30m or 45s, with 124; the same command goes on.",
        ),
    ] = None
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve Prometheus metrics while it runs, on all interfaces; 0: any free port.",
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            "--log-format", help="json: every line told is an object, and stdout has the last one alone."
        ),
    ] = "text"


VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and vLLM print, instead of logging it.")
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try failed and quarantined rows again, no others.")
]

RatesOption = Annotated[
    str | None,
    typer.Option("--rates", metavar="FILE", help="Show hours and cost, too, from measured rates."),
]


@dataclass(frozen=True)
class RayOptions:
    """Where the engines run, and what is shown of them."""

    address: Annotated[
        str | None,
        typer.Option("--address", metavar="RAY", help="Ray cluster to run on; default: this machine."),
    ] = None
    verbose: VerboseOption = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes groups of options, as typer reads one: each field of a group is an option."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            flat.extend(_parameters(hints[name]))
        else:
            flat.append(parameter.replace(annotation=hints[name]))

    def call(**given: Any) -> None:
        built = {
            name: group(**{one.name: given.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **built)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return call


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for one in fields(group):
        yield inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hints[one.name]
        )


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return inspect.Parameter.empty if one.default is MISSING else one.default
