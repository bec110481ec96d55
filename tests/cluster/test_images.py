"""The container files: read strictly, what they copy exists, and they install what the Makefile installs."""

import re
from pathlib import Path

import pytest

from routelmt_batch.engines import quality
from tests.cluster.dockerfile import Instruction, environment, parse
from tests.conftest import REPOSITORY

HARDWARE = ["cpu", "gpu"]


def instructions(hardware: str) -> list[Instruction]:
    return parse((REPOSITORY / "cluster" / f"Dockerfile.{hardware}").read_text(encoding="utf8"))


def values(hardware: str, name: str) -> list[str]:
    return [one.value for one in instructions(hardware) if one.name == name]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_what_is_copied_is_there_and_comes_before_its_use(hardware):
    copied: set[str] = set()
    for one in instructions(hardware):
        if one.name == "COPY":
            *sources, target = one.value.split()
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                kept = source.split("/")[:-1]
                assert target in (f"{'/'.join(kept)}/", "./", source), "each file keeps its place"
            copied |= set(sources)
        if one.name == "RUN":
            assert set(re.findall(r" -r (\S+)", one.value)) <= copied
            if re.search(r" \.( |$)", one.value):  # the package itself
                assert {"pyproject.toml", "README.md", "LICENSE", "routelmt_batch"} <= copied


def test_the_build_context_is_what_is_copied():
    """Everything else is kept out of it: environments are gigabytes."""
    everything, *rest = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    let_in = [line.removeprefix("!") for line in rest if line.startswith("!")]
    copied = {
        source for hardware in HARDWARE for value in values(hardware, "COPY") for source in value.split()[:-1]
    }
    assert everything == "*"
    assert {pattern for pattern in let_in if not any(Path(one).match(pattern) for one in copied)} == set()
    assert {one for one in copied if not any(Path(one).match(pattern) for pattern in let_in)} == set()


def installed_by(hardware: str, environment_name: str) -> list[str]:
    commands = (part.strip() for run in values(hardware, "RUN") for part in run.split("&&"))
    pip = f"{environment_name}/bin/pip install "
    found = [command.removeprefix(pip) for command in commands if command.startswith(pip)]
    return [command.replace("${TORCH_PIP_ARGS} ", "") for command in found]


def installed_by_make(variable: str) -> list[str]:
    lines = re.findall(rf"^\t\$\({variable}\) (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return [line.replace("$(TORCH_PIP_ARGS) ", "").replace("-e .", ".") for line in lines]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_both_environments_are_the_makefiles(hardware):
    main = [line.replace("requirements-cpu", f"requirements-{hardware}") for line in installed_by_make("PIP")]
    assert len(main) == 3
    assert installed_by(hardware, ".venv") == main
    assert installed_by(hardware, ".venv-quality") == installed_by_make("QUALITY_PIP")


@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_interpreters_are_where_the_job_looks(hardware, monkeypatch):
    assert values(hardware, "FROM") == ["python:3.11-slim"]
    made = [venv for run in values(hardware, "RUN") for venv in re.findall(r"python3.11 -m venv (\S+)", run)]
    assert made == [".venv", ".venv-quality"]
    home = values(hardware, "WORKDIR")[0]
    found = environment(instructions(hardware))
    assert found["PATH"] == f"{home}/.venv/bin:$PATH"
    monkeypatch.setenv(quality.VARIABLE, found[quality.VARIABLE])
    assert quality.python() == Path(home, ".venv-quality/bin/python")


def test_the_two_differ_in_pins_and_in_what_the_driver_needs():
    cpu, gpu = ([f"{one.name} {one.value}" for one in instructions(hardware)] for hardware in HARDWARE)
    gpu_as_cpu = [line.replace("requirements-gpu", "requirements-cpu") for line in gpu]
    assert [line for line in gpu_as_cpu if line not in cpu] == [
        "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    ]
    assert [line for line in cpu if line not in gpu_as_cpu] == []


@pytest.mark.parametrize("text", ["RUNS x", "FROM", "FROM a\nRUN b \\", "RUN a", "", "FROM a\nrun b"])
def test_a_slip_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)
