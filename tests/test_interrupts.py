"""A time limit: how it is given, that it stops a job as a signal does, and that the job goes on."""

import itertools
import json
import multiprocessing
import os
import sys
import time

import pytest

from routelmt_batch import interrupts
from routelmt_batch.cli import main
from routelmt_batch.errors import UsageError
from routelmt_batch.job import flow
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.mark.parametrize(
    ("duration", "wanted"),
    [("6h", 21600), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1h0m1s", 3601), ("100h", 360_000)],
)
def test_a_duration_is_read(duration, wanted):
    assert interrupts.seconds(duration) == wanted


@pytest.mark.parametrize(
    "duration", ["90", "", "0s", "0h0m", "1.5h", "30m1h", "1 h", "-1s", "6H", "9999999h"]
)
def test_what_is_no_duration_is_told(duration):
    with pytest.raises(UsageError, match=f"--time-limit {duration}: give hours, minutes or seconds"):
        interrupts.seconds(duration)


class Stuck(FakeEngine):
    """Stands still when three parts are committed."""

    def run(self, lanes, tell):
        yield from itertools.islice(super().run(lanes, tell), 3)
        time.sleep(60)


def limited(arguments, folder, log):
    """A command in a child of its own, whose alarm is no other test's; its exit code."""

    def child():
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        flow.ray_engine = lambda folder, options: Stuck(log).opened(folder)
        sys.argv = ["routelmt-batch", *arguments]
        try:
            main.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.slow
def test_a_job_stops_at_its_time_limit_and_goes_on(invoke, make_spec, corpus, tmp_path):
    spec, log = make_spec(), tmp_path / "sent.log"
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))  # the child has them, however busy the machine
    assert limited(["run", str(spec), "--time-limit", "4s"], tmp_path, log) == 124
    assert (
        "stopped by --time-limit. Run the same command again to continue."
        in (tmp_path / "stderr").read_text()
    )
    line = json.loads((tmp_path / "stdout").read_text().splitlines()[-1])
    assert (line["status"], line["exit_code"], line["job"]) == ("stopped", 124, "test")
    committed = set(log.read_text().splitlines())
    assert len(committed) == 24, "it stopped in the midst of scoring"
    log.unlink()
    assert invoke("run", spec).exit_code == 0
    oracle.check(tmp_path / "out", corpus, "0.3")
    assert not committed & set(log.read_text().splitlines()), "no committed row is sent again"


def test_what_ends_in_time_is_not_stopped(invoke, make_spec, monkeypatch):
    assert invoke("run", make_spec(), "--time-limit", "60s").exit_code == 0
    assert invoke("run", make_spec(), "--time-limit", "90").exit_code == 2
