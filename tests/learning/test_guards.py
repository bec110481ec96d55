"""Guards of an evaluation, against rows chosen from sorted lists by hand."""

import json
import math
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sacrebleu

from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.learning.evaluation.guards import GuardSettings
from routelmt_batch.learning.evaluation.result import Evaluation
from tests.conftest import MODELS
from tests.learning.test_evaluate import SMALL, WORDS, run, table

ROWS = 300


@pytest.fixture
def labels(tmp_path) -> Path:
    """Scores and other qualities with ties, rows without them, and rows without labels in between."""
    draw = np.random.default_rng(3)
    small = draw.uniform(20, 80, ROWS)
    path = table(tmp_path / "a.parquet", quality_small=small)
    large = pq.read_table(path)["quality_large"].to_numpy()

    def holed(values):
        return np.where(draw.random(ROWS) < 0.1, np.nan, values)

    return table(
        path,
        quality_small=np.where(draw.random(ROWS) < 0.1, np.nan, small),
        quality_large=large,
        mine=holed(np.round((large - small + draw.normal(0, 10, ROWS)) / 5)),
        free_small=holed(np.round(small + draw.normal(0, 10, ROWS), -1)),
        free_large=holed(np.round(large + draw.normal(0, 10, ROWS), -1)),
        text=["x"] * ROWS,
    )


def rows_of(path: Path) -> list[dict]:
    rows = pq.read_table(path).to_pylist()
    return [row for row in rows if not math.isnan(row["quality_small"])]


def routed(rows: list[dict], k: int, quality=None, factor=2.0, above=None) -> list[dict]:
    scored = [row for row in rows if not math.isnan(row["mine"])]
    candidates = sorted(scored, key=lambda row: -row["mine"])
    if quality is None:
        return candidates[:k]
    candidates = candidates[: int(factor * k)]
    if above is not None:
        return [row for row in candidates if not row[quality] > above][:k]
    unknown = [row for row in candidates if math.isnan(row[quality])]
    known = [row for row in candidates if not math.isnan(row[quality])]
    return (unknown + sorted(known, key=lambda row: row[quality]))[:k]


def gain(row: dict) -> float:
    return row["quality_large"] - row["quality_small"]


def verified(row: dict, margin=0.0) -> float:
    return 0.0 if row["free_large"] < row["free_small"] - margin else gain(row)


def assert_is(found: Evaluation, name: str, rows: list[dict], choose, brings=gain) -> None:
    """Over all rows and in each direction, with its own k."""
    router = found.routers[name]
    for part, some in (
        (router.overall, rows),
        (router.directions["en-de"], [row for row in rows if row["target_lang"] == "de"]),
        (router.directions["en-zh"], [row for row in rows if row["target_lang"] == "zh"]),
    ):
        k = int(0.3 * len(some))
        gains = [brings(row) for row in choose(some, k)]
        assert part["mean_delta"].value == pytest.approx(sum(gains) / k)
        assert part["severe_loss_rate"].value == pytest.approx(100 * sum(g <= -5 for g in gains) / k)


GUARDS = ("free=mine+free_small", "upper=mine+quality_small")


@pytest.mark.parametrize("factor", [1.0, 2.0, 10.0])
def test_the_places_go_to_the_candidates_of_lowest_quality(tmp_path, labels, factor):
    found = run(tmp_path, [labels], scores=["mine"], guards=GuardSettings(GUARDS, candidates=factor))
    rows = rows_of(labels)
    for name, quality in (("free", "free_small"), ("upper", "quality_small")):
        assert_is(found, name, rows, lambda some, k, by=quality: routed(some, k, by, factor))
    values = {name: one.overall["mean_delta"].value for name, one in found.routers.items()}
    if factor == 1:
        assert values["upper"] == pytest.approx(values["mine"])
    if factor == 10:  # every row with a score is a candidate
        scored = [row for row in rows if not math.isnan(row["mine"])]
        lowest = sorted(scored, key=lambda row: row["quality_small"])[: found.k]
        assert values["upper"] == pytest.approx(fmean(map(gain, lowest)))


