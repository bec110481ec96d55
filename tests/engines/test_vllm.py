"""Real Ray, real vLLM, the demo's models: scores and translations against transformers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from routelmt_batch.engines.lanes import Lane
from routelmt_batch.errors import EngineError, UsageError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import TRANSLATIONS
from routelmt_batch.spec import Translator
from routelmt_batch.spec.file import load
from routelmt_batch.store.folder import Folder
from tests import oracle
from tests.conftest import DEMO, MODELS
from tests.engines.given import ALL, Given, keep_results, requests

pytestmark = pytest.mark.engine
BARS = Bars(Console(quiet=True), quiet=True)
NAMES = {"en": "English", "de": "German", "zh": "Chinese"}


def prompt(row: dict) -> str:
    source, target = NAMES[row["source_lang"]], NAMES[row["target_lang"]]
    return f"Translate the following text from {source} into {target}:\n{source}: {row['source']}\n{target}:"


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ray_session) -> Path:
    """The demo job, run once in float32 for comparison with transformers."""
    import contextlib

    from routelmt_batch.engines.pools import Pools
    from routelmt_batch.engines.session import Session

    output = tmp_path_factory.mktemp("demo") / "out"
    settings = [f"{pool}.dtype=float32" for pool in ("models.small", "models.large", "router")]
    spec = load(DEMO / "job.yaml", settings, output_uri=str(output))

    @contextlib.contextmanager
    def opened(folder: Folder):
        with Session(folder.logs.path, verbose=True) as session:
            yield Pools(session)

    outcome = flow.run(spec, flow.Options(), BARS, opened)
    assert outcome.report.as_json()["status"]["ok"] >= 260
    return output


@pytest.fixture(scope="module")
def rows(demo) -> list[dict]:
    """Input and output columns of every translated row, with shard and row."""
    found = []
    for path in sorted((demo / "data").rglob("*.parquet")):
        for index, line in enumerate(pq.read_table(path).to_pylist()):
            if line["status"] != "skipped":
                found.append({**line, "shard": path.relative_to(demo / "data").as_posix(), "row": index})
    return found


def test_the_demo_keeps_every_contract(demo):
    rows = oracle.check(demo, DEMO / "input", "0.3")
    assert len(rows) == 272
    assert {row["reason"] for row in rows.values() if row["status"] == "skipped"} == {
        "empty",
        "null",
        "too_long",
        "unknown_language",
    }


def test_the_routers_gains_are_transformers_gains(rows):
    """The golden check: 100 rows and more, within tolerance and in rank."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "router")
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "router", dtype=torch.float32)
    expected = []
    scale = json.loads((MODELS / "router" / "routelmt.json").read_text())["scale"]
    with torch.no_grad():
        for row in rows:
            score = model(**tokenizer(prompt(row), return_tensors="pt")).logits
            expected.append(scale["mean"] + scale["std"] * float(score[0, 0]))
    assert len(rows) >= 100
    found = [row["predicted_gain"] for row in rows]
    np.testing.assert_allclose(found, expected, atol=scale["std"] * 1e-4)
    assert spearmanr(found, expected).statistic > 0.9999


def test_prompt_tokens_are_the_tokenizers(demo, rows):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "router")
    scored, call = oracle.scores(demo), oracle.calls(demo, DEMO / "input")
    for row in rows:
        assert scored[call[row["shard"], row["row"]][0]]["prompt_tokens"] == len(
            tokenizer(prompt(row))["input_ids"]
        )


@pytest.mark.parametrize("route", ["small", "large"])
def test_translations_are_transformers_greedy_ones(rows, route):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / route)
    model = AutoModelForCausalLM.from_pretrained(MODELS / route, dtype=torch.float32)
    some = [row for row in rows if row["route"] == route][:40]
    same = 0
    for row in some:
        ids = tokenizer(prompt(row), return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=96, do_sample=False)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(output, skip_special_tokens=True).strip()
        same += (text, len(output)) == (row["translation"], row["output_tokens"])
    # Greedy outputs can part ways where two tokens are all but equal; that is not promised away.
    assert same >= 0.95 * len(some)


