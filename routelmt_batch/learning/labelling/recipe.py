"""What labels are made from: both models, generation, prompt and metric, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from routelmt_batch import checkpoints
from routelmt_batch.manifest import of_input, of_prompt, of_translations
from routelmt_batch.metrics.metric import Metric, describe, open_metric
from routelmt_batch.shards import Shard
from routelmt_batch.spec import LabelSpec
from routelmt_batch.workspace import Workspace, check_pool


@dataclass(frozen=True)
class LabelRecipe:
    """See workspace.Recipe."""

    spec: LabelSpec
    metric: Metric

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        corpus = of_input(self.spec, shards, limit)
        return {
            "translations": corpus | of_translations(self.spec),
            "quality": corpus | of_prompt(self.spec) | {"metric": describe(self.metric)},
        }

    def signature(self) -> dict[str, Any]:
        """What the labels are of: models, generation, prompt and metric."""
        models = {"small": self.spec.models.small, "large": self.spec.models.large}
        return {
            "metric": describe(self.metric),
            "models": {
                name: {"source": pool.source, "weights": checkpoints.weights_hash(pool.source)}
                for name, pool in models.items()
            },
            "generation": {
                "decoding": "greedy",
                **{
                    name: {"dtype": pool.dtype, "max_output_tokens": pool.max_output_tokens}
                    for name, pool in models.items()
                },
            },
            "prompt": {"template": self.spec.prompt.template},
        }


Labelling: TypeAlias = Workspace[LabelSpec, LabelRecipe]


def check_label_models(spec: LabelSpec) -> LabelRecipe:
    """Check both models and the metric before anything runs.

    Raises:
        ModelError: a model that is not there or too short, a metric that is none.
        UsageError: the metric needs the quality environment, and it does not work.
    """
    for key, pool in (("models.small", spec.models.small), ("models.large", spec.models.large)):
        check_pool(key, pool)
    metric = open_metric(spec.metric)
    if not metric.needs_reference:
        spec = spec.without_references()
    return LabelRecipe(spec, metric)
