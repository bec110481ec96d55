"""The learning commands: label, train, evaluate, calibrate. Nothing heavy loads before it is used."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from routelmt_batch.cli.ending import carry_out, scheduled
from routelmt_batch.cli.options import (
    AddressOption,
    LimitOption,
    LogFormatOption,
    MetricsPortOption,
    OutputOption,
    SetOption,
    ShardsOption,
    SpecPath,
    TimeLimitOption,
    VerboseOption,
)
from routelmt_batch.errors import UsageError
from routelmt_batch.kinds import KINDS, ROUTER_FOLDER, SEVERE_LOSS_GAIN
from routelmt_batch.progress import Bars, stderr_console

if TYPE_CHECKING:
    from routelmt_batch.job.flow import OpenEngine

Tables = Annotated[
    list[str], typer.Argument(metavar="TABLE", help="Parquet files, folders of them, or globs.")
]
DtypeOption = Annotated[
    Literal["bfloat16", "float16", "float32", "auto"],
    typer.Option(
        "--dtype",
        help="Of routers and models. In bfloat16 the demo's entropies are 0.02 nats off on average.",
    ),
]
RoutersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--router",
        metavar="NAME=PATH",
        help="A router folder under a name of yours, or KIND=PATH: "
        + ", ".join(f"{kind}={of.metavar}" for kind, of in KINDS.items() if of and of is not ROUTER_FOLDER)
        + ". May be given again.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command, example in (
        (label, "routelmt-batch label jobs/demo/label.yaml"),
        (train, "routelmt-batch train jobs/demo/train.yaml --set training.seed=1"),
        (
            evaluate,
            "routelmt-batch evaluate runs/test/data --router mine=router --budget 0.3 --out runs/eval",
        ),
        (calibrate, "routelmt-batch calibrate router runs/test/data --fraction 0.2 --fraction 0.3"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def label(
    spec: SpecPath,
    output: OutputOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    shards: ShardsOption = None,
    time_limit: TimeLimitOption = None,
    metrics_port: MetricsPortOption = None,
    log_format: LogFormatOption = "text",
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Translate a parallel corpus with both models and measure both: a label table with gains.

    Stopped or killed, the same command goes on where it stood.
    """
    with scheduled("label", log_format, time_limit, metrics_port) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow
        from routelmt_batch.learning.labelling.label import label as run_label
        from routelmt_batch.spec.file import load_label

        label_spec = load_label(spec, settings or (), output)
        ending.begin(label_spec.name, label_spec.output.uri)
        options = flow.Options(limit, shards, False, address, verbose)
        carry_out(ending, run_label, label_spec, options, show.labels, what="these labels are")


