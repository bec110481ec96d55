"""Labels by several references: what is measured, kept, counted and refused."""

import statistics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from sacrebleu.metrics import CHRF
from scipy import stats

from routelmt_batch.cli import show
from routelmt_batch.errors import InputError
from routelmt_batch.job.flow import Options
from routelmt_batch.learning.evaluation.guards import GuardSettings
from routelmt_batch.learning.labelling.label import label
from routelmt_batch.learning.training.tables import find_tables, read_rows
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load_label
from tests.conftest import COLUMNS, MODELS, write_shard
from tests.fake_engine import FakeEngine
from tests.learning.test_evaluate import run as evaluated
from tests.learning.training import make_spec

BARS = Bars(Console(quiet=True), quiet=True)
ROWS = 60
LISTS = pa.list_(pa.string())


def references(row: int) -> list[str | None]:
    """One to three; some rows gain by all of theirs, some by one."""
    first = f"small of {row}" if row % 3 else f"large of {row}"
    return [first, f"a large one of {row}", f"{row} is small"][: 1 + row % 3]


@pytest.fixture
def spec(tmp_path):
    """Writes a label spec over a corpus with a column of references."""

    def write(column: pa.Array):
        texts = [f"Sentence number {row}." for row in range(len(column))]
        write_shard(tmp_path / "corpus" / "a.parquet", texts, row_group_size=7, reference=column)
        value = {
            "name": "labels",
            "input": {"uri": str(tmp_path / "corpus"), "columns": dict(COLUMNS)},
            "output": {"uri": str(tmp_path / "labels")},
            "models": {
                name: {"source": str(MODELS / name), "max_model_len_tokens": 256, "max_output_tokens": 64}
                for name in ("small", "large")
            },
            "run": {"part_rows": 8},
        }
        path = tmp_path / "label.yaml"
        path.write_text(yaml.safe_dump(value))
        return path

    return write


@pytest.fixture
def labelled(spec, tmp_path):
    """Labels a column of references; returns the report and the label table's rows."""

    def run(column: pa.Array, *settings: str):
        engine = FakeEngine(tmp_path / "sent.log")
        outcome = label(load_label(spec(column), settings), Options(), BARS, engine.opened)
        return outcome.report, pq.read_table(tmp_path / "labels/data/a.parquet").to_pylist()

    return run


def gains(row: int, several) -> list[float]:
    return [
        CHRF().sentence_score(f"large of {row}", [one]).score
        - CHRF().sentence_score(f"small of {row}", [one]).score
        for one in several
    ]


def halves(found: list[float]) -> tuple[float, float]:
    return statistics.fmean(found[::2]), statistics.fmean(found[1::2])


@pytest.mark.parametrize("kind", [LISTS, pa.large_list(pa.string()), pa.list_(pa.large_string())])
def test_a_row_s_gain_is_the_mean_over_its_references_and_each_of_them_is_kept(labelled, kind):
    report, lines = labelled(pa.array([references(row) for row in range(ROWS)], kind))
    assert report.labelled == ROWS
    for row, line in enumerate(lines):
        expected = gains(row, references(row))
        assert line["reference"] == references(row)
        assert line["gain_by_reference"] == pytest.approx(expected)
        assert line["gain"] == pytest.approx(statistics.fmean(expected))
        assert line["gain"] == line["quality_large"] - line["quality_small"]
        small = [CHRF().sentence_score(f"small of {row}", [one]).score for one in references(row)]
        assert line["quality_small"] == pytest.approx(statistics.fmean(small))


def test_references_that_say_nothing_do_not_count_and_the_same_one_counts_once(labelled):
    odd = [
        [None, "One.", "", "  ", "Two."],
        ["One.", "One."],
        [],
        None,
        [None, " "],
        ["One."],
    ]
    report, lines = labelled(pa.array([*odd, *[["One.", "Two."]] * 6], LISTS))
    assert [len(line["gain_by_reference"] or ()) for line in lines[:6]] == [2, 1, 0, 0, 0, 1]
    assert lines[0]["gain_by_reference"] == pytest.approx(gains(0, ["One.", "Two."]))
    for line in lines[2:5]:
        assert line["gain"] is line["quality_small"] is line["translation_small"] is None
    assert report.unlabelled == {"no_reference": 3} and report.skipped_rows == 3