def test_keep_small_above_frees_places_for_the_next_by_score(tmp_path, labels):
    settings = GuardSettings(GUARDS, keep_small_above=40.0)
    found = run(tmp_path, [labels], scores=["mine"], guards=settings)
    for name, quality in (("free", "free_small"), ("upper", "quality_small")):
        assert_is(found, name, rows_of(labels), lambda some, k, by=quality: routed(some, k, by, above=40.0))
    rows = rows_of(labels)
    k = int(0.3 * len(rows))
    empty = k - len(routed(rows, k, "quality_small", above=40.0))
    assert empty > 0
    assert any(w.startswith(f"upper, overall: {empty} of the {k} places stay empty") for w in found.warnings)
    assert sum(bucket.rows for bucket in found.routers["upper"].buckets) == k - empty


@pytest.mark.parametrize("margin", [0.0, 15.0])
def test_verified_rows_that_keep_the_small_translation_bring_nothing(tmp_path, labels, margin):
    verify = ("after=mine+free_small+free_large", "both=free+free_small+free_large")
    settings = GuardSettings(GUARDS[:1], verify, margin=margin)
    found = run(tmp_path, [labels], scores=["mine"], guards=settings)

    def brings(row):
        return verified(row, margin)

    assert_is(found, "after", rows_of(labels), routed, brings)
    assert_is(found, "both", rows_of(labels), lambda some, k: routed(some, k, "free_small"), brings)
    routers = found.routers
    after, mine = routers["after"].overall, routers["mine"].overall
    assert after["hit_rate"] == mine["hit_rate"] and after["spearman"] == mine["spearman"]


def test_guards_stand_in_every_part_of_the_evaluation(tmp_path, labels):
    found = run(tmp_path, [labels], scores=["mine"], guards=GuardSettings(GUARDS))
    assert list(found.routers) == ["mine", "free", "upper", "random", "oracle-quality", "oracle-gain"]
    free = found.routers["free"]
    assert free.against_best_baseline.baseline == "random"
    assert free.overall["mean_delta"].low < free.overall["mean_delta"].high
    assert free.curve.quality[30] == pytest.approx(
        found.quality_small + 0.3 * free.overall["mean_delta"].value, abs=0.05
    )
    assert found.signature["guards"]["free"] == "mine; of 2 candidates a place, those of lowest free_small"
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert page.count("| free | ") >= 5
    told = found.warnings
    assert "upper: guarded by the quality that is also measured, so its result is an upper bound" in told
    missing = sum(math.isnan(row["free_small"]) for row in rows_of(labels))
    assert any(f"free: {missing} of {found.rows} rows have no free_small" in warning for warning in told)


def test_a_quality_router_predicts_what_guards(tmp_path):
    """With every row a candidate it is that router's own order."""
    quality = tmp_path / "router-q"
    shutil.copytree(MODELS / "router", quality)
    card = json.loads((quality / "routelmt.json").read_text())
    (quality / "routelmt.json").write_text(json.dumps(card | {"kind": "routelmt-q", "target": "quality"}))
    path = table(tmp_path / "a.parquet")
    routers = [f"routelmt={MODELS / 'router'}", f"routelmt-q={quality}"]
    guarded = GuardSettings(("guarded=routelmt+routelmt-q",), candidates=100.0)
    found = run(tmp_path, [path], routers, guards=guarded).routers
    values = {name: one.overall["mean_delta"].value for name, one in found.items()}
    assert values["guarded"] == pytest.approx(values["routelmt-q"]) != values["routelmt"]
    with pytest.raises(
        UsageError, match="the router routelmt does not predict the small translation's quality"
    ):
        run(tmp_path, [path], routers, guards=GuardSettings(("guarded=routelmt-q+routelmt",)))


