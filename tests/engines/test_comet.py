"""COMET in its own environment through real Ray actor pools, against unbabel-comet called by itself."""

import io
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.cli.show import labels as shown
from routelmt_batch.engines import quality
from routelmt_batch.engines.lanes import Lane
from routelmt_batch.errors import UsageError
from routelmt_batch.files.write import kept_folder
from routelmt_batch.job import flow
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate
from routelmt_batch.learning.evaluation.guards import GuardSettings
from routelmt_batch.learning.labelling.label import label
from routelmt_batch.metrics.metric import open_metric
from routelmt_batch.progress import Bars
from routelmt_batch.rows import QUALITY, SCORES
from routelmt_batch.spec import Metric
from routelmt_batch.spec.file import load, load_label
from routelmt_batch.store.folder import Folder
from tests.conftest import DEMO, MODELS, comets, in_quality
from tests.engines.given import ALL, Given, keep_results, requests
from tests.oracle import check_report

pytestmark = pytest.mark.engine
BARS = Bars(Console(quiet=True), quiet=True)
# Lanes by name: the checkpoint, the dtype, how far scores (x100) may be from float32's.
METRICS = {
    "regression": ("regression", "float32", 1e-4),
    "referenceless": ("referenceless", "float32", 1e-4),
    "kiwi": ("kiwi", "float32", 1e-4),
    "xcomet": ("xcomet", "float32", 1e-4),
    "half": ("regression", "float16", 0.1),
}
WORDS = (
    "I saw a cat near the river and dog in house Ich sah eine Katze am Fluss Wo ist bitte 我在河边看到一只猫"
)


