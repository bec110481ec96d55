"""vLLM's arguments are read from its source as vLLM itself has them."""

import json
import subprocess
import sys

import pytest

from routelmt_batch.engines import arguments
from routelmt_batch.engines.arguments import check_engines, engine_arguments
from routelmt_batch.errors import SpecError
from routelmt_batch.spec import Models

FIELDS = (
    "import dataclasses, json, vllm\n"
    "print(json.dumps([field.name for field in dataclasses.fields(vllm.EngineArgs)]))"
)


def models(**engine: object) -> Models:
    return Models.model_validate({"small": {"source": "a/b"}, "large": {"source": "a/c", "engine": engine}})


@pytest.mark.slow
def test_they_are_those_of_engine_args():
    answer = subprocess.run([sys.executable, "-c", FIELDS], capture_output=True, text=True, timeout=120)
    assert list(engine_arguments()) == json.loads(answer.stdout.splitlines()[-1]), answer.stderr


@pytest.mark.parametrize(
    "engine",
    [
        {"gpu_memory_utilization": 0.9, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True},
        {"gpu_memory_utilization": 1, "kv_cache_memory_bytes": None, "quantization": "fp8"},
        {"hf_overrides": {"rope_scaling": None}, "speculative_config": {"method": "ngram"}, "load_format": "dummy"},
    ],
)  # fmt: skip
def test_arguments_of_the_right_type_pass(engine):
    check_engines(models(**engine))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            {"gpu_memory_utilisation": 0.9},
            "vLLM has no such argument; did you mean 'gpu_memory_utilization'?",
        ),
        ({"max_num_seq": 4}, "models.large.engine.max_num_seq: vLLM has no such argument"),
        ({"enforce_eager": 1}, "models.large.engine.enforce_eager: 1: vLLM takes a value of type bool here"),
        ({"block_size": "16"}, "'16': vLLM takes a value of type int or None here"),
        ({"gpu_memory_utilization": [0.9]}, "vLLM takes a value of type float here"),
    ],
)
def test_what_vllm_would_refuse_is_told(engine, message):
    with pytest.raises(SpecError) as error:
        check_engines(models(**engine))
    assert message in str(error.value)


def test_without_vllm_here_nothing_is_checked(monkeypatch):
    monkeypatch.setattr(arguments, "engine_arguments", dict)
    check_engines(models(nonsense=1))
