"""Prometheus metrics of a running job, over HTTP, from its progress and its ledger.

Each scrape reads only the ledger lines that are new since the last one. The job itself does no extra work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from routelmt_batch.progress import Bars
from routelmt_batch.rows import AUDIT_TRANSLATIONS, LARGE, NO_GAIN, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.store.folder import Folder, read_json
from routelmt_batch.store.ledger import Ledger


class JobCollector(Collector):
    """A running job's metrics. `begin` sets the job, which is known once its spec is read."""

    def __init__(self, command: str, bars: Bars) -> None:
        self.command = command
        self.bars = bars
        self.started = time.time()
        self.name = ""
        self.folder: Folder | None = None
        self._ledger: Ledger | None = None
        self._scraping = threading.Lock()  # the server answers each scrape in its own thread

    def begin(self, name: str, output: str) -> None:
        self.name, self.folder = name, Folder.at(output)

    def collect(self) -> Iterator[Metric]:
        with self._scraping:
            output = str(self.folder.root) if self.folder else ""
            yield InfoMetricFamily(
                "routelmt_job", "The job.", {"job": self.name, "command": self.command, "output": output}
            )
            yield GaugeMetricFamily(
                "routelmt_start_time_seconds", "When this process began, in seconds since 1970.", self.started
            )
            yield CounterMetricFamily("routelmt_warnings", "Warnings logged.", self.bars.warnings)
            yield from self._passes()
            if self.folder and self.folder.manifest.exists():
                self._ledger = self._ledger or self.folder.ledger()
                self._ledger.catch_up()
                yield from _rows_and_tokens(self._ledger)
                yield from _budget(self.folder, self._ledger)

    def _passes(self) -> Iterator[Metric]:
        """Rows, input shards and training steps of each stage: done, in earlier runs too, and in total."""
        passes = dict(self.bars.passes)
        running = GaugeMetricFamily(
            "routelmt_stage_running", "1 while the stage is in progress.", labels=["stage"]
        )
        for stage, state in passes.items():
            running.add_metric([stage], state.running)
        yield running
        for unit in dict.fromkeys(state.unit for state in passes.values()):
            done = CounterMetricFamily(
                f"routelmt_{unit}_done", f"{unit.capitalize()} that a stage has done.", labels=["stage"]
            )
            total = GaugeMetricFamily(
                f"routelmt_{unit}", f"{unit.capitalize()} of a stage in total.", labels=["stage"]
            )
            for stage, state in passes.items():
                if state.unit == unit:
                    done.add_metric([stage], state.done)
                    total.add_metric([stage], state.total)
            yield done
            yield total


def _rows_and_tokens(ledger: Ledger) -> Iterator[Metric]:
    """Committed rows and tokens by model, with an audit's translations."""
    rows = CounterMetricFamily("routelmt_model_rows", "Rows that a model was given.", labels=["model"])
    failed = CounterMetricFamily(
        "routelmt_rows_failed", "Rows without an answer from a model.", labels=["model", "reason"]
    )
    tokens = {
        name: CounterMetricFamily(f"routelmt_{name}", description, labels=["model"])
        for name, description in (
            ("prompt_tokens", "Tokens that a model read."),
            ("output_tokens", "Tokens that a model generated."),
        )
    }
    scored = ledger.totals(SCORES)
    if scored.rows:
        rows.add_metric(["router"], scored.rows)
        failed.add_metric(["router", NO_GAIN], scored.failed)
        tokens["prompt_tokens"].add_metric(["router"], scored.sums["prompt_tokens"])
    for model in (SMALL, LARGE):
        totals = ledger.totals(TRANSLATIONS, model)
        totals.add(ledger.totals(AUDIT_TRANSLATIONS, model))
        rows.add_metric([model], totals.rows)
        for name, family in tokens.items():
            family.add_metric([model], totals.sums[name])
        for reason, count in sorted(totals.unanswered.items()):
            failed.add_metric([model, reason], count)
    yield from (rows, failed, *tokens.values())


def _budget(folder: Folder, ledger: Ledger) -> Iterator[Metric]:
    """The budget's places for the large model, once there is a plan."""
    if not folder.plan.exists():
        return
    plan = read_json(folder.plan)
    used = ledger.totals(TRANSLATIONS, LARGE).answered
    for name, description, count in (
        ("places", "Rows that the budget allows the large model.", plan["places"] + plan["held_back"]),
        ("places_planned", "Rows planned for the large model.", plan["large"]),
        ("places_used", "Rows that the large model translated.", used),
    ):
        yield GaugeMetricFamily(f"routelmt_budget_{name}", description, count)


@contextlib.contextmanager
def serve(host: str, port: int, collector: JobCollector) -> Iterator[None]:
    """Serve the metrics while the body runs. Port 0: any free port. If it is taken, or may not be opened, the
    body runs without metrics, with a warning."""
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry=registry)
    except (OSError, UnicodeError) as error:  # a name that cannot be a host's is a UnicodeError
        collector.bars.warn(
            f"--metrics-port {host}:{port}: cannot listen there ({error}), so this run has no metrics. "
            "Give another port, or 0 for any free one"
        )
        yield
        return
    shown = f"[{host}]" if ":" in host else host
    collector.bars.say(
        f"metrics: http://{shown}:{server.server_port}/metrics", metrics_port=server.server_port
    )
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
