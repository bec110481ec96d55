"""A Ray session: starts Ray, silences it, explains its failures, keeps the engines' logs and cleans up."""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from routelmt_batch.engines import logs
from routelmt_batch.engines.process import EngineBroken
from routelmt_batch.engines.reaper import Reaper
from routelmt_batch.engines.roll import RESTARTS
from routelmt_batch.errors import EngineError, RoutelmtError, UsageError
from routelmt_batch.files.disk import DiskLocation, follow_folder, make_folder
from routelmt_batch.files.uris import without_login
from routelmt_batch.interrupts import end_now
from routelmt_batch.spec.storage import shared

# No usage report leaves the machine.
NO_TELEMETRY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
logger = logging.getLogger(__name__)
_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 512 << 20
_WRAPPED = "\nThe above exception was the direct cause of the following exception:\n"


class Session:
    """One Ray session for all passes of a job: a local one, the caller's, or a cluster's.

    Ray starts when a pass first needs it. Until the session ends, what Ray and vLLM print in this
    process goes to `driver.log` in the log folder, unless verbose. `take_signals` sets the job's signal
    handlers again: every `ray.init` replaces that of SIGTERM, even where Ray already runs. `end` ends the
    process with an error; see `give_up`.
    """

    # Reading and writing mostly wait: with a fraction of a CPU each, they run beside engines.
    task_cpus = 0.25

    def __init__(
        self,
        log_folder: Path,
        address: str | None = None,
        verbose: bool = False,
        take_signals: Callable[[], None] = lambda: None,
        end: Callable[[RoutelmtError], None] = end_now,
    ) -> None:
        self.log_folder = log_folder
        self.address = address
        self.verbose = verbose
        self.take_signals = take_signals
        self.end = end
        self.cores = len(os.sched_getaffinity(0))
        self.local = address in (None, "local")
        self._open, self._output = contextlib.ExitStack(), contextlib.ExitStack()
        self._started_at = 0.0
        self._reaper: Reaper | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def start(self) -> None:
        """Start or join Ray, once.

        Raises:
            UsageError: no cluster answers at the address, or a local Ray does not start.
        """
        if self._started_at:
            return
        self._started_at = time.time()
        with contextlib.suppress(OSError):  # a disk for logs that is full, or not there
            DiskLocation(self.log_folder.parent.parent).make_private()  # the output, or a training's
            make_folder(self.log_folder)
        # Before Ray is imported; a local Ray's processes inherit it.
        os.environ.update(NO_TELEMETRY)
        if not self.local:
            _check_answers(self.address or "")
            use_token()
        os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
        if not self.verbose:
            self._open.callback(self._output.close)
            self._output.enter_context(_to_file(self.log_folder / "driver.log"))
        import ray
        from ray.data import DataContext
        from ray.data.context import AutoscalingConfig

        if not ray.is_initialized():
            if self.local:
                self._reaper = Reaper(os.environ)
            self._open.callback(self._stop)
            try:
                self._join()
            except (ConnectionError, ValueError, RuntimeError) as error:
                why = last_line(str(error))
                raise UsageError(
                    f"--address {self.address}: cannot join the Ray cluster ({why}). If it requires a token, "
                    "put the head node's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
                    if not self.local
                    else f"Ray did not start: {why}. Run `routelmt-batch doctor` to find the cause"
                ) from None
        self._open.callback(self.keep_logs)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Each row is a whole batch of requests, and must not wait for others to fill a block.
        context.target_max_block_size = 1
        # A pool grows when all calls of its engines are in use and more batches wait.
        context.autoscaling_config = AutoscalingConfig(actor_pool_util_upscaling_threshold=1.0)
        self.take_signals()

    def _join(self) -> None:
        import ray

        quiet = {"log_to_driver": self.verbose, "logging_level": logging.ERROR}
        if not self.local:
            # Other nodes' processes do not inherit this process's environment.
            variables = shared(os.environ)
            ray.init(
                address=self.address, runtime_env={"env_vars": variables} if variables else None, **quiet
            )
            return
        with _yielding():
            ray.init(
                address="local",
                # An engine holds a CPU while it runs; reading and writing need room beside it.
                num_cpus=self.cores + 2,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )

    def _stop(self) -> None:
        import ray

        if self._reaper:
            self._reaper.look()
        ray.shutdown()
        if self._reaper:
            self._reaper.finish()

    def resource(self, name: str) -> float:
        """How much of a resource the cluster has, as Ray counts it."""
        self.start()
        import ray

        return float(ray.cluster_resources().get(name, 0))

    @contextlib.contextmanager
    def spread(self, work: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Iterator[Any]]:
        """Results of `work` on items, in their order, from tasks on all nodes. A lost node's tasks run again.

        As many are taken ahead as the cluster can run twice over.
        """
        import ray

        options = {"num_cpus": self.task_cpus, "max_retries": -1, "scheduling_strategy": "SPREAD"}
        task = ray.remote(**options)(_outcome)
        left, given = iter(items), ray.put(work)
        running: deque[Any] = deque()

        def results() -> Iterator[Any]:
            most = 2 * max(1, int(self.resource("CPU")))
            running.extend(task.remote(given, item) for item in itertools.islice(left, most))
            while running:
                with self.explaining("job's tasks"):
                    outcome = ray.get(running[0])
                running.popleft()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
                running.extend(task.remote(given, item) for item in itertools.islice(left, 1))

        try:
            yield results()
        finally:
            for waiting in running:
                ray.cancel(waiting, force=True)

    @contextlib.contextmanager
    def explaining(self, label: str) -> Iterator[None]:
        """Turn Ray's errors into errors that an operator can read."""
        try:
            yield
        except Exception as error:
            for cause in _chain(error):
                # Ray's error of a task has its cause's type, too, but a traceback as its message.
                if isinstance(cause, RoutelmtError) and not hasattr(cause, "cause"):
                    raise cause from None
            self.keep_logs()
            raise EngineError(self._engine_message(label, error)) from error

    def give_up(self, error: EngineError, ray_answers: bool) -> None:
        """End this process at once, because Ray hangs, or something that it runs: an orderly end might hang,
        too. It is as safe as SIGKILL, and again the reaper ends the processes of a local Ray."""
        if self.local or ray_answers:
            self.keep_logs()
        self._output.close()
        self.end(
            EngineError(
                f"{error}. The stacks of the driver and of the engines are in {self.log_folder}. Find the "
                "cause there and run the same command again: committed work is kept"
            )
        )

    def _engine_message(self, label: str, error: Exception) -> str:
        words, logged = _last_words(str(error)), logs.faults(self.log_folder, self._started_at)
        faults = logged or [words]
        if "EngineBroken" in str(error):
            faults = [words.removeprefix("routelmt_batch.engines.process."), *logged[-1:]]
        elif "actor is dead" in str(error):
            died = (
                f"its process died {RESTARTS + 1} times, out of memory perhaps; no more restarts are allowed"
            )
            faults = [died, *faults[-1:]]
        shown = "\n".join(f"  {line}" for line in faults[-5:])
        return (
            f"the {label} engine failed:\n{shown}\nIts full log is in {self.log_folder}, unless its node was "
            "lost. Fix the cause and run the same command again: committed work is kept"
        )

    def keep_logs(self) -> None:
        """Copy the engines' logs into the log folder: Ray keeps its own only for the session."""
        import ray

        if not ray.is_initialized():  # else Ray would start, or join a cluster that it finds on this machine
            return
        try:
            if self.local:
                logs.copy(self.log_folder, self._started_at)
            else:
                logs.copy_from_nodes(self.log_folder)
        except Exception as error:  # Ray may be gone, and missing logs must not hide how the job ended
            logger.warning("the engines' logs were not copied: %s", type(error).__name__)