def texts(seed: int, rows: int = 60) -> list[str]:
    """Some of one word, some longer than the models read."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS.split(), k=draw.choice([1, 3, 5, 8, 13]))) for _ in range(rows)]


def test_scores_and_cut_rows_are_unbabel_comets_own(comet_models, tmp_path, open_engine):
    """Every class at once, each in a pool of its own."""
    source, hypothesis, reference = texts(1), texts(2), texts(3)
    table = requests({7: "empty"}, source=source, hypothesis=hypothesis, reference=reference)
    lanes = []
    for name, (model, dtype, _) in METRICS.items():
        pool = Metric(source=f"comet:{comet_models / model}", cpus=0.4, max_num_seqs=8, dtype=dtype)
        metric = open_metric(pool)
        folder = tmp_path / name
        folder.mkdir()
        write = keep_results(folder)
        lanes.append(
            Lane(
                name,
                pool,
                [Given(table)],
                ALL,
                write,
                part_rows=25,
                stage=QUALITY,
                scorer=metric,
                cuts=metric.cuts,
                python=metric.python,
            )
        )
    with open_engine(Folder.at(str(tmp_path))) as engine:
        assert sum(receipt.part for receipt in engine.run(lanes)) == 60 * len(METRICS)
    samples = {}
    for model, *_ in METRICS.values():
        columns = {"src": source, "mt": hypothesis}
        if model in ("regression", "xcomet"):
            columns["ref"] = reference
        samples[str(comet_models / model)] = [
            dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]
    expected = in_quality("predict.py", given=samples)
    for name, (model, _, tolerance) in METRICS.items():
        rows = [
            line for path in (tmp_path / name).glob("*.parquet") for line in pq.read_table(path).to_pylist()
        ]
        rows.sort(key=lambda line: line["row"])
        assert rows.pop(7)["score"] is None
        own = expected[str(comet_models / model)]
        scores, cut = np.delete(own["scores"], 7), np.delete(own["cut"], 7)
        assert np.std(scores) > 0.01 and 0 < cut.sum() < 59, "the check tells rows apart"
        np.testing.assert_allclose([line["score"] for line in rows], 100 * scores, atol=tolerance)
        assert [line["cut"] for line in rows] == cut.tolist()


def test_a_node_without_the_environment_is_told(tmp_path, open_engine):
    with open_engine(Folder.at(str(tmp_path))) as engine:
        engine.check_nodes(str(quality.python()))
        with pytest.raises(UsageError, match=f"quality environment {tmp_path}/none: does not exist"):
            engine.check_nodes(str(tmp_path / "none"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    """Sentences without references; the last one longer than the models read."""
    columns = ["id", "source", "source_lang", "target_lang"]
    rows = pq.read_table(DEMO / "input" / "part-0.parquet", columns=columns).slice(0, 30).to_pylist()
    rows[-1]["source"] = " ".join([rows[-1]["source"]] * 5)
    root = tmp_path_factory.mktemp("corpus")
    pq.write_table(pa.Table.from_pylist(rows), root / "a.parquet", row_group_size=20)
    return root


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, ray_session, comet_models, sentences):
    """A label job by a metric that needs no reference: its report and its rows."""
    import contextlib

    from routelmt_batch.engines.pools import Pools
    from routelmt_batch.engines.session import Session

    @contextlib.contextmanager
    def opened(folder):
        with kept_folder(folder.logs) as logs, Session(logs, verbose=True) as session:
            yield Pools(session)

    output = tmp_path_factory.mktemp("labels") / "out"
    spec = load_label(
        DEMO / "label.yaml",
        [
            f"input.uri={sentences}",
            f"metric=comet:{comet_models / 'kiwi'}",
            "run.pools=concurrent",
            "run.part_rows=8",
            *(f"models.{name}.source={MODELS / name}" for name in ("small", "large")),
        ],
        str(output),
    )
    report = label(spec, flow.Options(), BARS, opened).report
    check_report(output, "label")
    rows = [row for path in (output / "data").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return output, report, rows


def test_label_measures_by_comet_without_references(labelled, comet_models):
    _, report, rows = labelled
    good = [row for row in rows if row["gain"] is not None]
    assert len(good) >= 20 and report.labelled == len(good)
    pairs = [(row["source"], row[f"translation_{route}"]) for route in ("small", "large") for row in good]
    samples = [{"src": text, "mt": translation} for text, translation in pairs]
    expected = comets(comet_models / "kiwi", samples)
    found = [row[f"quality_{route}"] for route in ("small", "large") for row in good]
    np.testing.assert_allclose(found, 100 * np.array(expected["scores"]), atol=1e-4)
    small, large = (sum(half) for half in np.split(np.array(expected["cut"]), 2))
    assert report.cut == {"small": small, "large": large} and small + large > 0
    console = Console(width=200, file=io.StringIO())
    console.print(shown(report))
    assert f"{small} of small; {large} of large" in console.file.getvalue()
    assert report.signature.metric.name == "comet:kiwi"


def test_a_sentinel_routes_by_a_checkpoint_that_reads_sources(
    labelled, comet_models, make_spec, tmp_path, open_engine
):
    output, _, rows = labelled
    sentinel = comet_models / "source-only"
    settings = Settings(Decimal("0.3"), (f"sentinel={sentinel}",), resamples=50, dtype="float32")
    found = evaluate([str(output / "data")], settings, tmp_path / "evaluation", BARS, open_engine)
    expected = comets(sentinel, [{"src": row["source"], "mt": row["source"]} for row in rows])
    work = tmp_path / "evaluation/_job/sentinel"
    assert Folder.at(str(work)).ledger().totals(SCORES).sums["cut"] == sum(expected["cut"]) > 0
    scored = [
        (score, row["gain"])
        for score, row in zip(expected["scores"], rows, strict=True)
        if row["gain"] is not None
    ]
    k = int(Decimal("0.3") * len(scored))
    # Lowest expected quality first, ties by row.
    gains = [gain for _, gain in sorted(scored, key=lambda pair: pair[0])[:k]]
    measured = found.routers["sentinel"].overall["mean_delta"].value
    assert measured == pytest.approx(sum(gains) / k, abs=1e-6)
    spec = load(make_spec(router={"kind": "sentinel", "source": str(sentinel), "dtype": "float32"}))
    lines = flow.plan(spec, flow.Options(limit=10), BARS, open_engine)
    assert lines


def test_an_evaluation_guards_by_a_metric_without_references(labelled, comet_models, tmp_path, open_engine):
    """The labels' own metric over the table's translations is their quality again, to COMET's batches."""
    output, _, rows = labelled
    path = tmp_path / "labels.parquet"
    table = pa.concat_tables(pq.read_table(one) for one in sorted((output / "data").rglob("*.parquet")))
    pq.write_table(table.append_column("mine", pa.array(np.arange(float(len(rows))))), path)
    guards = GuardSettings(
        ("free=mine+kiwi_small", "upper=mine+quality_small"),
        ("after=mine+kiwi_small+kiwi_large", "best=mine+quality_small+quality_large"),
        metrics=(f"kiwi=comet:{comet_models / 'kiwi'}",),
        margin=0.01,  # above what the order of a batch does to a score
    )
    settings = Settings(Decimal("0.3"), score_columns=("mine",), guards=guards, resamples=50)
    found = evaluate([str(path)], settings, tmp_path / "evaluation", BARS, open_engine)
    values = {name: router.overall["mean_delta"].value for name, router in found.routers.items()}
    assert values["free"] == pytest.approx(values["upper"]) != values["mine"]
    assert values["after"] == pytest.approx(values["best"]) != values["mine"]
    assert any(
        warning.startswith("kiwi: ") and "longer than it reads" in warning for warning in found.warnings
    )
