"""Reports on a terminal: what guard, checks and audit did is there, and nothing of them where they are off."""

import io

import pyarrow as pa
import pytest
from rich.console import Console

from routelmt_batch.cli import show
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests.conftest import COLUMNS, write_shard
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("no_page")
BARS = Bars(Console(quiet=True), quiet=True)


@pytest.fixture
def printed(make_spec, tmp_path):
    """Runs a job on a made-up engine: its report, and the lines that are shown of it by their first word."""
    rows = range(60)
    references = [f"small of {i}" if i % 3 == 0 else f"large of {i}" for i in rows]
    corpus = tmp_path / "in"
    write_shard(
        corpus / "a.parquet", [f"Sentence {i * i}." for i in rows], 20, reference=pa.array(references)
    )

    def run(**settings):
        source = {"uri": str(corpus), "columns": COLUMNS | {"reference": "reference"}}
        spec = load(make_spec(input=source, **settings))
        report = flow.run(spec, flow.Options(), BARS, FakeEngine(tmp_path / "sent.log").opened).report
        console = Console(width=240, file=io.StringIO(), highlight=False)
        console.print(show.job(report))
        lines = [line.strip().split("  ", 1) for line in console.file.getvalue().splitlines()]
        return report.as_json(), {line[0]: line[1].strip() for line in lines if len(line) == 2}

    return run


def test_a_guarded_and_audited_job_says_what_it_saved_and_cost(printed):
    guard = {"mode": "hypothesis", "keep_small_above": 60, "escalate_fraction": 0.1, "escalate_below": 50}
    report, lines = printed(
        guard=guard | {"verify": True}, metric="chrf", audit={"fraction": 0.5, "min_rows": 1}
    )
    guard, audit = report["guard"], report["audit"]
    assert guard["kept_small"] > 0 and guard["extra_small_translations"] > 0, "the check tells jobs apart"
    assert lines["guard"] == (
        f"hypothesis, above 60: {guard['kept_small']} planned rows kept small, "
        f"{guard['freed_places_taken']} freed places taken, {guard['unfilled']} unfilled"
    )
    assert lines["escalated"] == f"{guard['escalated']} of 6 places held back"
    assert lines["verified"] == f"{guard['verified_small']} rows keep the small model's text"
    measured = guard["measured"]
    assert lines["guard's cost"] == (
        f"{guard['extra_small_translations']} extra small translations; "
        f"measured: {measured['small']} of small, {measured['large']} of large"
    )
    calls, spearman = audit["calls"], audit["spearman"]
    assert lines["audit"] == (
        f"30 rows, 30 measured; {calls['large']} large and {calls['small']} small calls outside the budget"
    )
    assert lines["audited gain"].endswith(
        f"Spearman {spearman['value']:.2f} ({spearman['low']:.2f} to {spearman['high']:.2f})"
    )
    assert lines["MeanDelta@0.2"].startswith(f"router {audit['mean_delta']['router']['value']:.2f} (")
    assert lines["severe losses"].startswith(f"{audit['severe_loss_rate']['value']:.2f} (")
    assert lines["drift"].startswith(f"PSI {report['drift']['psi']:.3f}, KS {report['drift']['ks']:.3f}")
    assert lines["advice"] == report["advice"][-1]  # the last of several lines
    told = [f"{count} {slug}" for slug, count in report["checks"].items()]
    assert lines["doubtful"] == (", ".join(told) or "none")


def test_a_job_without_them_says_nothing_of_them(printed):
    _, lines = printed()
    assert not {"guard", "guard's cost", "escalated", "verified", "audit", "audited gain"} & lines.keys()


def test_an_audit_of_too_few_rows_has_no_figures(printed):
    _, lines = printed(metric="chrf", audit={"fraction": 0.01, "min_rows": 1, "max_rows": 1})
    assert lines["audit"].startswith("1 row, 1 measured") and "audited gain" not in lines


@pytest.mark.parametrize("columns", ["0", "", "wide"])
def test_without_a_width_nothing_is_cut(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert show.console().width == 1000
