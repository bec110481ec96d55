"""The learning commands: label, train, evaluate, calibrate. Heavy libraries load only when used."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from routelmt_batch.cli.ending import carry_out, scheduled
from routelmt_batch.cli.options import (
    FailIfOptions,
    RayOptions,
    ScheduleOptions,
    ScopeOptions,
    SpecOptions,
    grouped,
)
from routelmt_batch.errors import UsageError
from routelmt_batch.kinds import KINDS, ROUTER_FOLDER, SEVERE_LOSS_GAIN

Tables = Annotated[
    list[str], typer.Argument(metavar="TABLE", help="Parquet files, folders of them, or globs.")
]
DtypeOption = Annotated[
    Literal["bfloat16", "float16", "float32", "auto"],
    typer.Option(
        "--dtype",
        help="Data type of routers and models. bfloat16 shifts the demo's entropies by 0.02 nats on average.",
    ),
]
_BY_KIND = ", ".join(
    f"{kind}={source.metavar}" for kind, source in KINDS.items() if source and source is not ROUTER_FOLDER
)


@dataclass(frozen=True)
class EvaluationOptions:
    """The fields of evaluate.Settings, except those for guards."""

    budget: Annotated[
        str, typer.Option("--budget", metavar="P", help="Fraction of rows for the large model.")
    ] = "0.3"
    routers: Annotated[
        list[str],
        typer.Option(
            "--router",
            metavar="NAME=PATH",
            help=f"A router folder with a name that you choose, or KIND=PATH: {_BY_KIND}. Can be repeated.",
        ),
    ] = field(default_factory=list)
    score_columns: Annotated[
        list[str],
        typer.Option(
            "--scores", metavar="COLUMN", help="A column of scores; high ones go to the large model."
        ),
    ] = field(default_factory=list)
    severe: Annotated[
        float,
        typer.Option("--severe", metavar="GAIN", help="Gain up to which a routed row is a severe loss."),
    ] = SEVERE_LOSS_GAIN
    resamples: Annotated[
        int | None,
        typer.Option("--resamples", min=10, max=1_000_000, help="Bootstrap samples; default: by row count."),
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of bootstrap and random routing.")] = 0
    dtype: DtypeOption = "auto"


@dataclass(frozen=True)
class GuardOptions:
    """The fields of guards.GuardSettings."""

    guards: Annotated[
        list[str],
        typer.Option(
            "--guard",
            metavar="NAME=ROUTER+QUALITY",
            help="Route the candidates of ROUTER whose small translation has the lowest QUALITY: a router "
            "with target quality, a metric's NAME_small, or a column. Can be repeated.",
        ),
    ] = field(default_factory=list)
    verified: Annotated[
        list[str],
        typer.Option(
            "--verify",
            metavar="NAME=ROUTER+SMALL+LARGE",
            help="ROUTER (or a guard), but keep the small translation where LARGE is below SMALL, both "
            "qualities as in --guard. Can be repeated.",
        ),
    ] = field(default_factory=list)
    metrics: Annotated[
        list[str],
        typer.Option(
            "--metric",
            metavar="NAME=METRIC",
            help="Measure the tables' translations with chrf or comet:MODEL, as NAME_small and NAME_large.",
        ),
    ] = field(default_factory=list)
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Trust metrics with pickled weights (.ckpt): to load them can run code.",
        ),
    ] = False
    candidates: Annotated[
        float, typer.Option("--candidates", metavar="F", help="Candidates of a guard for each place.")
    ] = 2.0
    keep_small_above: Annotated[
        float | None,
        typer.Option(
            "--keep-small-above",
            metavar="Q",
            help="As in a job: candidates above this quality stay small; the next rows get their places.",
        ),
    ] = None
    margin: Annotated[
        float, typer.Option("--margin", metavar="M", help="How far LARGE must be below SMALL.")
    ] = 0.0


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


@grouped
def label(
    *,
    spec: SpecOptions,
    scope: ScopeOptions,
    fail: FailIfOptions,
    schedule: ScheduleOptions,
    ray: RayOptions,
) -> None:
    """Translate a parallel corpus with both models, measure both, and write a label table with gains.

    If it is stopped or killed, run the same command again to continue.
    """
    with scheduled("label", schedule) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import conditions, flow
        from routelmt_batch.learning.labelling.label import label as run_label
        from routelmt_batch.spec.file import load_label

        label_spec = spec.read(load_label)
        ending.begin(label_spec.name, label_spec.output.uri)
        fail_if = conditions.Conditions(conditions.parse(fail.fail_if, of_labels=True))
        options = flow.Options(**vars(scope), **vars(ray), conditions=fail_if, end=ending.end_now)
        carry_out(ending, run_label, label_spec, options, show.labels, what="these labels are")


@grouped
def train(*, spec: SpecOptions, schedule: ScheduleOptions, ray: RayOptions) -> None:
    """Train a router on label tables (LoRA and a linear head, or an ablation) and write its folder.

    If it is stopped or killed, run the same command again to continue from the last checkpoint.
    """
    with scheduled("train", schedule) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow
        from routelmt_batch.learning.training.spec import load_train_spec
        from routelmt_batch.learning.training.train import train as run_train

        train_spec = spec.read(load_train_spec)
        ending.begin(train_spec.name, train_spec.output.uri)
        ending.bars.say(f"{train_spec.name}: {train_spec.output.uri}")
        outcome = run_train(train_spec, flow.Options(**vars(ray), end=ending.end_now), ending.bars)
        if not outcome.new:
            ending.bars.say("this router is already trained; nothing to do. Its held-out figures:")
        ending.show(show.training(outcome.report), train_spec.output.uri)
        ending.end(**outcome.report.figures)


@grouped
def evaluate(
    *,
    tables: Tables,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the evaluation.")],
    evaluation: EvaluationOptions,
    guard: GuardOptions,
    schedule: ScheduleOptions,
    ray: RayOptions,
) -> None:
    """Compare routers on rows with a known gain, from columns quality_small and quality_large.

    The table always includes both oracles and random routing. Writes evaluation.json, .md, .png and .svg.
    """
    with scheduled("evaluate", schedule) as ending:
        from routelmt_batch.files.uris import on_disk
        from routelmt_batch.job import flow
        from routelmt_batch.learning.evaluation.evaluate import Settings
        from routelmt_batch.learning.evaluation.evaluate import evaluate as run_evaluate
        from routelmt_batch.learning.evaluation.guards import GuardSettings
        from routelmt_batch.learning.evaluation.show import table

        folder = on_disk(out, "an evaluation")
        ending.begin(folder.resolve().name, out)
        budget, guards = fraction(evaluation.budget, "--budget"), GuardSettings(**vars(guard))
        settings = Settings(**vars(evaluation) | {"budget": budget, "guards": guards})
        open_engine = partial(flow.ray_engine, options=flow.Options(**vars(ray), end=ending.end_now))
        result = run_evaluate(tables, settings, folder, ending.bars, open_engine)
        ending.show(table(result), f"{out}/evaluation.json, .md, .png, .svg")
        ending.end(report=f"{out}/evaluation.json", **result.figures)


@grouped
def calibrate(
    *,
    router: Annotated[str, typer.Argument(metavar="ROUTER", help="A router folder.")],
    tables: Tables,
    fractions: Annotated[
        list[str] | None,
        typer.Option("--fraction", metavar="P", help="A fraction to calibrate for; can be repeated."),
    ] = None,
    traffic_rows: Annotated[
        int,
        typer.Option(
            "--traffic-rows", metavar="N", min=1, max=10**12, help="Rows of a later job, for the interval."
        ),
    ] = 1_000_000,
    dtype: DtypeOption = "auto",
    schedule: ScheduleOptions,
    ray: RayOptions,
) -> None:
    """Store score thresholds that send given fractions of held-out rows to the large model.

    `run --threshold calibrated` then routes each row by its own score. If `calibrate` is stopped or killed,
    run the same command again to continue.
    """
    with scheduled("calibrate", schedule) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow
        from routelmt_batch.learning.calibrate import calibrate as run_calibrate

        ending.begin(Path(router).resolve().name, router)
        wanted = [fraction(text, "--fraction") for text in fractions or ("0.1", "0.2", "0.3", "0.4", "0.5")]
        if not all(wanted):
            raise UsageError(
                "--fraction 0: no row goes to the large model, so there is no threshold; give a larger one"
            )
        open_engine = partial(flow.ray_engine, options=flow.Options(**vars(ray), end=ending.end_now))
        result = run_calibrate(router, tables, wanted, traffic_rows, ending.bars, open_engine, dtype)
        ending.show(show.calibration(result))
        thresholds = {name: threshold.value for name, threshold in result.thresholds.items()}
        ending.end(rows=result.rows, thresholds=thresholds)


def fraction(text: str, option: str) -> Decimal:
    """Parse an option's fraction. Raises UsageError if it is not a number from 0 to 1."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"{option} {text}: give a number between 0 and 1, such as 0.3") from None
    if value.is_nan() or not 0 <= value <= 1:
        raise UsageError(f"{option} {text}: give a number between 0 and 1, such as 0.3")
    return value
