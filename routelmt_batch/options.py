"""What commands share: options, and how a job is run and told of. Nothing heavy loads before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from routelmt_batch.progress import Bars, stderr_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from routelmt_batch.job import Options, Outcome
    from routelmt_batch.spec import PassSpec

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


def carry_out(
    run: Callable[..., Outcome],
    spec: PassSpec,
    options: Options,
    table: Callable[[Mapping[str, Any]], RenderableType],
    exit_code: Callable[[dict[str, Any]], int],
    what: str = "this job is",
) -> NoReturn:
    """Run a job to its end, show its report as a table, and exit as the report has it. `what` it is stands
    before "finished".

    Raises:
        RoutelmtError: see `run`, which is called as job.run is.
    """
    from routelmt_batch import job, show
    from routelmt_batch.workspace import Folder

    console, output = stderr_console(), spec.output.uri
    console.print(f"{spec.name}: {output} (logs: {Folder(Path(output)).logs})")
    outcome = run(spec, options, Bars(console), partial(job.vllm_engine, options=options))
    if not outcome.new:
        console.print(f"{what} finished; nothing to do. The report:")
    show.console().print(table(outcome.report))
    show.console().print(f"{output}/data")
    page = Folder(Path(output)).page
    if page.exists():
        show.console().print(str(page), soft_wrap=True)
    raise typer.Exit(exit_code(outcome.report))
