"""The quality environment: COMET's own Python, found and checked before anything runs in it.

unbabel-comet cannot be installed beside vLLM. The processes of COMET's engines run in this environment's
Python instead.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelmt_batch import __version__
from routelmt_batch.errors import UsageError

VARIABLE = "ROUTELMT_QUALITY_PYTHON"
_DEFAULT = Path(".venv-quality", "bin", "python")
_TIMEOUT_S = 60.0  # importing COMET takes 5 seconds, on a busy machine with a cold disk many more
_SETUP = "run `make setup-quality` (docs/pages/install.md)"
# Imports what engines' processes import there, and prints the versions. It runs without the working folder on
# the path (-P): the package must be installed there.
_PROBE = """
import importlib.util, json, sys
from importlib.metadata import version
import comet, pyarrow, routelmt_batch
import routelmt_batch.engines.child, routelmt_batch.metrics.comet
print(json.dumps({
    "Python": "%d.%d" % sys.version_info[:2],
    "routelmt-batch": routelmt_batch.__version__,
    "unbabel-comet": version("unbabel-comet"),
    "sentinel_metric": importlib.util.find_spec("sentinel_metric") is not None,
}))
"""


@dataclass(frozen=True)
class Environment:
    """A quality environment that works."""

    python: str
    comet_version: str
    has_sentinel: bool  # the package sentinel_metric, which is not on PyPI


def python() -> Path:
    """The environment's interpreter: ROUTELMT_QUALITY_PYTHON, or that of `.venv-quality` beside the main
    environment's folder or in the working folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    beside, here = Path(sys.prefix).parent / _DEFAULT, Path.cwd() / _DEFAULT
    return here if here.exists() and not beside.exists() else beside


def check() -> Environment:
    """Check the quality environment of this machine.

    Raises:
        UsageError: see check_at.
    """
    return check_at(python())


@functools.cache
def check_at(path: Path) -> Environment:
    """Check, in a separate process, that an environment has what engines need: a few seconds, once.

    Raises:
        UsageError: it does not exist, does not answer in time, fails to import, or has other versions.
    """
    if not path.exists():
        raise UsageError(f"quality environment {path}: does not exist, but COMET needs it: {_SETUP}")
    theirs = _probe(path)
    ours = {
        "Python": "{}.{}".format(*sys.version_info),
        "routelmt-batch": __version__,
    }
    wrong = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if wrong:
        raise UsageError(
            f"quality environment {path}: has {', '.join(wrong)}. Both environments must match: {_SETUP}"
        )
    return Environment(str(path), theirs["unbabel-comet"], theirs["sentinel_metric"])


def _probe(path: Path) -> dict[str, Any]:
    why = ""
    try:
        answer, errors, code = _run([str(path), "-P", "-c", _PROBE])
        if not code:
            versions: dict[str, Any] = json.loads(answer.splitlines()[-1])
            return versions
        why = (errors.strip().splitlines() or [f"it ended with exit status {code} and no message"])[-1]
    except subprocess.TimeoutExpired:
        why = f"it did not import COMET within {_TIMEOUT_S:g} seconds"
    except (OSError, ValueError, IndexError) as error:
        why = f"it gave no answer ({error})"
    raise UsageError(f"quality environment {path}: does not work: {why}. Repair it, or {_SETUP}")


def _run(command: list[str]) -> tuple[str, str, int]:
    """Run a command; returns output, errors and exit status. If the wait is cut short, its processes are
    killed."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            return *process.communicate(timeout=_TIMEOUT_S), process.returncode
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
