"""A training spec says what is wrong with it, resolves its paths and loads nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from routelmt_batch.errors import SpecError
from routelmt_batch.learning.training.spec import load_train_spec
from tests.learning.training import make_spec


def test_defaults_are_the_papers(tmp_path):
    spec = make_spec(tmp_path)
    assert (spec.lora.rank, spec.lora.alpha, spec.lora.target_modules) == (8, 32, "all-linear")
    assert (spec.kind, spec.method, spec.workers.count) == ("routelmt", "lora", 1)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"target": "gain"}, "routelmt"),
        ({"target": "quality"}, "routelmt-q"),
        ({"base__architecture": "encoder"}, "encoder"),
    ],
)
def test_the_kind_follows_from_base_and_target(tmp_path, settings, kind):
    assert make_spec(tmp_path, **settings).kind == kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training__epoch": 3}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ({"method": "lorra"}, "Input should be 'lora', 'head_only' or 'full'"),
        ({"tables": []}, "tables: "),
        ({"split__validation_fraction": 0}, "validation_fraction must be above 0"),
        ({"split__test_fraction": 0.9}, "must stay below 1: training needs rows"),
        ({"split__test_fraction": 0}, "give test_tables, or a split.test_fraction above 0"),
        ({"workers__count": 3}, "batch_rows 32 must be a multiple of workers.count 3"),
        ({"training__micro_batch_rows": 5}, "x micro_batch_rows 5"),
        (
            {"training__learning_rate": float("inf")},
            "training.learning_rate: 'Infinity': Input should be a finite",
        ),
        ({"training__gradient_norm": float("nan")}, "training.gradient_norm: 'NaN': "),
        ({"lora__alpha": float("inf")}, "lora.alpha: 'Infinity': Input should be a finite number"),
        ({"tables": "labels"}, "tables: 'labels': give a list"),
        ({"prompt__template": "Translate."}, "template must contain {source}"),
        ({"output__uri": "s3://bucket/router"}, "to a disk that its workers share: give a path"),
    ],
)
def test_a_fault_is_named(tmp_path, settings, message):
    with pytest.raises(SpecError) as error:
        make_spec(tmp_path, **settings)
    assert message in str(error.value)


def test_tables_and_base_resolve_beside_the_spec_and_the_output_from_here(tmp_path, monkeypatch):
    (tmp_path / "models" / "small").mkdir(parents=True)
    path = tmp_path / "train.yaml"
    path.write_text(
        "name: t\ntables: [labels]\ntest_tables: [held/*.parquet]\noutput: {uri: out}\nbase: {source: models/small}\n"
    )
    monkeypatch.chdir(tmp_path.parent)
    spec = load_train_spec(path)
    assert spec.tables == [str(tmp_path / "labels")]
    assert spec.test_tables == [str(tmp_path / "held" / "*.parquet")]
    assert spec.base.source == str(tmp_path / "models" / "small")
    assert Path(spec.output.uri) == tmp_path.parent / "out"
    assert load_train_spec(path, ["base.source=org/model"]).base.name == "org/model"
    assert load_train_spec(path, output_uri="/elsewhere").output.uri == "/elsewhere"


def test_neither_torch_nor_ray_is_imported():
    code = (
        "import sys, routelmt_batch.learning.training.train; "
        "print(sorted({'torch', 'ray', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
