"""Sentence chrF by sacrebleu (Popović 2015). It needs references and no model."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import CHRF


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF of each hypothesis against its one reference, from 0 to 100."""
    metric = CHRF()
    return [
        float(metric.sentence_score(hypothesis, [reference]).score)
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]


def signature() -> str:
    metric = CHRF()
    metric.sentence_score("a", ["a"])  # sacrebleu learns the number of references from a call
    return f"sentence chrF, {metric.get_signature()}"
