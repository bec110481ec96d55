"""Prometheus metrics of a running job, over HTTP, from what it tells and what its ledger holds.

The ledger is read at each scrape, from where the last one ended: the job itself does nothing for it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from routelmt_batch.errors import UsageError
from routelmt_batch.progress import Bars
from routelmt_batch.rows import AUDIT_TRANSLATIONS, LARGE, NO_GAIN, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.ledger import Ledger


class JobCollector(Collector):
    """A running job's metrics. `begin` says which job, once that is known."""

    def __init__(self, command: str, bars: Bars) -> None:
        self.command = command
        self.bars = bars
        self.started = time.time()
        self.name = ""
        self.folder: Folder | None = None
        self._ledger: Ledger | None = None
        self._one_scrape = threading.Lock()  # the server answers each in a thread of its own

    def begin(self, name: str, output: str) -> None:
        self.name, self.folder = name, Folder(Path(output))

    def collect(self) -> Iterator[Metric]:
        with self._one_scrape:
            output = str(self.folder.root) if self.folder else ""
            yield InfoMetricFamily(
                "routelmt_job", "The job.", {"job": self.name, "command": self.command, "output": output}
            )
            yield GaugeMetricFamily(
                "routelmt_start_time_seconds", "When this process began, since 1970.", self.started
            )
            yield CounterMetricFamily("routelmt_warnings", "Warnings told.", self.bars.warnings)
            yield from self._passes()
            if self.folder and self.folder.manifest.exists():
                self._ledger = self._ledger or self.folder.ledger()
                self._ledger.catch_up()
                yield from _rows_and_tokens(self._ledger)
                yield from _budget(self.folder, self._ledger)

    def _passes(self) -> Iterator[Metric]:
        """Rows, input shards and training steps: done, those of earlier runs included, and to do in all."""
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
            whole = GaugeMetricFamily(
                f"routelmt_{unit}", f"{unit.capitalize()} that a stage has in all.", labels=["stage"]
            )
            for stage, state in passes.items():
                if state.unit == unit:
                    done.add_metric([stage], state.done)
                    whole.add_metric([stage], state.total)
            yield done
            yield whole


def _rows_and_tokens(ledger: Ledger) -> Iterator[Metric]:
    """By model, what is committed; of translations those of an audit, too."""
    rows = CounterMetricFamily("routelmt_model_rows", "Rows that a model was asked for.", labels=["model"])
    failed = CounterMetricFamily(
        "routelmt_rows_failed", "Rows that a model has no answer to.", labels=["model", "reason"]
    )
    tokens = {
        name: CounterMetricFamily(f"routelmt_{name}", told, labels=["model"])
        for name, told in (
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
        found = ledger.totals(TRANSLATIONS, model)
        found.add(ledger.totals(AUDIT_TRANSLATIONS, model))
        rows.add_metric([model], found.rows)
        for name, family in tokens.items():
            family.add_metric([model], found.sums[name])
        for reason, count in sorted(found.unanswered.items()):
            failed.add_metric([model, reason], count)
    yield from (rows, failed, *tokens.values())


def _budget(folder: Folder, ledger: Ledger) -> Iterator[Metric]:
    """Places for the large model, once there is a plan."""
    if not folder.plan.exists():
        return
    plan = json.loads(folder.plan.read_text(encoding="utf8"))
    used = ledger.totals(TRANSLATIONS, LARGE).answered
    for name, told, count in (
        ("places", "Rows that the budget lets the large model have.", plan["places"] + plan["held_back"]),
        ("places_planned", "Of those, planned for it.", plan["large"]),
        ("places_used", "Rows that it translated.", used),
    ):
        yield GaugeMetricFamily(f"routelmt_budget_{name}", told, count)


@contextlib.contextmanager
def serve(port: int, collector: JobCollector) -> Iterator[None]:
    """Serve the metrics on all interfaces, as exporters do, as long as this lasts; port 0 is a free one.

    Raises:
        UsageError: the port is taken, or may not be opened.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, registry=registry)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--metrics-port {port}: cannot be listened on ({error}); give another, or 0 for a free one"
        ) from None
    collector.bars.say(
        f"metrics: http://localhost:{server.server_port}/metrics", metrics_port=server.server_port
    )
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