def train(
    spec: SpecPath,
    output: OutputOption = None,
    settings: SetOption = None,
    time_limit: TimeLimitOption = None,
    metrics_port: MetricsPortOption = None,
    log_format: LogFormatOption = "text",
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train a router on label tables: LoRA and a linear head, or the ablations; writes a router folder.

    Stopped or killed, the same command goes on from the last checkpoint.
    """
    with scheduled("train", log_format, time_limit, metrics_port) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow
        from routelmt_batch.learning.training.spec import load_train_spec
        from routelmt_batch.learning.training.train import train as run_train

        train_spec = load_train_spec(spec, settings or (), output)
        ending.begin(train_spec.name, train_spec.output.uri)
        ending.bars.say(f"{train_spec.name}: {train_spec.output.uri}")
        outcome = run_train(train_spec, flow.Options(address=address, verbose=verbose), ending.bars)
        if not outcome.new:
            ending.bars.say("this router is trained; nothing to do. Its held-out figures:")
        ending.show(show.training(outcome.report), train_spec.output.uri)
        ending.end(**outcome.report.figures)


def evaluate(
    tables: Tables,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the evaluation is written.")],
    budget: Annotated[
        str, typer.Option("--budget", metavar="P", help="Fraction of rows for the large model.")
    ] = "0.3",
    router: RoutersOption = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--scores", metavar="COLUMN", help="A column of scores, higher for the large model."),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="NAME=ROUTER+QUALITY",
            help="ROUTER, but of its candidates those of lowest QUALITY of the small translation: a router "
            "of target quality, a metric's NAME_small, or a column. May be given again.",
        ),
    ] = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(
            "--verify",
            metavar="NAME=ROUTER+SMALL+LARGE",
            help="ROUTER (or a guard), but the small translation stands where LARGE is below SMALL, both "
            "qualities as of --guard. May be given again.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME=METRIC",
            help="chrf or comet:MODEL, over the tables' translations: the qualities NAME_small, NAME_large.",
        ),
    ] = None,
    candidates: Annotated[
        float, typer.Option("--candidates", metavar="F", help="Rows that a guard looks at, for each place.")
    ] = 2.0,
    keep_small_above: Annotated[
        float | None,
        typer.Option(
            "--keep-small-above",
            metavar="Q",
            help="As in a job: candidates of higher quality stay small, the next by ROUTER get their places.",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", metavar="M", help="How far below SMALL LARGE must be.")
    ] = 0.0,
    severe: Annotated[
        float, typer.Option("--severe", metavar="GAIN", help="A routed row with this gain or less is a loss.")
    ] = SEVERE_LOSS_GAIN,
    resamples: Annotated[
        int | None, typer.Option("--resamples", min=10, help="Of the bootstrap; default by rows.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap and of random routing.")] = 0,
    dtype: DtypeOption = "auto",
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Compare routers on rows whose gain is known: quality_small and quality_large.

    Both oracles and random routing are always in the table. Writes evaluation.json, .md, .png and .svg.
    """
    from routelmt_batch.cli import show
    from routelmt_batch.learning.evaluation.evaluate import Settings
    from routelmt_batch.learning.evaluation.evaluate import evaluate as run_evaluate
    from routelmt_batch.learning.evaluation.guards import GuardSettings
    from routelmt_batch.learning.evaluation.show import table

    wanted = fraction(budget, "--budget")
    guards = GuardSettings(
        tuple(guard or ()), tuple(verify or ()), candidates, keep_small_above, margin, tuple(metric or ())
    )
    settings = Settings(
        wanted, tuple(router or ()), tuple(scores or ()), guards, severe, resamples, seed, dtype
    )
    found = run_evaluate(tables, settings, Path(out), *_bars_and_engine(address, verbose))
    show.console().print(table(found))
    show.console().print(f"{out}/evaluation.json, .md, .png, .svg")


def calibrate(
    router: Annotated[str, typer.Argument(metavar="ROUTER", help="A router folder.")],
    tables: Tables,
    fractions: Annotated[
        list[str] | None,
        typer.Option("--fraction", metavar="P", help="A wanted fraction; may be given again."),
    ] = None,
    traffic_rows: Annotated[
        int, typer.Option("--traffic-rows", metavar="N", min=1, help="Rows of a job, for the interval.")
    ] = 1_000_000,
    dtype: DtypeOption = "auto",
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Store the scores from which on wanted fractions of held-out rows go to the large model.

    `run --threshold calibrated` then routes each row by its own score. Stopped or killed, the same
    command goes on where it stood.
    """
    from routelmt_batch.cli import show
    from routelmt_batch.learning.calibrate import calibrate as run_calibrate

    wanted = [fraction(text, "--fraction") for text in fractions or ("0.1", "0.2", "0.3", "0.4", "0.5")]
    if not all(wanted):
        raise UsageError("--fraction 0: no row goes to the large model, so there is no threshold; give more")
    found = run_calibrate(router, tables, wanted, traffic_rows, *_bars_and_engine(address, verbose), dtype)
    show.console().print(show.calibration(found))


def _bars_and_engine(address: str | None, verbose: bool) -> tuple[Bars, OpenEngine]:
    """What shows progress, and what opens vLLM; a signal then stops both in order."""
    from routelmt_batch import interrupts
    from routelmt_batch.job import flow

    interrupts.stop_on_signals()
    options = flow.Options(address=address, verbose=verbose)
    return Bars(stderr_console()), partial(flow.ray_engine, options=options)


def fraction(text: str, option: str) -> Decimal:
    """Raises UsageError if the text is no fraction."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"{option} {text}: give a number between 0 and 1, such as 0.3") from None
    if value.is_nan() or not 0 <= value <= 1:
        raise UsageError(f"{option} {text}: give a number between 0 and 1, such as 0.3")
    return value
