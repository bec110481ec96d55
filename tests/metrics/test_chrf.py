"""chrF against a plain count of character n-grams."""

from collections import Counter

import pytest

from routelmt_batch.metrics.chrf import sentence_chrf, signature


def plain_chrf(hypothesis: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """chrF by its definition: F-beta of precision and recall, averaged over n-gram orders."""
    hypothesis, reference = ("".join(text.split()) for text in (hypothesis, reference))
    precisions, recalls = [], []
    for n in range(1, order + 1):
        grams = [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (hypothesis, reference)]
        totals = [sum(counter.values()) for counter in grams]
        if not all(totals):
            continue
        matches = sum((grams[0] & grams[1]).values())
        precisions.append(matches / totals[0])
        recalls.append(matches / totals[1])
    if not precisions:
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * (1 + beta**2) * p * r / (beta**2 * p + r) if p + r else 0.0


@pytest.mark.parametrize(
    ("hypothesis", "reference"),
    [
        ("Das Haus ist groß.", "Das Haus ist sehr groß."),
        ("我坐地铁上班。", "我每天坐地铁去上班。"),
        ("same", "same"),
        ("abc", "xyz"),
    ],
)
def test_scores_are_chrf(hypothesis, reference):
    (score,) = sentence_chrf([hypothesis], [reference])
    assert score == pytest.approx(plain_chrf(hypothesis, reference), abs=1e-6)


def test_the_signature_names_settings_and_version():
    assert "nc:6" in signature() and "version:" in signature()