def test_a_metric_measures_the_tables_translations(tmp_path):
    """chrF of the two tables' own translations, with blank ones among them, is sacrebleu's."""
    draw = np.random.default_rng(5)

    def texts():
        return [" ".join(draw.choice(WORDS, draw.integers(1, 8))) for _ in range(ROWS)]

    paths = []
    for name in "ab":
        columns = {"reference": texts(), "translation_small": texts(), "translation_large": texts()}
        columns["translation_small"][5] = None
        columns["reference"][6] = " "
        paths.append(
            table(tmp_path / f"{name}.parquet", mine=draw.permutation(ROWS).astype(float), **columns)
        )
    verify = ("after=mine+other_small+other_large",)
    settings = GuardSettings(("before=mine+other_small",), verify, metrics=("other=chrf",))
    found = run(tmp_path, paths, scores=["mine"], guards=settings)
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    chrf = sacrebleu.CHRF()
    for row in rows:
        for model in ("small", "large"):
            text, reference = row[f"translation_{model}"], row["reference"].strip()
            known = text and reference
            row[f"free_{model}"] = chrf.sentence_score(text, [reference]).score if known else math.nan
    assert_is(found, "before", rows, lambda some, k: routed(some, k, "free_small"))
    assert_is(found, "after", rows, routed, verified)
    assert "before: 4 of 600 rows have no other_small" in " ".join(found.warnings)
    assert "sentence chrF" in found.signature["metrics"]["other"]
    again = run(tmp_path, paths, scores=["mine"], guards=settings)
    assert again.routers == found.routers


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"guards": ("g=mine",)}, UsageError, r"--guard g=mine: give NAME=ROUTER\+QUALITY"),
        ({"guards": ("mine+free_small",)}, UsageError, "give NAME="),
        ({"guards": ("g=mine+",)}, UsageError, "give NAME="),
        ({"guards": ("g=mien+free_small",)}, UsageError, "no router is named 'mien'; did you mean 'mine'?"),
        ({"guards": ("random=mine+free_small",)}, UsageError, "another router is named random"),
        ({"guards": ("mine=mine+free_small",)}, UsageError, "another router is named mine"),
        ({"guards": ("g=mine+free_small",) * 2}, UsageError, "another router is named g"),
        (
            {"guards": ("g=mine+free_smal",)},
            UsageError,
            "'free_smal' is not a router, a metric's quality or a column .* did you mean 'free_small'",
        ),
        ({"guards": ("g=mine+text",)}, InputError, "column 'text' is string, not numeric"),
        ({"guards": ("g=mine+length",)}, UsageError, "the router length does not predict"),
        ({"verified": ("v=mine+free_small",)}, UsageError, r"give NAME=ROUTER\+SMALL\+LARGE"),
        (
            {"verified": ("v=mine+free_small+free_large", "w=v+free_small+free_large")},
            UsageError,
            "no router is named 'v'",
        ),
        ({"candidates": 0.5}, UsageError, "--candidates 0.5: give the candidates for each place, 1 or more"),
        ({"candidates": math.nan}, UsageError, "--candidates nan"),
        ({"margin": -1.0}, UsageError, "--margin -1.0: give points of quality, 0 or more"),
        ({"keep_small_above": math.nan}, UsageError, "--keep-small-above nan"),
        ({"metrics": ("kiwi",)}, UsageError, "--metric kiwi: .*unknown metric"),
        ({"metrics": ("mine=chrf",)}, UsageError, "with a name that nothing else has"),
        (
            {"metrics": ("kiwi=chrf",)},
            UsageError,
            "no --guard and no --verify names kiwi_small or kiwi_large",
        ),
        (
            {"metrics": ("free=chrf",), "guards": ("g=mine+free_small",)},
            UsageError,
            "the tables have a column free_large; give the metric another name",
        ),
        (
            {"metrics": ("kiwi=chrf",), "guards": ("g=mine+kiwi_small",)},
            InputError,
            "no text column 'translation_small'",
        ),
    ],
)
def test_a_guard_that_means_nothing_is_told(tmp_path, labels, settings, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, [labels], [f"length={SMALL}"], ["mine"], guards=GuardSettings(**settings))
    assert not (tmp_path / "out").exists(), "nothing was started"


def test_two_tables_of_which_one_lacks_the_column(tmp_path, labels):
    other = tmp_path / "b.parquet"
    pq.write_table(pq.read_table(labels).drop(["free_small"]), other)
    with pytest.raises(InputError, match=r"b.parquet: no column 'free_small'"):
        run(tmp_path, [labels, other], scores=["mine"], guards=GuardSettings(GUARDS[:1]))


def test_a_column_of_nulls_guards_nothing(tmp_path, labels):
    bare = pq.read_table(labels)
    pq.write_table(bare.append_column("none", pa.nulls(ROWS)), labels)
    found = run(tmp_path, [labels], scores=["mine"], guards=GuardSettings(("g=mine+none",))).routers
    assert found["g"].overall == found["mine"].overall
