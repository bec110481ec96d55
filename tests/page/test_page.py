"""The page's HTML: escaping, numbers, what keeps text out of it, when it is written."""

import html.parser
import json
import re

import pytest

from routelmt_batch.page import page as page_module
from routelmt_batch.page.page import render
from routelmt_batch.spec import Page
from tests.page.conftest import ODD_NAME, SCRIPT, run

pytestmark = pytest.mark.slow


class Document(html.parser.HTMLParser):
    """Tags, text and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif not self.inside and data.strip():
            self.words.append(" ".join(data.split()))


def data_of(text: str) -> dict:
    return json.loads(Document(text).scripts[0])


def test_text_with_a_script_is_data_and_never_markup(finished):
    text = render(finished, Page(rows=1000))
    document = Document(text)
    assert [dict(attrs).get("type") for tag, attrs in document.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not [tag for tag, attrs in document.tags if tag == "img" or "onerror" in attrs]
    assert SCRIPT not in text and ODD_NAME not in text
    rows = data_of(text)["excerpts"]["a.parquet"]["rows"]
    assert rows["1"]["source"] == f"Hello {SCRIPT} 0", "shown as it is"
    assert ODD_NAME in data_of(text)["shards"]["name"]


def test_nothing_is_loaded_from_anywhere(finished):
    text = render(finished, finished.spec.page)
    for tag, attrs in Document(text).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attrs.get(name, "#").startswith("#"), (tag, attrs)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_numbers_are_those_of_the_report(finished):
    text = render(finished, finished.spec.page)
    words, report = Document(text).words, json.loads(finished.folder.job_report.read_text())
    expected = [
        f"{report['rows']:,}",
        f"{report['budget']['used']:,} of {report['budget']['rows_with_gain']:,} rows with a gain",
        f"{100 * report['fraction']['actual']:.1f}%",
        f"{report['threshold']:,.2f}",
        f"{report['predicted_gain_bought']:,.1f}",
        f"{report['audit']['mean_delta']['router']['value']:,.2f}",
        *(f"{count:,}" for count in report["status"].values()),
        *(f"{line['predicted_gain']:,.1f}" for line in report["budgets"]),
        *(f"{part['rows']:,}" for part in report["direction"].values()),
    ]
    assert not [number for number in expected if number not in words]
    shards = data_of(text)["shards"]
    for place, name in enumerate(shards["name"]):
        own = json.loads(finished.folder.report(name).read_text())
        assert (shards["rows"][place], shards["large"][place], shards["gain"][place]) == (
            own["rows"],
            own["route"].get("large", 0),
            own["gain"]["all"]["mean"],
        )


def test_the_curve_goes_through_the_plan(finished):
    """At the job's own budget the curve and the plan are the same rows."""
    line = next(line for line in finished.report.as_json()["budgets"] if line["fraction"] == "0.3")
    assert line["rows"] == finished.report.as_json()["budget"]["planned"]
    assert line["threshold"] == finished.report.as_json()["threshold"]
    assert line["predicted_gain"] == pytest.approx(finished.report.as_json()["predicted_gain_planned"])


def test_every_reason_of_the_report_is_told_what_failed_first(finished):
    section = (
        render(finished, finished.spec.page).partition('<section id="reasons"')[2].partition("</section>")[0]
    )
    lines = re.findall(
        r'<th scope="row">(\w+)</th><td><span [^>]*>(\w+)</span></td><td class="n">(\d+)</td>', section
    )
    told = {reason: (kind, int(rows)) for reason, kind, rows in lines}
    assert {reason: rows for reason, (_, rows) in told.items()} == finished.report.as_json()["reason"]
    assert told["engine_killed"] == ("quarantined", 1) and told["engine_error"][0] == "failed"
    kinds = [kind for kind, _ in told.values()]
    assert kinds == sorted(kinds, key=["failed", "quarantined", "fallback", "translated", "skipped"].index)


@pytest.mark.parametrize("settings", [Page(rows=0), Page(shards=0)])
def test_corpus_text_stays_out_if_told_so(finished, settings):
    text = render(finished, settings)
    assert data_of(text)["excerpts"] == {}
    assert "Sentence" not in text and "large of" not in text and "Hello" not in text


def test_the_page_has_the_rows_that_the_spec_asks_for(audited, engine):
    job = run(audited(page={"rows": 2, "shards": 3}), engine)
    excerpts = data_of(job.folder.page.read_text())["excerpts"]
    assert len(excerpts) == 3
    assert all(len(found["gained"]) == len(found["cut"]) == 2 for found in excerpts.values())
    assert next(iter(excerpts)) == "sub/c.parquet", "which stands out"


def test_the_same_job_gives_the_same_page(finished):
    assert finished.folder.page.read_text() == render(finished, finished.spec.page)


def test_a_page_that_cannot_be_drawn_does_not_fail_the_job(audited, engine, monkeypatch, capsys):
    from rich.console import Console

    from routelmt_batch.job import flow
    from routelmt_batch.progress import Bars
    from routelmt_batch.spec.file import load

    def broken(report):
        raise RuntimeError("Sentence 1 is a secret")

    monkeypatch.setattr(page_module.charts, "budget_curve", broken)
    spec = load(audited())
    outcome = flow.run(spec, flow.Options(), Bars(Console(width=500)), engine.opened)
    assert outcome.new and flow.Folder.at(spec.output.uri).is_finished()
    told = capsys.readouterr().out
    assert "the audit page was not written (RuntimeError)" in told and "secret" not in told


@pytest.mark.parametrize(
    "settings",
    [
        {"budget__fraction": "0"},
        {"budget__fraction": "1"},
        {"budget__threshold": 0.5, "budget__cap": "0.2"},
        {"audit": {}, "guard": {}, "metric": None},
    ],
)
def test_every_kind_of_job_has_a_page(audited, engine, settings):
    job = run(audited(**{"guard": {}, **settings}), engine)
    assert data_of(job.folder.page.read_text())["shards"]["name"] == list(job.shards)


def test_a_job_without_any_gain_has_a_page(audited, corpus, engine):
    from tests.conftest import write_shard

    for path in corpus.rglob("*.parquet"):
        write_shard(path, ["", None])
    job = run(audited(audit={}, guard={}, metric=None, run__max_skipped_fraction=1), engine)
    assert "No row has a gain." in job.folder.page.read_text()
