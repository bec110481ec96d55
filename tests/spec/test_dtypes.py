"""`dtype: auto` on machines of several kinds, and that a job keeps what it began with."""

import pytest

from routelmt_batch.errors import OutputError
from routelmt_batch.job import flow
from routelmt_batch.spec import Pool
from routelmt_batch.spec.dtypes import Processors, choose, settle
from routelmt_batch.spec.file import load
from tests.stages.test_guard import BARS

OLD = Processors("node a", None)
NEW = Processors("node b", "avx512_bf16")
H100 = Processors("node c", None, (9.0, 9.0))
T4 = Processors("node d", "amx_bf16", (7.5,))


@pytest.mark.parametrize(
    ("machines", "gpus", "dtype", "why"),
    [
        ([OLD], None, "float32", "the CPU of node a has no bfloat16 instructions"),
        ([NEW], None, "bfloat16", "the CPU has instructions for it"),
        ([NEW, OLD], None, "float32", "the CPU of node a has no bfloat16 instructions"),
        ([OLD, OLD], None, "float32", "the CPU of node a has no bfloat16 instructions, and 1 more"),
        ([OLD, H100], None, "bfloat16", "GPUs compute in it"),
        ([OLD, H100], 0, "float32", "the CPU of node a has no bfloat16 instructions, and 1 more"),
        ([H100, T4], 1, "float32", "node d has a GPU of CUDA capability 7.5"),
        ([T4], 0, "bfloat16", "the CPU has instructions for it"),
        ([OLD], 1, "bfloat16", "current GPUs compute in it (the cluster has no GPU node yet)"),
    ],
)
def test_bfloat16_is_for_machines_that_compute_in_it(machines, gpus, dtype, why):
    assert choose(Pool(source="", gpus=gpus), machines) == (dtype, why)


def test_every_pool_that_says_auto_is_settled_and_the_machines_are_asked_once(make_spec):
    asked = []

    def look():
        asked.append(1)
        return [NEW]

    spec, chosen, choices = settle(load(make_spec(models__large__dtype="float16")), {}, look)
    assert (spec.router.dtype, spec.models.small.dtype, spec.models.large.dtype) == (
        "bfloat16",
        "bfloat16",
        "float16",
    )
    assert chosen == {"router": "bfloat16", "models.small": "bfloat16"}
    assert "router.dtype auto: bfloat16, because the CPU has instructions for it" in map(str, choices)
    assert len(asked) == 1


def test_a_job_that_goes_on_elsewhere_keeps_its_dtype(make_spec, fake_engine, monkeypatch):
    monkeypatch.setattr(flow, "processors", lambda address: [NEW])
    flow.plan(load(make_spec()), flow.Options(), BARS, fake_engine.opened)
    monkeypatch.setattr(flow, "processors", lambda address: [OLD])
    report = flow.run(load(make_spec()), flow.Options(), BARS, fake_engine.opened).report.as_json()
    assert {name: model["dtype"] for name, model in report["models"].items()} == {
        "router": "bfloat16",
        "small": "bfloat16",
        "large": "bfloat16",
    }
    with pytest.raises(OutputError, match=r"router\.dtype: was 'bfloat16', is 'float32'"):
        flow.run(load(make_spec(router__dtype="float32")), flow.Options(), BARS, fake_engine.opened)