def test_the_report_times_each_pass_and_names_what_ran(demo):
    report = json.loads((demo / "reports/job.json").read_text())
    passes = {line["name"]: line for line in report["passes"]}
    assert list(passes) == [
        "fold",
        "score",
        "allocate",
        "large+small",
        "check small+large",
        "copy to folded rows",
        "assemble",
    ]
    for name in ("score", "large+small"):
        assert 0 < passes[name]["engine_start_seconds"] <= passes[name]["seconds"]
    assert report["versions"]["ray"].startswith("2.60")
    assert len(report["models"]["router"]["weights"]) == 64


def lane(tmp_path: Path, rows: pa.Table, **settings) -> Lane:
    pool = Translator(
        source=str(MODELS / "small"),
        dtype="float32",
        max_model_len_tokens=256,
        max_output_tokens=64,
        engine={"kv_cache_memory_bytes": 64 << 20},
    )
    defaults = {
        "part_rows": 4,
        "stage": TRANSLATIONS,
        "prompter": Prompter(pool.source),
        "limit_tokens": 192,
        "retries": 2,
        "max_output_tokens": 64,
        "end_tokens": (1,),
    }
    return Lane("small", pool, [Given(rows)], ALL, keep_results(tmp_path), **(defaults | settings))


def test_a_row_that_the_engine_refuses_fails_alone(tmp_path, open_engine):
    # Longer than the model reads, and the lane lets it through.
    texts = ["I like tea.", "far too long " * 100, "", "I like tea.", None]
    rows = requests({2: "empty", 4: "null"}, source=texts)
    with open_engine(Folder.at(str(tmp_path))) as engine:
        receipts = list(engine.run([lane(tmp_path, rows, limit_tokens=10_000)]))
    assert sorted(receipt.part for receipt in receipts) == [1, 4]
    assert {receipt.lane for receipt in receipts} == {"small"}
    results = [
        line for path in sorted(tmp_path.glob("*.parquet")) for line in pq.read_table(path).to_pylist()
    ]
    assert [(line["row"], line["skip"], line["error"]) for line in results] == [
        (0, "", ""),
        (1, "", "engine_error"),
        (2, "empty", ""),
        (3, "", ""),
        (4, "null", ""),
    ]
    assert results[0]["text"] == results[3]["text"] and results[0]["text"].strip()
    assert not results[0]["truncated"]
    assert "far too long" not in "".join(
        log.read_text(errors="replace") for log in (tmp_path / "_job/logs").glob("*")
    ), "corpus text stays out of logs"


def test_an_empty_output_is_an_error_after_its_retries(tmp_path, open_engine):
    everything_ends = tuple(range(2, 8192))
    rows = requests(source=["Hello"])
    with open_engine(Folder.at(str(tmp_path))) as engine:
        list(engine.run([lane(tmp_path, rows, end_tokens=everything_ends)]))
    (result,) = pq.read_table(tmp_path / "0.parquet").to_pylist()
    assert (result["error"], result["text"]) == ("empty_output", None)


def test_a_pool_that_does_not_fit_is_refused_at_once(make_spec, open_engine):
    with pytest.raises(UsageError, match=r"GPUs needed: router 1; this machine has 0"):
        flow.run(load(make_spec(router__gpus=1)), flow.Options(), BARS, open_engine)


def test_an_engine_that_does_not_start_says_why_in_its_own_words(make_spec, open_engine, tmp_path):
    spec = load(
        make_spec(
            router__kind="random", models__small__engine={"kv_cache_memory_bytes": 1000}, budget__fraction=0
        )
    )
    with pytest.raises(EngineError) as error:
        flow.run(spec, flow.Options(), BARS, open_engine)
    message = str(error.value)
    assert "the small engine failed" in message and "No available memory for the cache blocks" in message
    assert "ray.exceptions" not in message and "Traceback" not in message
    assert len(message.splitlines()) <= 8
    assert list((tmp_path / "out/_job/logs").glob("engine-*")), "its whole log is kept"
