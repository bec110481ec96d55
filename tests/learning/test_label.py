"""Label: every row through both models and chrF, on a made-up engine: contracts, reasons, resume."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from sacrebleu.metrics import CHRF

from routelmt_batch.engines import quality
from routelmt_batch.errors import (
    InputChanged,
    InputError,
    ModelError,
    OutputError,
    RoutelmtError,
    SpecError,
    UsageError,
)
from routelmt_batch.job import flow
from routelmt_batch.job.flow import Options
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate
from routelmt_batch.learning.labelling.label import label
from routelmt_batch.learning.training.tables import find_tables, read_rows
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load, load_label
from routelmt_batch.stages import work
from routelmt_batch.store import checkpoints
from tests.conftest import COLUMNS, MODELS, write_shard
from tests.fake_engine import FakeEngine
from tests.learning.training import make_spec
from tests.oracle import check_report

BARS = Bars(Console(quiet=True), quiet=True)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


@pytest.fixture
def spec(tmp_path):
    """Two shards with references: one null source, one null and one blank reference."""
    texts = [f"Sentence number {i}." for i in range(30)]
    texts[2] = None
    references = [f"small of {i}" if i % 2 else "large" for i in range(30)]
    references[4], references[5] = None, " "
    root = tmp_path / "corpus"
    write_shard(root / "a.parquet", texts, row_group_size=7, reference=pa.array(references, pa.string()))
    write_shard(root / "b" / "c.parquet", ["One."], reference=pa.array(["small of 0"]))
    value = {
        "name": "labels",
        "input": {"uri": str(root), "columns": dict(COLUMNS)},
        "output": {"uri": str(tmp_path / "labels")},
        "models": {
            name: {"source": str(MODELS / name), "max_model_len_tokens": 256, "max_output_tokens": 64}
            for name in ("small", "large")
        },
        "run": {"part_rows": 8},
    }
    path = tmp_path / "label.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def run(path, engine, *settings, **options):
    spec = load_label(path, settings)
    outcome = label(spec, Options(**options), BARS, engine.opened)
    check_report(Path(spec.output.uri), "label")
    return outcome


def rows(tmp_path):
    found = {}
    for path in sorted((tmp_path / "labels" / "data").rglob("*.parquet")):
        for line in pq.read_table(path).to_pylist():
            found[path.name, line["id"]] = line
    return found


def test_a_label_table_has_the_input_both_translations_and_sacrebleus_gain(spec, engine, tmp_path):
    outcome = run(spec, engine)
    found = rows(tmp_path)
    assert len(found) == 31
    for (_, row), line in found.items():
        if line["text"] is None or not (line["reference"] or "").strip():
            assert line["gain"] is line["quality_small"] is line["translation_large"] is None
            continue
        assert line["translation_small"] == f"small of {row}"
        qualities = [
            CHRF().sentence_score(line[f"translation_{route}"], [line["reference"]]).score
            for route in ("small", "large")
        ]
        assert [line["quality_small"], line["quality_large"]] == qualities
        assert line["gain"] == qualities[1] - qualities[0]
    report = outcome.report
    assert (report.rows, report.labelled) == (31, 28)
    assert report.unlabelled == {"no_reference": 2, "null": 1}
    lengths = report.lengths["en-de"]
    assert (lengths.rows, lengths.output, lengths.output_squared) == (28, 28 * 5, 28 * 25)
    gains = [line["gain"] for line in found.values() if line["gain"] is not None]
    assert report.overall.gain == pytest.approx(sum(gains) / len(gains))
    assert set(report.direction) == {"en-de"}
    assert (tmp_path / "labels" / "_SUCCESS").exists()


def test_the_input_comes_back_as_it_was_and_the_file_says_what_the_labels_are_of(spec, engine, tmp_path):
    run(spec, engine)
    before = pq.read_table(tmp_path / "corpus" / "a.parquet")
    path = tmp_path / "labels" / "data" / "a.parquet"
    after = pq.read_table(path)
    assert after.select(before.column_names).equals(before)
    assert after.column_names[before.num_columns :] == [
        "translation_small",
        "translation_large",
        "quality_small",
        "quality_large",
        "gain",
        "gain_by_reference",
    ]
    signature = json.loads(pq.read_schema(path).metadata[b"routelmt"])
    assert signature["metric"]["name"] == "chrf" and "version:" in signature["metric"]["signature"]
    for name in ("small", "large"):
        assert signature["models"][name]["weights"] == checkpoints.weights_hash(str(MODELS / name))
    assert signature["generation"]["decoding"] == "greedy"
    assert signature["input"] == {
        "columns": {**COLUMNS, "reference": "reference"},
        "source_lang": None,
        "target_lang": None,
    }


def test_engine_settings_that_change_what_a_model_says_stand_in_the_signature(spec, engine, tmp_path):
    settings = [
        'models.large.engine={"quantization": "fp8", "enforce_eager": true}',
        "models.small.dtype=bfloat16",
        "models.large.dtype=bfloat16",
    ]
    run(spec, engine, *settings, "models.small.max_model_len_tokens=200")
    schema = pq.read_schema(tmp_path / "labels" / "data" / "a.parquet")
    generation = json.loads(schema.metadata[b"routelmt"])["generation"]
    common = {"dtype": "bfloat16", "max_output_tokens": 64}
    assert generation["small"] == {**common, "max_model_len_tokens": 200, "engine": {}}
    assert generation["large"] == {
        **common,
        "max_model_len_tokens": 256,
        "engine": {"quantization": "fp8"},
    }


@pytest.mark.parametrize("constant", [False, True])
def test_the_tables_can_be_learnt_from_and_evaluated_whatever_the_inputs_columns(
    spec, engine, tmp_path, constant
):
    settings = []
    if constant:
        for path in (tmp_path / "corpus").rglob("*.parquet"):
            pq.write_table(pq.read_table(path).drop(["from"]), path)
        settings = ["input.source_lang=en", "input.columns.source_lang=nowhere"]
    run(spec, engine, *settings)
    tables = str(tmp_path / "labels" / "data")
    train_spec = make_spec(tmp_path, tables=[tables])
    learnt = read_rows(train_spec, find_tables(train_spec), BARS).to_pylist()
    expected = [line for line in rows(tmp_path).values() if line["gain"] is not None]
    assert [line["source"] for line in learnt] == [line["text"] for line in expected]
    assert [line["target"] for line in learnt] == pytest.approx([line["gain"] for line in expected], abs=1e-8)
    router = f"length={MODELS / 'small'}"
    found = evaluate([tables], Settings(Decimal("0.3"), (router,)), tmp_path / "out", BARS, engine.opened)
    assert list(found.directions) == ["en-de"] and found.rows == 28
    assert found.routers["length"].overall["mean_delta"].value is not None


def test_a_stopped_labelling_goes_on_and_sends_no_row_twice(spec, engine, tmp_path):
    with engine.stopping(lambda name, row: name == "large" and row["row"] == 20):
        run(spec, engine)
    run(spec, engine)
    sent = engine.log.read_text().splitlines()
    # The part in which it stopped is sent anew, as the process's own memory is lost; no other row.
    again = {line for line in sent if sent.count(line) > 1}
    assert len(again) <= 8
    assert len(rows(tmp_path)) == 31
    count = len(sent)
    assert not run(spec, engine).new
    assert len(engine.log.read_text().splitlines()) == count


def test_a_row_that_one_model_fails_on_has_no_label_and_a_reason(spec, engine, tmp_path):
    engine.fails = lambda name, row: "empty_output" if name == "large" and row["row"] == 7 else ""
    report = run(spec, engine, "run.max_failed_fraction=0.5").report
    line = rows(tmp_path)["a.parquet", 7]
    assert line["translation_small"] == "small of 7" and line["quality_small"] is not None
    assert line["translation_large"] is line["quality_large"] is line["gain"] is None
    assert report.unlabelled["large_empty_output"] == 1


def test_too_many_failures_end_it_and_after_mending_the_same_command_tries_those_rows_again(
    spec, engine, tmp_path
):
    engine.fails = lambda name, row: "engine_error" if name == "large" and row["row"] > 20 else ""
    with pytest.raises(RoutelmtError) as error:
        run(spec, engine)
    assert str(error.value).startswith("large failed on 3 of 31 rows, more than run.max_failed_fraction 0.01")
    assert str(error.value).endswith("fix it, and run the same command again")
    engine.fails = lambda name, row: ""
    assert run(spec, engine).report.labelled == 28
    assert rows(tmp_path)["a.parquet", 23]["translation_large"] == "large of 23"


def test_pools_that_this_machine_can_never_hold_are_refused_before_any_pass(spec, engine, monkeypatch):
    asked = []

    def refuse(together):
        asked.extend(list(pools) for pools in together)
        raise UsageError("never")

    monkeypatch.setattr(engine, "check_fit", refuse)
    with pytest.raises(UsageError, match="never"):
        run(spec, engine)
    assert asked == [["metric"], ["small"], ["large"]]
    asked.clear()
    with pytest.raises(UsageError, match="never"):
        run(spec, engine, "run.pools=concurrent")
    assert asked == [["small", "large"]]
    assert not engine.lanes_together


def test_a_part_is_opened_for_its_own_model_alone(spec, engine, tmp_path, monkeypatch):
    """Translations are opened to count what is to be measured, to find it, to read it, and to assemble."""
    write_shard(tmp_path / "one" / "a.parquet", ["One.", "Two."], reference=pa.array(["One.", "Two."]))
    opened: Counter[str] = Counter()

    def counting(location, sha256):
        opened[location.parent.name, location.name] += 1
        return usual(location, sha256)

    usual = work.read_part
    monkeypatch.setattr("routelmt_batch.stages.work.read_part", counting)
    run(spec, engine, f"input.uri={tmp_path / 'one'}")
    counts = {stage: [n for (of, _), n in opened.items() if of == stage] for stage, _ in opened}
    assert counts == {"translations": [4, 4], "quality": [1, 1]}


def test_what_cannot_be_labelled_is_told_before_anything_starts(spec, engine, tmp_path):
    with pytest.raises(InputError, match=r"no column 'referense' \(input.columns.reference\); did you mean"):
        run(spec, engine, "input.columns.reference=referense")
    with pytest.raises(SpecError, match=r"input.columns: .*give a mapping"):
        run(spec, engine, "input.columns=[text]")
    with pytest.raises(SpecError, match="unknown metric 'bleu': use chrf"):
        run(spec, engine, "metric=bleu")
    with pytest.raises(SpecError, match="a metric runs on one GPU at most: set replicas"):
        run(spec, engine, "metric={source: 'comet:Unbabel/XCOMET-XXL', gpus: 2}")
    with pytest.raises(ModelError, match="metric Unbabel/XCOMET-XXL: .* no such model in the Hugging Face"):
        run(spec, engine, "metric=comet:Unbabel/XCOMET-XXL")
    assert not (tmp_path / "labels").exists()


def test_labels_that_could_be_few_end_before_they_cost(spec, engine, tmp_path):
    """By the codes alone, before anything is sent; else when the small model has had its rows."""
    with pytest.raises(
        InputError, match="30 of 31 rows have a language code that is not among LMT's 60.*'jp' 30 times"
    ):
        write_shard(
            tmp_path / "corpus/a.parquet",
            ["A."] * 30,
            to=pa.array(["jp"] * 30),
            reference=pa.array(["B."] * 30),
        )
        run(spec, engine)
    assert not engine.log.exists()
    write_shard(tmp_path / "corpus/a.parquet", ["A."] * 30, reference=pa.array([None] * 29 + ["B."]))
    with pytest.raises(InputError, match="29 of 31 rows are skipped, .*: 29 no_reference. Correct the input"):
        run(spec, engine)
    report = run(spec, engine, "run.max_skipped_fraction=0.95").report
    assert (report.labelled, report.skipped_rows) == (2, 29)


def test_a_reference_column_without_a_name_is_the_default_one(spec):
    assert load_label(spec, ["input.columns.reference=null"]).input.columns.reference == "reference"


def test_comet_without_its_environment_is_told_before_anything_starts(spec, tmp_path):
    checkpoint = tmp_path / "xcomet"
    (checkpoint / "checkpoints").mkdir(parents=True)
    (checkpoint / "checkpoints" / "model.ckpt").touch()
    (checkpoint / "hparams.yaml").write_text("class_identifier: xcomet_metric")
    command = [sys.executable, "-m", "routelmt_batch", "label", str(spec), "--set", "metric=comet:xcomet"]
    environment = {**os.environ, quality.VARIABLE: "/bin/true"}
    started = time.monotonic()
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 30
    assert answer.returncode == 2
    assert "quality environment /bin/true: does not work" in answer.stderr
    assert "make setup-quality" in answer.stderr
    assert not (tmp_path / "labels").exists()


def test_a_metric_that_reads_no_reference_wants_no_column_of_them(spec):
    narrowed = load_label(spec, ["input.columns.reference=referense"]).without_references()
    assert narrowed.also == () and narrowed.input.columns.source == "text"


def test_a_label_folder_is_not_gone_on_with_after_a_change(spec, engine):
    run(spec, engine, limit=10)
    with pytest.raises(InputChanged, match=r"b/c.parquet: not there before\n.*the same --limit"):
        run(spec, engine)


def test_a_folder_of_labels_is_no_folder_of_a_job(spec, engine, tmp_path):
    """Both commands commit to the stage `translations`, but different rows."""
    labels = run(spec, engine, "run.part_rows=4").report
    value = yaml.safe_load(spec.read_text())
    job = value | {"budget": {"fraction": 0.3}, "router": {"kind": "random"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "labels/_SUCCESS").unlink()
    with pytest.raises(OutputError, match="holds the work of `label`, not of `run`. Give another --output"):
        flow.run(load(tmp_path / "job.yaml", ()), Options(), BARS, engine.opened)
    assert run(spec, engine, "run.part_rows=4").report == labels