def _outcome(work: Callable[[Any, Any], Any], item: Any) -> Any:
    """A task's result, or its error: Ray would give it the traceback as its message."""
    try:
        return work(item, lambda: None)
    except RoutelmtError as error:
        return error


@contextlib.contextmanager
def _yielding() -> Iterator[None]:
    """Start the block's processes with batch scheduling, so that they do not preempt engines.

    Each of Ray's processes wakes up a hundred times a second. An engine's threads compute in step on all
    cores: when one of them is preempted, the others wait.
    """
    before = os.sched_getscheduler(0)
    with contextlib.suppress(OSError):  # not every container allows it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, before, os.sched_param(0))


def _check_answers(address: str) -> None:
    """Raises UsageError if nothing listens at host:port; Ray itself would try for ten minutes."""
    if "://" in address:
        raise UsageError(
            f"--address {without_login(address)}: is a URL, such as `submit` takes. Give the address of the "
            "cluster itself: HEAD:6379, or `auto` on one of its nodes"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto` is Ray's to resolve
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({error}). Start the cluster or correct the address"
        ) from None


def use_token() -> None:
    """Make Ray send the token that this machine has, if any. Call it before Ray is imported.

    Ray 2.60 starts clusters with token authentication, but its clients send a token only in this mode.
    """
    sources = (os.environ.get("RAY_AUTH_TOKEN_PATH"), str(Path.home() / ".ray" / "auth_token"))
    if os.environ.get("RAY_AUTH_TOKEN") or any(source and Path(source).is_file() for source in sources):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextlib.contextmanager
def _to_file(path: Path) -> Iterator[None]:
    """Send this process's standard output and error to a file, C++ and child processes included."""
    _flush()
    kept = os.dup(1), os.dup(2)
    try:
        file = open(path, "ab")  # noqa: SIM115
        follow_folder(path)
    except OSError as error:  # a full disk; the job needs no log
        logger.warning("%s: cannot be written (%s)", path, error.strerror)
        file = open(os.devnull, "ab")  # noqa: SIM115
    with file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe is gone, or a disk is full
            stream.flush()


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen or not isinstance(item, BaseException):
            continue
        seen.add(id(item))
        yield item
        queue += [item.__cause__, item.__context__, getattr(item, "cause", None)]


def _last_words(text: str) -> str:
    """The line with a worker's exception in the text of Ray's error, which may end with Ray's own advice.

    Only errors of files and of the system, and our own, are quoted: others may contain corpus text.
    """
    own, _, wrapper = text.rpartition(_WRAPPED)
    lines = (own if own and "UserCodeException" in wrapper else text).splitlines()
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return last_line(text)
    line = next((line for line in lines[frames[-1] :] if line and not line[0].isspace()), "no message")
    name = line.partition(":")[0].rpartition(".")[2]
    kind = getattr(builtins, name, None)
    is_safe = isinstance(kind, type) and issubclass(kind, OSError | ImportError | MemoryError)
    return line[:300] if is_safe or name == EngineBroken.__name__ else name


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
