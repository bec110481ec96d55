"""The recipe of labels: both models, generation, prompt and metric, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.engines.arguments import check_engines
from routelmt_batch.learning.labels import Signature
from routelmt_batch.metrics.metric import Metric, describe, open_metric
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LARGE, QUALITY, SMALL, TRANSLATIONS
from routelmt_batch.spec import LabelSpec
from routelmt_batch.store import checkpoints
from routelmt_batch.store.checkpoints import check_pool
from routelmt_batch.store.manifest import engine_meaning, of_input, of_prompt, of_translations
from routelmt_batch.store.pickles import check_pickles
from routelmt_batch.store.workspace import Workspace


@dataclass(frozen=True)
class LabelRecipe:
    """See workspace.Recipe."""

    spec: LabelSpec
    metric: Metric

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        corpus = of_input(self.spec, shards, limit)
        return {
            TRANSLATIONS.name: corpus | of_translations(self.spec),
            QUALITY.name: corpus | of_prompt(self.spec) | {"metric": describe(self.metric)},
        }

    def signature(self) -> Signature:
        """What makes the labels, and where their rows have text and languages."""
        models = {SMALL: self.spec.models.small, LARGE: self.spec.models.large}
        value = {
            "metric": describe(self.metric),
            "models": {
                name: {"source": pool.source, "weights": checkpoints.weights_hash(pool.source)}
                for name, pool in models.items()
            },
            "generation": {
                "decoding": "greedy",
                **{
                    name: {
                        "dtype": pool.dtype,
                        "max_model_len_tokens": pool.max_model_len_tokens,
                        "max_output_tokens": pool.max_output_tokens,
                        "engine": engine_meaning(pool),
                    }
                    for name, pool in models.items()
                },
            },
            "prompt": self.spec.prompt.model_dump(),
            "input": self.spec.input.texts,
        }
        return Signature.model_validate(value)


Labelling: TypeAlias = Workspace[LabelSpec, LabelRecipe]


def check_label_models(spec: LabelSpec, bars: Bars) -> LabelRecipe:
    """Check both models and the metric before anything runs.

    Raises:
        SpecError: an `engine` key is no argument of vLLM.
        ModelError: a model is missing or reads too few tokens, or the metric is unknown.
        UsageError: the metric needs the quality environment, which does not work.
    """
    check_engines(spec.models)
    for key, pool in (("models.small", spec.models.small), ("models.large", spec.models.large)):
        check_pool(key, pool)
    metric = open_metric(spec.metric)
    check_pickles(spec, bars)
    if not metric.needs_reference:
        spec = spec.without_references()
    return LabelRecipe(spec, metric)
