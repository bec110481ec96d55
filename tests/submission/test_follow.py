"""A job's log, followed over a connection that breaks. The connection is made up; test_cluster.py has a real one."""

import os
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobDetails

from routelmt_batch.errors import RoutelmtError
from routelmt_batch.submission import cluster as module
from routelmt_batch.submission.cluster import Cluster
from routelmt_batch.submission.submissions import Submission
from tests.submission.test_submissions import details

LOG = ["read input\n", "score: 4 rows\n", "Grüße\n", "report\n"]


class Breaking:
    """Gives two more lines of the log with each connection, then breaks; the job ends with the log."""

    def __init__(self) -> None:
        self.connections = 0

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        self.connections += 1
        yield "".join(LOG[: 2 * self.connections - 1])
        if self.connections > 2:
            return
        yield LOG[2 * self.connections - 1]
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, submission_id: str) -> JobDetails:
        if self.connections == 1:
            return details("RUNNING")
        return details("FAILED", driver_exit_code=3)


@pytest.fixture
def connected(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # a cluster sets Ray's variables
    monkeypatch.setattr(module, "_RETRY_S", 0.0)

    def connect(client: object) -> Cluster:
        found = Cluster("http://head:8265")
        found.__dict__["_client"] = client
        return found

    return connect


def test_a_log_is_shown_once_over_connections_that_break(connected):
    shown: list[str] = []
    running = Submission.read(details("RUNNING"))
    ended, whole = connected(Breaking()).follow(running, shown.append)
    assert "".join(shown) == "".join(LOG)
    assert ended.exit_code == 3 and whole


def test_an_ended_job_whose_log_breaks_off_ends_as_it_did(connected):
    class Torn(Breaking):
        async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
            self.connections += 1
            yield LOG[0]
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

        def get_job_info(self, submission_id: str) -> JobDetails:
            return details("FAILED", driver_exit_code=3)

    client, shown = Torn(), []
    ended, whole = connected(client).follow(
        Submission.read(details("FAILED", driver_exit_code=3)), shown.append
    )
    assert (ended.exit_code, whole, shown[0]) == (3, False, LOG[0])
    assert "".join(shown) == LOG[0] and client.connections == 3


def test_a_reader_that_has_left_ends_it(connected):
    def write(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    client = Breaking()
    with pytest.raises(BrokenPipeError):
        connected(client).follow(Submission.read(details("RUNNING")), write)
    assert client.connections == 1


def test_a_head_that_is_gone_is_given_up_in_the_end(connected, monkeypatch):
    class Gone(Breaking):
        def get_job_info(self, submission_id: str) -> JobDetails:
            raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    with pytest.raises(
        RoutelmtError, match="The job may still be running; check with `status routelmt-1`"
    ) as caught:
        connected(Gone()).follow(Submission.read(details("RUNNING")), lambda text: None)
    assert caught.value.exit_code == 1
