"""Options that commands share, each declared once: alone, or in a group that a command takes as a whole.

A group is a dataclass. `grouped` turns its fields into options and builds the group when the command is
called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from routelmt_batch.errors import UsageError

if TYPE_CHECKING:
    from routelmt_batch.learning.training.spec import TrainSpec
    from routelmt_batch.spec import JobSpec, LabelSpec

_MOST_PORT = 65535
Spec = TypeVar("Spec", bound="JobSpec | LabelSpec | TrainSpec")


@dataclass(frozen=True)
class SpecOptions:
    """A spec file and the command line's changes to it. Each field but `path` and `settings` is a key of the
    spec."""

    path: Annotated[str, typer.Argument(metavar="SPEC", help="Spec, a YAML file.")]
    output_uri: Annotated[
        str | None, typer.Option("--output", metavar="URI", help="Output folder; output.uri.")
    ] = None
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the spec; can be repeated."),
    ] = field(default_factory=list)

    def read(self, load: Callable[..., Spec], runs_here: bool = True) -> Spec:
        """Load the spec with the function for its kind, and put its `storage` into the environment, where
        stores' clients look for it. If it runs here, all variables that it names must have values here.

        Raises:
            UsageError: the file is not on a disk.
            SpecError: see spec.file.read and spec.variables.check_set.
        """
        from routelmt_batch.files.uris import on_disk
        from routelmt_batch.spec.variables import check_set

        keys = {name: value for name, value in vars(self).items() if name not in ("path", "settings")}
        given = {name: value for name, value in keys.items() if value is not None}
        spec = load(on_disk(self.path, "a spec file"), self.settings, **given)
        spec.storage.apply(os.environ)
        if runs_here:
            check_set(spec, os.environ)
        return spec


@dataclass(frozen=True)
class PlanSpecOptions(SpecOptions):
    """A job's spec for `plan`, which looks at a budget without spending it."""

    budget_fraction: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="P",
            help="Fraction of rows for the large model, budget.fraction; or an amount, budget.amount: "
            "200000calls, 5000000tokens, 3h, 35usd.",
        ),
    ] = None
    budget_rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            metavar="FILE",
            help="Measured rates, for a budget in time or money and for the hours and cost of `plan`; "
            "budget.rates.",
        ),
    ] = None


@dataclass(frozen=True)
class RunSpecOptions(PlanSpecOptions):
    """A job's spec for `run`."""

    budget_threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Send every call worth at least this to the large model; `calibrated`: the router's "
            "threshold. A call for one row is worth its score, one for m rows m times its score.",
        ),
    ] = None
    budget_cap: Annotated[
        str | None, typer.Option("--cap", metavar="P", help="With --threshold: at most this fraction.")
    ] = None


@dataclass(frozen=True)
class ScopeOptions:
    """The part of the input to process."""

    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows of the input.")
    ] = None
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="GLOB", help="Only shards whose name matches.")
    ] = None


@dataclass(frozen=True)
class FailIfOptions:
    """Conditions under which a scheduler treats a finished job as failed."""

    fail_if: Annotated[
        list[str],
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit with 4 if this holds when the job is finished: 'failed>0.01', 'skipped>0.1'; for "
            "`run` also truncated, doubtful, fallback and empty, each also for one direction: "
            "'skipped[en-zh]>0.01'; and 'unused_budget>0.05', 'psi>0.25', 'ks>0.2'. Can be repeated.",
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class DriftOptions(FailIfOptions):
    """Failure conditions of a job with scores, which can drift."""

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
    """Options for schedulers, on every long-running command."""

    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            metavar="DURATION",
            help="Stop after 6h, 90m, 1h30m or 45s with exit code 124; the same command continues.",
        ),
    ] = None
    metrics_port: Annotated[
        str | None,
        typer.Option(
            "--metrics-port",
            metavar="[HOST:]PORT",
            help="Serve Prometheus metrics while it runs, by default to this machine alone; 0.0.0.0:PORT: "
            "on all interfaces. Port 0: any free one.",
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            "--log-format", help="json: each log line is an object, and stdout has only the last line."
        ),
    ] = "text"


def host_and_port(given: str) -> tuple[str, int]:
    """Where --metrics-port listens. Raises UsageError."""
    host, _, port = given.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address
    if not (port.isascii() and port.isdigit() and int(port) <= _MOST_PORT) or given.startswith(":"):
        raise UsageError(
            f"--metrics-port {given}: give a port from 0 to {_MOST_PORT}, or HOST:PORT, such as 0.0.0.0:9090"
        )
    return host or "127.0.0.1", int(port)


VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show the output of Ray and vLLM instead of logging it.")
]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Retry failed and quarantined rows.")]


@dataclass(frozen=True)
class RayOptions:
    """Where the engines run, and whether their output is shown."""

    address: Annotated[
        str | None,
        typer.Option("--address", metavar="RAY", help="Ray cluster to run on; default: this machine."),
    ] = None
    verbose: VerboseOption = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command with groups of options readable by typer: each field of a group becomes an option."""
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
            name: group(**{option.name: given.pop(option.name) for option in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **built)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return call


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    for option in fields(group):
        name = option.name
        yield inspect.Parameter(name, keyword, default=_default(option), annotation=hints[name])


def _default(option: Field[Any]) -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return inspect.Parameter.empty if option.default is MISSING else option.default
