"""A router, checked and ready to score: what runs it, what its scores mean, what they depend on.

It knows no kind by name: each is a class of its own (trained.py, baselines.py), listed in registry.py.
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
    """The router that a spec names, and what it is to be used with.

    Attributes:
        key: its key in the spec.
        small: the small model's pool, where one is at hand.
        small_weights: checkpoints.weights_hash of the small model, where it is known.
    """

    key: str
    pool: RouterSpec
    spec: PassSpec
    small: Pool | None
    small_weights: str | None

    def prompter(self, model: Pool | None) -> Prompter | None:
        """The pass's prompts as a model's tokens."""
        if model is None:
            return None
        return Prompter(model.source, self.spec.prompt.template, model.trust_remote_code)


@dataclass(frozen=True)
class Router(ABC):
    """A router of one kind, opened. A kind is a subclass.

    Attributes:
        scorer: scores rows in an engine's process.
        prompter: whose tokens say that a row is too long; None: no row is.
        card: of a router folder.
    """

    runs_a_model: ClassVar[bool] = True  # else its engines hold no GPU

    pool: RouterSpec
    scorer: Scorer
    prompter: Prompter | None
    card: RouterCard | None = None

    @classmethod
    @abstractmethod
    def open(cls, wanted: Wanted) -> Self:
        """Check it against the prompt and the small model that it is to be used with.

        Raises:
            RoutelmtError: see registry.open_router.
        """

    def depends_on(self) -> dict[str, Any]:
        """What its scores depend on beside kind and scale, by name: a model, unless the kind reads none."""
        return of_pool("router", self.pool)

    def prompt_limit(self, tokens: int) -> int:
        """The longest prompt, of `tokens` at most, that it can score."""
        return tokens

    @property
    def cuts(self) -> Callable[[pa.Table], Mask] | None:
        """Which rows the scorer reads the beginning of only; None: it does not say."""
        return None

    @property
    def python(self) -> str | None:
        """Interpreter of the engines' processes; None: this one."""
        return None

    @property
    def scale(self) -> Scale:
        """score = mean + std x what the model says; higher for the large model."""
        found = self.card.scale if self.card else Scale()
        if self.card and self.card.target == "quality":
            # It predicts the small model's quality: where that is low, the large one is called.
            return Scale(mean=-found.mean, std=-found.std)
        return found

    @property
    def predicts_gain(self) -> bool:
        """Whether scores are gains, in points of the metric; else only their order means something."""
        return self.card is not None and self.card.target == "gain"

    def doubts(self, name: str, directions: Iterable[str]) -> list[str]:
        """A warning, under a name, if some rows are of directions (`en-de`) that it was not trained on.
        Rows of a language that LMT does not know have no score, and do not count."""
        scored = [one for one in directions if LANGUAGES.keys() >= set(one.split("-"))]
        unseen = [one for one in scored if self.card and one not in self.card.directions]
        return [f"{name}: not trained on {', '.join(unseen)}; its scores there are a guess"] if unseen else []

    @property
    def warnings(self) -> list[str]:
        """What of its fit could not be checked."""
        if not self.card or self.card.small_model.weights != UNKNOWN:
            return []
        return [
            f"router {self.pool.source} was trained on labels that do not say which small model they are of: "
            "whether it fits this one is not checked"
        ]

    def describe(self) -> str:
        if not self.card:
            return f"{self.pool.kind} {self.pool.source}".strip()
        card = self.card
        return f"{self.pool.source} ({card.target} in {card.metric.name}, {', '.join(card.directions)})"

    def fingerprint(self) -> dict[str, Any]:
        """What its scores depend on, by name."""
        return {
            "router.kind": self.pool.kind,
            **self.depends_on(),
            "router's scale": self.scale.model_dump(),
        }
