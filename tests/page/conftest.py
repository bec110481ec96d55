"""Finished jobs for the tests of the page: one on a made-up engine, one of ten thousand copied shards."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.shard_list import write_list
from tests.conftest import COLUMNS, write_shard
from tests.fake_engine import FakeEngine

BARS = Bars(Console(quiet=True), quiet=True)
SCRIPT = "</script><script>window.ran = true</script><img src=x onerror='window.ran = true'>"
KILLER = 58  # of sub/c
ODD_NAME = "<b>odd & 'quoted'#1%.parquet"


def run(spec: Path, engine: FakeEngine, **options) -> FinishedJob:
    """A job by the made-up engine, to its end."""
    loaded = load(spec)
    flow.run(loaded, flow.Options(**options), BARS, engine.opened)
    return FinishedJob.read(Folder.at(loaded.output.uri))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards in two directions, each with a row that holds a script; an odd name; some rows empty."""
    root = tmp_path / "corpus"
    for place, name in enumerate(("a.parquet", "b.parquet", "sub/c.parquet", ODD_NAME)):
        texts = [f"Sentence {place} {i * i}." if i % 13 else None for i in range(60)]
        texts[1] = f"Hello {SCRIPT} {place}"
        targets = ["de" if i % 4 else "zh" for i in range(60)]
        write_shard(
            root / name,
            texts,
            17,
            to=pa.array(targets),
            reference=pa.array([f"large of {i}" for i in range(60)]),
        )
    return root


@pytest.fixture
def audited(make_spec, corpus, tmp_path):
    """Writes a spec with guard and audit over the corpus."""

    def write(**settings):
        return make_spec(
            input={"uri": str(corpus), "columns": COLUMNS | {"reference": "reference"}},
            **{
                "metric": "chrf",
                "audit": {"fraction": 0.2, "min_rows": 20},
                "guard": {"verify": True},
                "run__max_failed_fraction": 0.5,
                **settings,
            },
        )

    return write


@pytest.fixture
def engine(tmp_path) -> FakeEngine:
    """It fails on every third row of sub/c, by both models; one of them kills it."""

    def fails(label, row):
        if row["shard"] != "sub/c.parquet" or row["row"] % 3 != 1 or label not in ("small", "large"):
            return ""
        return "engine_killed" if row["row"] == KILLER else "engine_error"

    return FakeEngine(tmp_path / "sent.log", fails)


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def finished(kept, audited, engine, tmp_path) -> FinishedJob:
    """A finished job; run once, copied for each test."""
    if not kept.exists():
        shutil.copytree(run(audited(), engine).folder.root, kept)
    return FinishedJob.read(Folder.at(str(shutil.copytree(kept, tmp_path / "finished"))))


@pytest.fixture
def ten_thousand(finished) -> FinishedJob:
    """The finished job, made to be of 10,000 shards: the first one's report and data, again and again."""
    folder, names = finished.folder, [f"part-{place:05}.parquet" for place in range(10_000)]
    report = finished.shard_report("a.parquet")
    manifest = folder.read_manifest()
    shard = next(shard for shard in folder.read_shards(manifest) if shard.name == "a.parquet")
    for place, name in enumerate(names):
        large = place % 7
        counts = {"large": large, "small": report["rows_with_gain"] - large}
        copy = {**report, "shard": name, "route": counts, "rows": report["rows"] + place}
        folder.report(name).path.write_text(json.dumps(copy))
        if place < finished.spec.page.shards:
            shutil.copy(folder.data("a.parquet"), folder.data(name))
    listed = write_list(folder.shard_lists, [replace(shard, name=name) for name in names], 1)
    folder.manifest.path.write_text(json.dumps(manifest | {"shards": listed}))
    return FinishedJob.read(folder)
