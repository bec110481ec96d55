"""The script of the page about two public systems, as it is printed there, on a small test set of its form."""

import re
import runpy
import statistics

import numpy as np
import pyarrow.parquet as pq
import pytest
from sacrebleu.metrics import CHRF

from tests.conftest import REPOSITORY
from tests.learning.test_evaluate import run

PAGE = REPOSITORY / "docs" / "pages" / "two-systems.md"
SEGMENTS = 50


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A test set with two systems, of which one was not scored on every segment, and the script beside it."""
    draw = np.random.default_rng(0)
    words = ["the", "cat", "sees", "a", "dog", "in", "its", "own", "house\u2028", "tonight"]
    texts = {
        name: [" ".join(draw.choice(words, draw.integers(3, 9))) for _ in range(SEGMENTS)]
        for name in (
            "sources/en-de.txt",
            "references/en-de.refA.txt",
            "references/en-de.refB.txt",
            "system-outputs/en-de/M2M100_1.2B-B4.txt",
            "system-outputs/en-de/Online-W.txt",
        )
    }
    scores = [
        f"{system}\t{'None' if segment == 7 else -draw.integers(0, 20)}"
        for system in ("Online-W", "refB", "M2M100_1.2B-B4")
        for segment in range(SEGMENTS)
    ]
    root = tmp_path / "mt-metrics-eval-v2" / "wmt22"
    for name, lines in (texts | {"human-scores/en-de.mqm.seg.score": scores}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf8"), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "wmt_table.py").write_text(block, encoding="utf8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "wmt_table.py"))
    return root


def read(root, name):
    return (root / name).read_text(encoding="utf8").split("\n")[:SEGMENTS]


def test_the_table_by_chrf_has_both_references_and_a_ceiling(root, tmp_path):
    references = [read(root, f"references/en-de.{name}.txt") for name in ("refA", "refB")]
    small, large = (
        [
            [CHRF().sentence_score(text, [one]).score for one in several]
            for text, *several in zip(
                read(root, f"system-outputs/en-de/{name}.txt"), *references, strict=True
            )
        ]
        for name in ("M2M100_1.2B-B4", "Online-W")
    )
    lines = pq.read_table(tmp_path / "chrf.parquet").to_pylist()
    assert [line["source"] for line in lines] == read(root, "sources/en-de.txt")
    for line, less, more in zip(lines, small, large, strict=True):
        assert line["quality_small"] == pytest.approx(statistics.fmean(less))
        assert line["quality_large"] == pytest.approx(statistics.fmean(more))
        assert line["gain_by_reference"] == pytest.approx([b - a for a, b in zip(less, more, strict=True)])
    found = run(tmp_path, [tmp_path / "chrf.parquet"], scores=["characters"])
    assert (found.rows, found.ceiling.overall.sources) == (SEGMENTS, len({line["source"] for line in lines}))
    assert list(found.directions) == ["en-de"]


def test_the_table_by_human_scores_leaves_out_what_was_not_scored(root, tmp_path):
    scores = [
        line.split("\t") for line in (root / "human-scores/en-de.mqm.seg.score").read_text().splitlines()
    ]
    by_system = {
        name: [score for of, score in scores if of == name] for name in ("M2M100_1.2B-B4", "Online-W")
    }
    lines = pq.read_table(tmp_path / "human.parquet").to_pylist()
    for name, column in (("M2M100_1.2B-B4", "quality_small"), ("Online-W", "quality_large")):
        expected = [None if score == "None" else float(score) for score in by_system[name]]
        assert [line[column] for line in lines] == expected
    found = run(tmp_path, [tmp_path / "human.parquet"], scores=["characters"])
    assert found.rows == SEGMENTS - 1 and found.ceiling is None
    assert "1 of 50 rows dropped because of their quality: 1 null" in found.warnings