def test_a_column_of_single_references_is_kept_as_lists_of_one(labelled):
    report, lines = labelled(pa.array([references(row)[0] for row in range(ROWS)]))
    assert all(line["gain_by_reference"] == [line["gain"]] for line in lines)
    assert report.overall.reliability is None


def test_the_report_tells_how_well_one_references_gain_tells_anothers(labelled, capsys):
    report, lines = labelled(pa.array([references(row) for row in range(ROWS)], LISTS))
    both = [halves(line["gain_by_reference"]) for line in lines if len(line["gain_by_reference"]) > 1]
    expected = stats.pearsonr(*zip(*both, strict=True))
    interval = expected.confidence_interval(0.95)
    found = report.overall.reliability
    assert found == report.direction["en-de"].reliability and found.rows == len(both) == 40
    assert found.correlation == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-4)
    Console(width=150).print(show.labels(report))
    assert f"{found.correlation:.2f} ({found.low:.2f} to {found.high:.2f})" in capsys.readouterr().out


def test_gains_that_are_all_the_same_have_no_correlation(labelled):
    report, _ = labelled(pa.array([["x", "y"]] * 12, LISTS))
    assert report.overall.reliability.as_json() == {
        "rows": 12,
        "correlation": None,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize(
    "column",
    [pa.array([[1, 2]] * 3), pa.array([1, 2, 3]), pa.array([[["x"]]] * 3), pa.array([{"a": "x"}] * 3)],
)
def test_a_column_that_holds_no_references_is_refused(labelled, column):
    message = (
        r"column 'reference' \(input.columns.reference\) is .*, not string or a list of strings: convert"
    )
    with pytest.raises(InputError, match=message):
        labelled(column)


def test_a_source_is_never_a_list(labelled, spec, tmp_path):
    spec(pa.array(["x"] * 3))
    path = tmp_path / "corpus" / "a.parquet"
    table = pq.read_table(path)
    with pytest.raises(InputError, match=r"column 'text' .* is list<.*>, not string: convert"):
        write_shard(path, ["x"] * 3, reference=table["reference"], text=pa.array([["x"]] * 3))
        engine = FakeEngine(tmp_path / "sent.log")
        label(load_label(tmp_path / "label.yaml", ()), Options(), BARS, engine.opened)


def test_training_counts_the_references_and_evaluate_has_a_ceiling(labelled, tmp_path):
    _, lines = labelled(pa.array([references(row) for row in range(ROWS)], LISTS))
    spec = make_spec(tmp_path, tables=[str(tmp_path / "labels/data")])
    rows = read_rows(spec, find_tables(spec), BARS)
    assert rows["references"].to_pylist() == [1 + row % 3 for row in range(ROWS)]
    assert rows["target"].to_pylist() == pytest.approx([line["gain"] for line in lines])
    found = evaluated(tmp_path / "evaluation", [tmp_path / "labels/data"], scores=["id"])
    assert found.ceiling.overall.sources == 40
    both = [halves(line["gain_by_reference"]) for line in lines if len(line["gain_by_reference"]) > 1]
    assert found.ceiling.overall.random_mean_delta.value == pytest.approx(np.mean(both))


def test_a_metric_of_an_evaluation_measures_by_all_references_too(labelled, tmp_path):
    labelled(pa.array([references(row) for row in range(ROWS)], LISTS))
    guards = GuardSettings(["again=id+own_small", "told=id+quality_small"], metrics=["own=chrf"])
    found = evaluated(tmp_path / "evaluation", [tmp_path / "labels/data"], scores=["id"], guards=guards)
    assert found.routers["again"].overall == found.routers["told"].overall
