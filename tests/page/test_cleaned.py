"""What audits read is the same after `clean`: page, excerpts of both models, comparison."""

import pyarrow.parquet as pq

from routelmt_batch.job.clean import clean
from routelmt_batch.page.comparison import compare
from routelmt_batch.page.page import render
from routelmt_batch.progress import Bars
from routelmt_batch.rows import AUDIT_TRANSLATIONS, TRANSLATIONS
from routelmt_batch.spec import Page
from routelmt_batch.stages.finished import FinishedJob


def test_page_and_comparison_are_the_same(finished):
    def read() -> tuple[str, dict]:
        job = FinishedJob.read(finished.folder)
        comparison = compare(job, job, 5)
        return render(job, Page(rows=60), comparison), comparison

    before = read()
    assert "large of" in before[0] and "small of" in before[0]
    size = sum(path.stat().st_size for path in finished.folder.work.path.rglob("*.parquet"))
    cleaned = clean(finished.folder, Bars.none())
    assert {line.stage for line in cleaned.removed} >= {"scores", "translations", "quality"}
    left = sum(path.stat().st_size for path in finished.folder.work.path.rglob("*.parquet"))
    assert cleaned.freed_bytes == size - left and cleaned.kept_bytes > 0
    assert read() == before


def test_only_translations_that_stand_in_no_output_row_are_kept(finished):
    """The guard verifies: both models translated each routed row."""
    ledger = finished.folder.ledger()
    made = {
        (line["shard"], line["row"], line["route"])
        for entry in ledger.parts(TRANSLATIONS)
        for line in pq.read_table(ledger.part_path(entry).path).to_pylist()
        if line["status"] == "ok"
    }
    standing = {
        (shard, row, route)
        for shard in finished.shards
        for row, route in enumerate(pq.read_table(finished.folder.data(shard).path)["route"].to_pylist())
    }
    audit = [entry.part for entry in ledger.parts(AUDIT_TRANSLATIONS)]
    clean(finished.folder, Bars.none())
    ledger = finished.folder.ledger()
    files = {path.name for path in (finished.folder.work / TRANSLATIONS.name).path.iterdir()}
    assert files == {entry.part for entry in ledger.parts(TRANSLATIONS)}
    kept = [
        (line["shard"], line["row"], line["route"])
        for entry in ledger.parts(TRANSLATIONS)
        for line in pq.read_table(ledger.part_path(entry).path).to_pylist()
    ]
    assert sorted(kept) == sorted(made - standing) and kept
    assert [entry.part for entry in ledger.parts(AUDIT_TRANSLATIONS)] == audit
    assert ledger.rows(TRANSLATIONS) == sum(
        ledger.rows(TRANSLATIONS, model) for model in ("small", "large")
    ), "what was committed is counted once"
