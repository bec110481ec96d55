"""A client of a Ray cluster's job server, over HTTP, with readable errors. It knows no spec."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from routelmt_batch.engines.session import NO_TELEMETRY, last_line, use_token
from routelmt_batch.errors import RoutelmtError, UsageError
from routelmt_batch.submission.submissions import Submission

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# The variables that Ray's own client reads, in its order.
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_ANSWER_S = 10.0
# The system's error inside a long message of requests.
_FAULT = re.compile(r"\[Errno -?\d+\] [\w ]+|timed out")
_POLL_S = 0.5
_RETRY_S = 5.0
_LAST_TRIES = 3  # to read the log of a job that has ended
_PATIENCE_S = 300.0  # give up a connection that is lost for longer


class Cluster:
    """The submissions of this tool on the cluster whose dashboard is at a URL.

    Every method raises UsageError if nothing answers there or the token is missing or wrong, and
    RoutelmtError for any other error of the job server.
    """

    def __init__(self, url: str) -> None:
        """Set Ray's environment variables, which Ray reads when it is first imported.

        Raises:
            UsageError: the text is not a URL.
        """
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(
                f"--address {url}: give the URL of the cluster's dashboard, such as http://HEAD:8265"
            )
        os.environ.update(NO_TELEMETRY)
        os.environ[VARIABLES[0]] = self.url  # Ray's client prefers this to its argument
        use_token()

    def submissions(self) -> list[Submission]:
        """All submissions of this tool, newest first."""
        with self._readable_errors():
            ours = [job for job in map(Submission.read, self._client.list_jobs()) if job]
        return sorted(ours, key=lambda job: (job.started is None, job.started), reverse=True)

    def latest(self, output: str) -> Submission | None:
        """The latest attempt at an output."""
        return _last_attempt(self.submissions(), output)

    def find(self, name: str, output: str) -> Submission:
        """A submission by its id `name`, or the latest attempt at an output.

        Raises:
            UsageError: neither exists.
        """
        submissions = self.submissions()
        named = next((job for job in submissions if job.id == name), None)
        found = named or _last_attempt(submissions, output)
        if not found:
            raise UsageError(
                f"{name}: neither a submission's id nor the output of one ({output}). `list` shows the "
                "submissions on this cluster; they are lost when its head restarts"
            )
        return found

    def get(self, submission_id: str) -> Submission:
        """The current state of one of this tool's submissions."""
        with self._readable_errors():
            found = Submission.read(self._client.get_job_info(submission_id))
        assert found
        return found

    def submit(self, submission_id: str, entrypoint: str, **settings: Any) -> None:
        """Submit a job; `settings` are runtime_env and metadata as in ray.job_submission."""
        with self._readable_errors():
            self._client.submit_job(submission_id=submission_id, entrypoint=entrypoint, **settings)

    def stop(self, submission: Submission) -> Submission:
        """Stop a job, and wait until it has stopped."""
        with self._readable_errors():
            self._client.stop_job(submission.id)
        while (submission := self.get(submission.id)).live:
            time.sleep(_POLL_S)
        return submission

    def log(self, submission: Submission) -> str:
        with self._readable_errors():
            return str(self._client.get_job_logs(submission.id))

    def follow(self, submission: Submission, write: Callable[[str], None]) -> tuple[Submission, bool]:
        """Write a job's log from its beginning until the job ends. A lost connection is opened again.

        Returns:
            The submission as it ended, and whether its log was read to the end.

        Raises:
            OSError: what `write` raises.
        """
        written = 0

        async def tail() -> OSError | None:
            """Return an error of `write`; if raised, it would look like a connection error."""
            nonlocal written
            position = 0
            async for text in self._client.tail_job_logs(submission.id):
                try:
                    write(text[max(written - position, 0) :])
                except OSError as error:
                    return error
                position += len(text)
                written = max(written, position)
            return None

        tries = _LAST_TRIES
        while True:
            live, whole, fault = submission.live, False, None
            with contextlib.suppress(RoutelmtError), self._readable_errors():
                fault = asyncio.run(tail())
                whole = True
            if fault:
                raise fault
            if not live:  # so the job had ended before this read of its log
                tries -= 1
                if whole or not tries:
                    return submission, whole
            time.sleep(_POLL_S if live else _RETRY_S)
            submission = self._patiently(submission.id)

    def _patiently(self, submission_id: str) -> Submission:
        """Like get, but retries for some minutes before it raises RoutelmtError."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.get(submission_id)
            except RoutelmtError as error:
                if time.monotonic() > deadline:
                    raise RoutelmtError(
                        f"{error}. The job may still be running; check with `status {submission_id}`"
                    ) from None
                time.sleep(_RETRY_S)

    @cached_property
    def _client(self) -> JobSubmissionClient:
        import requests
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # uploads and closed connections are not worth a line
        requests.get(f"{self.url}/api/version", timeout=_ANSWER_S)  # Ray's client would wait for minutes
        try:
            return JobSubmissionClient(self.url)
        except (ValueError, KeyError, RuntimeError, requests.HTTPError) as error:
            raise self._no_dashboard(last_line(str(error))) from None

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn errors of Ray's client into messages that an operator can act on."""
        import aiohttp
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UsageError(f"--address {self.url}: {_token_words(str(error))}") from None
        except (OSError, aiohttp.ClientError) as error:  # requests' errors, too
            fault = _FAULT.search(str(error))
            raise self._no_dashboard(fault.group() if fault else type(error).__name__) from None
        except (RuntimeError, ValueError) as error:
            raise RoutelmtError(f"{self.url}: {last_line(str(error))}") from None

    def _no_dashboard(self, why: str) -> UsageError:
        return UsageError(
            f"--address {self.url}: no Ray dashboard answers there ({why}). Its port is 8265 unless `ray "
            "start --dashboard-port` set another. The head needs ray[default]. Forward the port of a pod"
        )


def _last_attempt(submissions: Iterable[Submission], output: str) -> Submission | None:
    attempts = (job for job in submissions if job.output == output)
    return max(attempts, key=lambda job: job.attempt, default=None)


def _token_words(error: str) -> str:
    sources = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
    fault = "the cluster requires a token, and none is set here"
    if error.startswith("Authentication failed"):
        fault = "the cluster rejected the token that is set here"
    return f"{fault}. Run `ray get-auth-token` on the head and put its token into {sources}"
