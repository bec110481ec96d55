"""Writes the description of a router folder: `routelmt.json` for programs, `README.md` for people.

It formats names and figures. It computes nothing.
"""

from __future__ import annotations

from typing import Any

from routelmt_batch import __version__
from routelmt_batch.learning.labels import Model, Signature
from routelmt_batch.learning.training.regression import BINS, Measures
from routelmt_batch.learning.training.report import Prepared, Trained, TrainReport
from routelmt_batch.learning.training.spec import TrainSpec, short_name
from routelmt_batch.routers.card import UNKNOWN
from routelmt_batch.store import checkpoints

PLOT, PLOT_BY_DIRECTION = "predicted-realised", "predicted-realised-directions"
_NOBODY = {"name": UNKNOWN, "weights": UNKNOWN}
_METHODS = {
    "lora": "LoRA (rank {rank}, alpha {alpha:g}, dropout {dropout:g}, modules {target_modules}) and the "
    "head, merged; the adapter alone is in `adapter/`",
    "head_only": "the head alone; the model is frozen (a probe)",
    "full": "all weights",
}


def card(spec: TrainSpec, made: Signature | None, prepared: Prepared, trained: Trained) -> dict[str, Any]:
    """The router's card; `routers.card.RouterCard` is the part that a job reads. Without a signature of the
    labels (`made`) their metric and models are unknown."""
    metric = made.metric.model_dump() if made else {"name": UNKNOWN, "signature": UNKNOWN}
    small, large = (_model(made.models.small), _model(made.models.large)) if made else (_NOBODY, _NOBODY)
    if spec.base.architecture == "decoder":
        small = {"name": spec.base.name, "weights": checkpoints.weights_hash(spec.base.source)}
    return {
        "kind": spec.kind,
        "target": spec.target,
        "metric": metric,
        "prompt_template": spec.prompt.template,
        "directions": prepared.directions,
        "small_model": small,
        "large_model": large,
        "scale": prepared.scale.model_dump(),
        "calibration": None,
        "training": {
            "name": spec.name,
            "base": spec.base.name,
            "method": spec.method,
            "lora": spec.lora.model_dump() if spec.method == "lora" else None,
            "seed": spec.training.seed,
            "weigh_references": spec.training.weigh_references,
            "split": spec.split.model_dump(mode="json"),
            "rows": prepared.rows,
            "max_length_tokens": spec.training.max_length_tokens,
            "epochs_run": trained.epochs_run,
            "best_step": trained.best_step,
            "version": __version__,
        },
    }


def _model(model: Model) -> dict[str, str]:
    return {"name": short_name(model.source), "weights": model.weights}


def readme(spec: TrainSpec, report: TrainReport) -> str:
    """The model card: what the router predicts, how it was trained, and its figures on held-out rows."""
    parts = [_front(spec, report), _purpose(spec, report), _recipe(spec, report), _figures(spec, report)]
    return "\n\n".join([*parts, *_warnings(report), _use()]) + "\n"


def _front(spec: TrainSpec, report: TrainReport) -> str:
    directions = report.card["directions"]
    languages = ", ".join(f'"{code}"' for code in sorted({code for d in directions for code in d.split("-")}))
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-classification\nbase_model: {spec.base.name}\n"
        f"language: [{languages}]\ntags: [routelmt-batch, {spec.kind}]\n---"
    )


def _purpose(spec: TrainSpec, report: TrainReport) -> str:
    card = report.card
    scale, metric = card["scale"], card["metric"]
    small, large = card["small_model"], card["large_model"]
    target = (
        f"the marginal gain of the large model `{large['name']}` over the small model `{small['name']}`"
        if spec.target == "gain"
        else f"the quality of the small model `{small['name']}`'s translation"
    )
    return (
        f"# {spec.name}\n\nA router of routelmt_batch (kind `{spec.kind}`), after RouteLMT (Luo et al., ACL "
        f"2026 Industry Track, arXiv 2604.22520). It reads the translation prompt and predicts {target}, in "
        f"{metric['name']} ({metric['signature']}), x100 scale:\n\n"
        f"**{spec.target} = {scale['mean']:.4g} + {scale['std']:.4g} x score**\n\n"
        f"Directions: {', '.join(card['directions'])}. Small model's weights: `{small['weights']}`. "
        "`routelmt.json` holds this for programs; a job refuses the router for another small model or prompt."
    )


def _recipe(spec: TrainSpec, report: TrainReport) -> str:
    rows, trained, training = report.rows, report.trained, spec.training
    method = _METHODS[spec.method].format(**spec.lora.model_dump())
    patience = (
        f"training stops after {training.patience} evaluations without a better one"
        if training.patience
        else "without early stopping"
    )
    test = (
        f"the {rows['test']:,} test rows are tables of their own"
        if spec.test_tables
        else f"{rows['test']:,} test rows"
    )
    return (
        f"## Training\n\nBase: `{spec.base.name}`. Trained: {method}; "
        f"{trained.trainable_parameters:,} parameters. Mean squared error on targets standardised by the "
        f"training rows' mean and standard deviation.\n\n"
        f"{rows['train']:,} rows for training, {rows['validation']:,} for validation, {test}; split by "
        f"`{spec.split.by}` (seed {spec.split.seed}): rows with the same value are on one side. Up to "
        f"{training.epochs} epochs of batches of {training.batch_rows}, learning rate "
        f"{training.learning_rate:g} ({training.scheduler}, warm-up {training.warmup_fraction:g}), weight "
        f"decay {training.weight_decay:g}, gradient norm {training.gradient_norm:g}, seed {training.seed}. "
        f"{training.evaluations_per_epoch} evaluations an epoch; the one with the best validation Spearman "
        f"is kept ({patience}): step {trained.best_step:,} with {trained.validation_spearman:.3f}, "
        f"after {trained.epochs_run:g} epochs run{', stopped early' if trained.stopped_early else ''}."
    )


def _figures(spec: TrainSpec, report: TrainReport) -> str:
    lines = [
        "| rows of | rows | R² | MAE | Pearson | Spearman | calibration error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        _line("all", report.held_out.overall),
        *(_line(name, one) for name, one in report.held_out.directions.items()),
    ]
    return (
        "## Held-out figures\n\nMeasured with the saved model on test rows only. Calibration error: "
        f"{BINS} bins of equal count by prediction, mean |mean predicted - mean realised|; it and the MAE "
        f"are in points of {report.card['metric']['name']}.\n\n"
        + "\n".join(lines)
        + f"\n\n![Predicted against realised {spec.target}]({PLOT}.png)"
        + f"\n\n![The same, each direction alone]({PLOT_BY_DIRECTION}.png)"
    )


def _line(name: str, one: Measures) -> str:
    cells = ("undefined" if value is None else f"{value:.3f}" for value in one.values)
    return f"| {name} | {one.rows:,} | {' | '.join(cells)} |"


def _warnings(report: TrainReport) -> list[str]:
    if not report.warnings:
        return []
    return ["## Warnings\n\n" + "\n".join(f"- {warning}" for warning in report.warnings)]


def _use() -> str:
    return (
        "## Use\n\nName this folder as `router.source` of a job, or load it with transformers' "
        "`AutoModelForSequenceClassification`: one label, no activation on the score."
    )
