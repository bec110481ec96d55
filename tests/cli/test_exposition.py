"""Prometheus metrics of a job while it runs, read by the client library's own parser."""

import itertools
import json
import socket
import time
from decimal import Decimal
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from routelmt_batch.cli.exposition import JobCollector, serve
from routelmt_batch.cli.options import host_and_port
from routelmt_batch.job import flow
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests.cli.test_ending import last_line, two_rows_fail
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine
from tests.learning.test_evaluate import table

pytestmark = pytest.mark.usefixtures("no_page")


def scraped(port: int) -> dict:
    """Samples by name and labels."""
    with urlopen(f"http://localhost:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


class Watched(FakeEngine):
    """Is scraped after each part that was committed."""

    port = 0

    def run(self, lanes, tell):
        self.seen = self.__dict__.get("seen", [])
        for receipt in super().run(lanes, tell):
            yield receipt
            self.seen.append(scraped(self.port))


@pytest.fixture
def watched(make_spec, tmp_path):
    """A job with two failing rows: what was scraped of it, in order, and at last, when it was done."""
    engine = Watched(tmp_path / "sent.log", two_rows_fail)
    spec = load(make_spec(run__max_failed_fraction=0.5))
    bars = Bars.none()
    collector = JobCollector("run", bars)
    told = []
    bars.say = lambda message, level="info", **fields: told.append(fields)
    with serve("127.0.0.1", 0, collector):
        engine.port = told[0]["metrics_port"]
        engine.seen = [scraped(engine.port)]
        collector.begin(spec.name, spec.output.uri)
        flow.run(spec, flow.Options(), bars, engine.opened)
        engine.seen.append(scraped(engine.port))
    with pytest.raises(URLError):
        scraped(engine.port)
    return engine.seen


def test_a_scrape_before_the_job_is_known_has_what_there_is(watched):
    assert watched[0]["routelmt_job_info", "run", "", ""] == 1
    assert 0 <= time.time() - watched[0]["routelmt_start_time_seconds",] < 60


def test_rows_are_counted_while_they_are_done(watched, tmp_path):
    scores = [
        seen["routelmt_rows_done_total", "score"] for seen in watched if ("routelmt_rows", "score") in seen
    ]
    assert scores[:9] == [8, 16, 24, 32, 40, 48, 56, 64, 71], "parts of eight rows"
    assert watched[1]["routelmt_rows", "score"] == 71
    assert watched[1]["routelmt_stage_running", "score"] == 1
    assert watched[1]["routelmt_job_info", "run", "test", str(tmp_path / "out")] == 1
    assert ("routelmt_budget_places",) not in watched[1], "there is no plan yet"
    for seen, later in itertools.pairwise(watched):
        counters = {key for key in seen if key[0].endswith("_total")}
        assert all(later[key] >= seen[key] for key in counters), "a counter never falls"


def test_a_done_job_has_what_its_report_says(watched, tmp_path):
    last = watched[-1]
    report = json.loads((tmp_path / "out/reports/job.json").read_text())
    assert last["routelmt_rows_done_total", "assemble"] == report["rows"] == 71
    assert last["routelmt_stage_running", "assemble"] == 0
    assert last["routelmt_shards_done_total", "read input"] == 4
    assert last["routelmt_budget_places",] == last["routelmt_budget_places_planned",] == 19
    assert last["routelmt_budget_places_used",] == report["budget"]["used"]
    # The small model also tried what the large one failed on; it answers to what the large one does not.
    sent = (tmp_path / "sent.log").read_text().splitlines()
    rows = {
        label: len({line for line in sent if line.startswith(f"{label} ")}) for label in ("large", "small")
    }
    for model, tried in rows.items():
        assert last["routelmt_model_rows_total", model] == tried
        assert last["routelmt_output_tokens_total", model] == report["tokens"][model]["out"]
    assert last["routelmt_model_rows_total", "router"] == 71
    failed = {key[1:]: value for key, value in last.items() if key[0] == "routelmt_rows_failed_total"}
    assert failed["small", "engine_error"] == report["status"]["failed"] == 2
    assert last["routelmt_prompt_tokens_total", "router"] > 0


def test_an_evaluation_has_its_progress_and_no_job_s_counts(tmp_path):
    out, bars, told = tmp_path / "eval", Bars.none(), []
    bars.say = lambda message, level="info", **fields: told.append(fields)
    collector = JobCollector("evaluate", bars)
    collector.begin("eval", str(out))
    settings = Settings(Decimal("0.3"), (f"length={MODELS / 'small'}",), resamples=20)
    with serve("127.0.0.1", 0, collector):
        engine = FakeEngine(tmp_path / "sent.log")
        evaluate([str(table(tmp_path / "labels.parquet"))], settings, out, bars, engine.opened)
        found = scraped(next(fields["metrics_port"] for fields in told if "metrics_port" in fields))
    assert found["routelmt_job_info", "evaluate", "eval", str(out)] == 1
    assert found["routelmt_rows_done_total", "score length"] == found["routelmt_rows", "score length"] == 300
    assert found["routelmt_resamples_done_total", "bootstrap"] == 20
    assert not {name for name, *_ in found if name.startswith(("routelmt_model", "routelmt_budget"))}


def test_without_its_port_a_job_runs_and_warns(invoke, make_spec):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = invoke("run", make_spec(), "--metrics-port", port)
    assert answer.exit_code == 0
    assert f"warning: --metrics-port 127.0.0.1:{port}: cannot listen there" in answer.stderr


@pytest.mark.parametrize(
    ("given", "host"),
    [("0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "0.0.0.0"), ("[::1]:0", "[::1]")],
)
def test_a_free_port_is_told(invoke, make_spec, given, host):
    answer = invoke("run", make_spec(), "--metrics-port", given)
    assert answer.exit_code == 0 and f"metrics: http://{host}:" in answer.stderr


def test_only_this_machine_is_answered_unless_told_otherwise():
    others = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    for given, answers in (("0", False), ("0.0.0.0:0", True)):
        told: list[int] = []
        bars = Bars.none()
        bars.say = lambda message, level="info", told=told, **fields: told.append(fields["metrics_port"])
        with serve(*host_and_port(given), JobCollector("", bars)):
            for address in others:
                with socket.socket() as asking:
                    asking.settimeout(5)
                    assert (asking.connect_ex((address, told[0])) == 0) is answers, address


@pytest.mark.parametrize("given", ["", "port", ":9090", "localhost:", "localhost:http", "65536", "-1", "1.5"])
def test_a_port_that_is_none_is_refused(invoke, make_spec, tmp_path, given):
    answer = invoke("run", make_spec(), f"--metrics-port={given}")
    assert answer.exit_code == 2
    assert (
        f"--metrics-port {given}: give a port from 0 to 65535, or HOST:PORT" in last_line(answer)["message"]
    )
    assert not (tmp_path / "sent.log").exists()
