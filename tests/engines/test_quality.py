"""The quality environment: what is refused and why, and what actors import in it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from routelmt_batch import __version__
from routelmt_batch.cli import doctor
from routelmt_batch.engines import quality
from routelmt_batch.errors import UsageError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Take a shell script for the environment's Python."""

    def script(text: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv(quality.VARIABLE, str(path))
        return path

    return script


def answer(**versions: object) -> str:
    found = {"Python": "3.11", "routelmt-batch": __version__, "unbabel-comet": "2.2.7"}
    return f"echo '{json.dumps({**found, 'sentinel_metric': False, **versions})}'"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (answer(Python="3.10"), r"has Python 3.10 instead of 3\.1\d\. Both environments must match"),
        ("echo Segmentation >&2; echo fault >&2; exit 1", "does not work: fault"),
        ("exit 3", "it ended with exit status 3 and no message"),
        ("echo no json", "it gave no answer"),
        ("true", "it gave no answer"),
        (f'exec {sys.executable} "$@"', "No module named 'comet'"),
    ],
)
def test_an_environment_that_would_let_a_job_hang_is_refused(use, script, why):
    path = use(script)
    with pytest.raises(UsageError, match=f"quality environment {path}: .*{why}.* `make setup-quality`"):
        quality.check()


def test_one_that_is_not_there_or_no_program_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(quality.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UsageError, match=f"{tmp_path}/none: does not exist, .*: run `make setup-quality`"):
        quality.check()
    monkeypatch.setenv(quality.VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match="Permission denied"):
        quality.check()


def test_one_that_does_not_answer_is_given_up_and_leaves_no_process(use, monkeypatch):
    monkeypatch.setattr(quality, "_TIMEOUT_S", 0.5)
    use("sleep 4711 & wait")
    started = time.monotonic()
    with pytest.raises(UsageError, match="did not import COMET within 0.5 seconds"):
        quality.check()
    assert time.monotonic() - started < 5
    assert not [process for process in psutil.process_iter() if "4711" in _command(process)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_it_is_looked_for_beside_the_main_environment_then_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(quality.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "project" / ".venv"))
    monkeypatch.chdir(tmp_path)
    beside, here = (folder / ".venv-quality/bin/python" for folder in (tmp_path / "project", tmp_path))
    assert quality.python() == beside
    here.parent.mkdir(parents=True)
    here.touch()
    assert quality.python() == here
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert quality.python() == beside


def test_doctor_tells_a_broken_one_from_none(use, tmp_path, monkeypatch):
    use("exit 3")
    broken = doctor._quality()
    assert not broken.fine and "make setup-quality" in broken.next_move
    monkeypatch.setenv(quality.VARIABLE, str(tmp_path / "none"))
    assert doctor._quality().fine


def test_what_actors_import_there_is_there():
    found = quality.check()
    modules = ("engines.child", "engines.lanes", "metrics.comet", "routers.sentinel")
    code = (
        f"import sys, {', '.join(f'routelmt_batch.{name}' for name in modules)}\n"
        "print(sorted({'pydantic', 'vllm', 'torch', 'transformers', 'yaml'} & set(sys.modules)))"
    )
    told = subprocess.run([found.python, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"
    pins = (REPOSITORY / "cluster" / "requirements-quality.txt").read_text().splitlines()
    assert f"unbabel-comet=={found.comet_version}" in pins
    assert "pydantic" not in "".join(pins)
