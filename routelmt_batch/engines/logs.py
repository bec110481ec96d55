"""Copies the engines' logs from their nodes to the job's folder, and finds the errors in them."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from routelmt_batch.files.disk import follow_folder

logger = logging.getLogger(__name__)
# The package's actors, as Ray names them at the start of their logs.
_OUR_ACTORS = (b"EngineActor", b"RayTrainWorker")
# A log line with an error: the last line of a Python traceback.
_FAULT = re.compile(r"[\w.]*(?:Error|Exception)\b: ")
_PREFIX = "engine-"
_PATIENCE_S = 30.0


def copy(folder: Path, since: float = 0.0, job: str = "*", node: str = "") -> None:
    """Copy this node's logs of the engines of `job` (Ray's id) that were written to after `since`.

    A copy is named after its process, and after `node` if that is given.
    """
    import ray

    here = ray._private.worker._global_node
    if here is None:
        return
    for log in Path(here.get_logs_dir_path()).glob(f"worker-*-{job}-*"):
        with contextlib.suppress(OSError):
            if log.suffix in (".out", ".err") and log.stat().st_mtime >= since and _is_ours(log):
                process = "-".join(filter(None, (node, log.stem.rpartition("-")[2])))
                follow_folder(Path(shutil.copy2(log, folder / f"{_PREFIX}{process}{log.suffix}")))


def copy_from_nodes(folder: Path) -> None:
    """Copy this job's logs from every live node into a folder that all of them share."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    job = ray.get_runtime_context().get_job_id()
    task = ray.remote(num_cpus=0, max_retries=0)(copy)
    copies = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            folder, job=job, node=node["NodeManagerAddress"]
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    done, missing = ray.wait(copies, num_returns=len(copies), timeout=_PATIENCE_S)
    for finished in done:
        try:
            ray.get(finished)
        except Exception as error:  # the node may be gone or lack the folder: the job needs no logs
            logger.warning("a node's logs were not copied: %s", type(error).__name__)
    if missing:
        logger.warning("the logs of %d nodes were not copied in time", len(missing))


def faults(folder: Path, since: float) -> list[str]:
    """The error lines of the newest copied log that has any, without their log prefixes."""
    for log in sorted(_copied(folder, since), key=lambda log: log.stat().st_mtime, reverse=True):
        errors: list[str] = []
        for line in log.read_text(errors="replace").splitlines():
            line = re.sub(r"^\([\w ]+pid=\d+\) ", "", line)
            line = re.sub(r"^(?:ERROR|INFO|WARNING) [\d-]+ [\d:]+ \[[^\]]*\] ", "", line).strip()
            # EngineDeadError only means that something else went wrong.
            if _FAULT.match(line) and "EngineDeadError" not in line and line not in errors:
                errors.append(line[:300])
        if errors:
            return errors
    return []


def _copied(folder: Path, since: float) -> Iterator[Path]:
    return (log for log in folder.glob(f"{_PREFIX}*") if log.stat().st_mtime >= since)


def _is_ours(log: Path) -> bool:
    with open(log, "rb") as file:
        head = file.read(4096)
    return any(name in head for name in _OUR_ACTORS)
