"""Runs Ray Train from the driver: starts it, follows its log, and ends it in every case.

It knows steps and losses, not what is trained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from routelmt_batch import fetched
from routelmt_batch.engines.roll import RESTARTS
from routelmt_batch.engines.session import Session
from routelmt_batch.errors import EngineError, RoutelmtError, UsageError
from routelmt_batch.learning.training.folder import TrainingFolder, step_of
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.progress import Bars

_POLL_S = 0.3
_WORDS = {
    "loss": "loss {:.3f}",
    "validation_loss": "validation loss {:.3f}",
    "validation_spearman": "Spearman {:.3f}",
    "learning_rate": "rate {:.1e}",
}


def fit(spec: TrainSpec, folder: TrainingFolder, steps: int, session: Session, bars: Bars) -> None:
    """Train in `spec.workers` of the session and wait for the end.

    Raises:
        UsageError: this machine has too few CPUs or GPUs for the workers.
        EngineError: a worker failed more often than it is restarted.
    """
    threads = spec.workers.cpus or max(1, session.cores // spec.workers.count)
    _check_fit(spec, threads, session, bars)
    import ray

    # It runs in an actor, because Ray Train's own wait would catch SIGINT and hold back other signals.
    # Ending the actor ends the whole run, also on a cluster that stays up.
    run = ray.remote(num_cpus=0, max_restarts=0)(_Run).remote()
    with session.explaining("training"):
        try:
            folder.sweep()
            before = folder.log.stat().st_size if folder.log.exists() else 0
            last = folder.last_checkpoint()
            first = step_of(last) if last else 0
            config = {
                "spec": spec.model_dump(mode="json"),
                "folder": str(folder.root),
                "threads": threads,
                "models": fetched.copies(spec.base.source),
            }
            done = run.fit.remote(config).future()
            with bars.steps("train", steps, first) as tell:
                _follow(folder.log, before, first, done.done, tell)
            done.result()
        finally:
            ray.kill(run)


def _check_fit(spec: TrainSpec, threads: int, session: Session, bars: Bars) -> None:
    """Compare needed and present resources: Ray would wait for them without a message."""
    for name, each in (("CPU", threads), ("GPU", spec.workers.gpus)):
        needs, has = each * spec.workers.count, session.resource(name)
        if needs <= has:
            continue
        if session.local:
            has = session.cores if name == "CPU" else round(has)  # Ray counts more; see Session
            raise UsageError(
                f"{name}s needed: {needs} for {spec.workers.count} workers; this machine has {has}. Set "
                f"workers.count or workers.{name.lower()}s lower, or give a cluster with --address"
            )
        bars.warn(f"{name}s needed: {needs}; the cluster has {has:g} now, and the training waits for more")


class _Run:
    """Runs Ray Train in a process of its own."""

    def fit(self, config: dict[str, Any]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer

        from routelmt_batch.learning.training.trainer import train_loop

        workers = TrainSpec.model_validate(config["spec"]).workers
        resources = {"CPU": config["threads"]} | ({"GPU": workers.gpus} if workers.gpus else {})
        trainer = TorchTrainer(
            train_loop,
            train_loop_config=config,
            # Ray Train gives a worker as many threads as CPUs. Its default is one.
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(TrainingFolder(Path(config["folder"])).work),
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
            ),
        )
        try:
            fault = trainer.fit().return_value
        except TrainingFailedError as error:
            raise _in_words(error) from None
        if isinstance(fault, RoutelmtError):
            raise fault


def _in_words(error: Exception) -> EngineError:
    """The error of a failed training, with the last line of the first failed worker."""
    failures = getattr(error, "worker_failures", {})
    first = failures[min(failures)] if failures else error
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    shown = lines[-1][:300] if lines else type(first).__name__
    return EngineError(
        f"the training failed {RESTARTS + 1} times:\n  {shown}\nFix the cause and run the same command "
        "again: it continues from the last checkpoint"
    )


def _follow(
    log: Path, offset: int, step: int, is_done: Callable[[], bool], tell: Callable[[int, str], None]
) -> None:
    """Show what is written to the log from byte `offset` on, until the run is done."""
    shown: dict[str, float] = {}
    while True:
        done = is_done()
        for line, end in _lines(log, offset):
            offset = end
            shown |= {name: value for name, value in line.items() if name in _WORDS}
            tell(line["step"] - step, _note(shown))
            step = line["step"]
        if done:
            return
        time.sleep(_POLL_S)


def _lines(log: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, byte where the next one begins) of each whole line from `offset` on."""
    if not log.exists():
        return
    with open(log, "rb") as file:
        file.seek(offset)
        for text in iter(file.readline, b""):
            if not text.endswith(b"\n"):
                return
            yield json.loads(text), file.tell()


def _note(shown: dict[str, float]) -> str:
    return ", ".join(form.format(shown[name]) for name, form in _WORDS.items() if name in shown)
