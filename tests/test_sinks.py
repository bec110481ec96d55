"""A job whose log, standard output or page cannot be written still does its work, and ends with its own code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from routelmt_batch.engines.session import _to_file
from routelmt_batch.progress import Bars
from routelmt_batch.sinks import Sink
from tests import oracle
from tests.conftest import REPOSITORY, sampled

# The command with a made-up engine; a session's log is opened as with a real one.
RUN = """
import sys
from contextlib import contextmanager
from pathlib import Path
from routelmt_batch.cli.main import main
from routelmt_batch.engines.session import _to_file
from routelmt_batch.files.write import kept_folder
from routelmt_batch.job import flow
from tests.fake_engine import FakeEngine

@contextmanager
def engine(folder, options):
    with kept_folder(folder.logs) as logs, _to_file(logs / "driver.log"):
        for number in range(3000):
            print("a line of a library", number)
            print("another", number, file=sys.stderr)
        yield FakeEngine(Path(sys.argv[-1]).with_name("sent.log"))

flow.ray_engine = engine
flow._draw_page = lambda *arguments: None  # it takes half of the time
main()
"""


def run(spec: Path, redirections: str) -> int:
    command = f'exec "$0" -c "$RUN" run {redirections} "$@"'
    arguments = ["bash", "-c", command, sys.executable, str(spec)]
    variables = {**os.environ, "RUN": RUN, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(arguments, env=variables, timeout=120).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirections",
    sampled(
        [
            "<&- >&- 2>&-",
            "2>&-",
            ">/dev/full 2>/dev/full --log-format json",
            "2>/dev/full",
            "2> >(true) > >(true)",
        ],
        every=2,
    ),
)
def test_a_job_without_standard_streams_is_done(make_spec, corpus, tmp_path, redirections):
    assert run(make_spec(), redirections) == 0
    oracle.check(tmp_path / "out", corpus, "0.3")


@pytest.mark.slow
def test_a_full_disk_under_the_logs_ends_nothing(make_spec, corpus, tmp_path):
    logs = tmp_path / "out/_job/logs"
    logs.mkdir(parents=True)
    (logs / "driver.log").symlink_to("/dev/full")
    assert run(make_spec(), "2>/dev/null") == 0
    oracle.check(tmp_path / "out", corpus, "0.3")


@pytest.mark.slow
def test_logs_that_cannot_be_created_end_nothing(make_spec, corpus, tmp_path):
    work = tmp_path / "out/_job"
    work.mkdir(parents=True)
    (work / "logs").symlink_to(tmp_path / "lost/disk")
    assert run(make_spec(), "2>/dev/null") == 0
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_log_keeps_what_was_written_before_its_disk_was_full(tmp_path, capfd):
    log = tmp_path / "driver.log"
    with _to_file(log):
        os.write(2, b"kept\n")
    assert log.read_text() == "kept\n"
    os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"


@pytest.mark.parametrize("path", ["/dev/full", "a pipe without a reader"])
def test_a_sink_drops_what_cannot_be_written(path):
    if path == "/dev/full":
        descriptor = os.open(path, os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    sink = Sink(descriptor, owned=True)
    assert sink.write("a line\n" * 5000) == 35_000
    print("another", file=sink, flush=True)
    Bars(Console(file=sink)).warn("a warning")
    sink.close()


def test_a_sink_writes_each_line_at_once_and_what_a_terminal_cannot_show(tmp_path):
    path = tmp_path / "log"
    sink = Sink(os.open(path, os.O_WRONLY | os.O_CREAT), owned=True)
    print("größer \udcff", file=sink)
    assert path.read_text() == "größer \\udcff\n"
    sink.close()
