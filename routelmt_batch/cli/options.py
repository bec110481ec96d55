"""Options that commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="Job spec, a YAML file.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", metavar="P", help="Fraction of rows for the large model; budget.fraction."),
]
ThresholdOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="SCORE",
        help="Send rows that score at least this, or `calibrated`, to the large model, however many: a "
        "row's route depends on its own score alone.",
    ),
]
CapOption = Annotated[
    str | None, typer.Option("--cap", metavar="P", help="With --threshold: at most this fraction.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", metavar="URI", help="Output folder; output.uri.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the spec; may be given again."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows of the input.")
]
ShardsOption = Annotated[
    str | None, typer.Option("--shards", metavar="GLOB", help="Only shards whose name matches.")
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try failed and quarantined rows again, no others.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="RAY", help="Ray cluster to run on; default: this machine."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and vLLM print, instead of logging it.")
]
FailIfOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="End with 4 when the job is done and this holds: 'failed>0.01', 'unused_budget>0.05', "
        "'psi>0.25', 'ks>0.2'. May be given again.",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="OTHER",
        help="An earlier job's output, for psi and ks of --fail-if; default: the router's calibration.",
    ),
]
TimeLimitOption = Annotated[
    str | None,
    typer.Option(
        "--time-limit",
        metavar="DURATION",
        help="Stop after 6h, 90m, 1h30m or 45s, with 124; the same command goes on.",
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        min=0,
        max=65535,
        help="Serve Prometheus metrics while it runs, on all interfaces; 0: any free port.",
    ),
]
LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format", help="json: every line told is an object, and stdout has the last one alone."
    ),
]
