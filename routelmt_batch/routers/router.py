"""A router, checked and ready to score: what runs it, what its scores mean, what they depend on.

It knows no kind by name: each kind is a class (trained.py, baselines.py), listed in registry.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pyarrow as pa

from routelmt_batch.engines.lanes import Mask, Scorer
from routelmt_batch.prompts import LANGUAGES, Prompter
from routelmt_batch.routers.card import UNKNOWN, RouterCard, Scale
from routelmt_batch.spec import PassSpec, Pool
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.store.manifest import of_pool


@dataclass(frozen=True)
class Wanted:
    """The router that a spec names, and what it is used with.

    Attributes:
        key: its key in the spec.
        small: the small model's pool, if there is one.
        small_weights: checkpoints.weights_hash of the small model, if it is known.
    """

    key: str
    pool: RouterSpec
    spec: PassSpec
    small: Pool | None
    small_weights: str | None

    def prompter(self, model: Pool | None) -> Prompter | None:
        """What turns the pass's prompts into a model's tokens."""
        if model is None:
            return None
        return Prompter(model.source, self.spec.prompt.template, model.trust_remote_code)


@dataclass(frozen=True)
class Router(ABC):
    """An opened router. Each kind is a subclass.

    Attributes:
        scorer: scores rows in an engine's process.
        prompter: tokenizes prompts to find rows that are too long; None: no row is.
        card: the router folder's card; None: the router is not a router folder.
    """

    runs_a_model: ClassVar[bool] = True  # if not, its engines hold no GPU

    pool: RouterSpec
    scorer: Scorer
    prompter: Prompter | None
    card: RouterCard | None = None

    @classmethod
    @abstractmethod
    def open(cls, wanted: Wanted) -> Self:
        """Open it, checked against the prompt and the small model that it is used with.

        Raises:
            RoutelmtError: see registry.open_router.
        """

    def depends_on(self) -> dict[str, Any]:
        """What its scores depend on besides kind and scale, by name: its model, unless overridden."""
        return of_pool("router", self.pool)

    def prompt_limit(self, tokens: int) -> int:
        """The longest prompt, of `tokens` at most, that it can score."""
        return tokens

    @property
    def cuts(self) -> Callable[[pa.Table], Mask] | None:
        """Marks the rows whose text is too long: the scorer reads only the beginning. None: unknown."""
        return None

    @property
    def python(self) -> str | None:
        """The interpreter of the engines' processes; None: this one."""
        return None

    @property
    def scale(self) -> Scale:
        """score = mean + std x the model's output; higher for the large model."""
        scale = self.card.scale if self.card else Scale()
        if self.card and self.card.target == "quality":
            # The output is the small model's quality: where that is low, the large model is called.
            return Scale(mean=-scale.mean, std=-scale.std)
        return scale

    @property
    def predicts_gain(self) -> bool:
        """Whether scores are gains, in points of the metric; if not, only their order has a meaning."""
        return self.card is not None and self.card.target == "gain"

    def doubts(self, name: str, directions: Iterable[str]) -> list[str]:
        """A warning, which starts with `name`, if it was not trained on some of the directions (`en-de`).
        Directions with a language that LMT does not know are left out: their rows have no score."""
        scored = [pair for pair in directions if LANGUAGES.keys() >= set(pair.split("-"))]
        unseen = [pair for pair in scored if self.card and pair not in self.card.directions]
        return [f"{name}: not trained on {', '.join(unseen)}; its scores there are a guess"] if unseen else []

    @property
    def warnings(self) -> list[str]:
        """Warnings of what could not be checked."""
        if not self.card or self.card.small_model.weights != UNKNOWN:
            return []
        return [
            f"router {self.pool.source}: its labels do not record their small model, so it is not checked "
            "whether the router fits this small model"
        ]

    def describe(self) -> str:
        if not self.card:
            return f"{self.pool.kind} {self.pool.source}".strip()
        card = self.card
        return f"{self.pool.source} ({card.target} in {card.metric.name}, {', '.join(card.directions)})"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that its scores depend on, by name."""
        return {
            "router.kind": self.pool.kind,
            **self.depends_on(),
            "router's scale": self.scale.model_dump(),
        }
