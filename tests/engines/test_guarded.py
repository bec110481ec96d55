"""The guarded demo on a few of its rows: real vLLM, the shipped COMET, every decision recomputed."""

import math
from collections import Counter
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests import oracle
from tests.conftest import DEMO, MODELS, comets

pytestmark = pytest.mark.engine
BARS = Bars(Console(quiet=True), quiet=True)
Key = tuple[str, int]


def committed(folder, stage: str) -> list[dict]:
    return [line for part in oracle.committed(folder, stage) for line in pq.read_table(part).to_pylist()]


def texts(lines: list[dict], route: str) -> dict[Key, str]:
    return {
        (line["shard"], line["row"]): line["translation"]
        for line in lines
        if line["route"] == route and line["status"] == "ok"
    }


def test_the_guarded_demo_keeps_its_budget_and_says_what_it_did(tmp_path, open_engine):
    out = tmp_path / "out"
    settings = (
        "audit.min_rows=12",
        "guard.escalate_fraction=0.05",
        "guard.keep_small_above=45",
        "input.fold=off",
    )
    spec = load(DEMO / "guarded.yaml", settings, output_uri=str(out))
    report = flow.run(spec, flow.Options(limit=90), BARS, open_engine).report.as_json()
    rows: dict[Key, dict] = {}
    for path in sorted((out / "data").rglob("*.parquet")):
        shard, table = path.relative_to(out / "data").as_posix(), pq.read_table(path)
        before = pq.read_table(DEMO / "input" / shard)
        assert table.select(before.column_names).equals(before.slice(0, table.num_rows)), "every row once"
        rows |= {(shard, index): line for index, line in enumerate(table.to_pylist())}
    assert len(rows) == report["rows"] == 90 and set(report["status"]) >= {"ok", "failed"}

    gains = {key: line["gain"] for key, line in oracle.scores(out).items() if line["gain"] is not None}
    order = sorted(gains, key=lambda key: (-gains[key], key[0].encode(), key[1]))
    places, held_back = (math.floor(Decimal(share) * len(gains)) for share in ("0.3", "0.05"))
    routed = places - held_back
    candidates = order[: 2 * routed]
    lines = committed(out, "translations")
    small, large = texts(lines, "small"), texts(lines, "large")
    scores = comets(MODELS / "comet", [{"src": rows[key]["source"], "mt": small[key]} for key in candidates])
    good = {
        key
        for key, score in zip(candidates, scores["scores"], strict=True)
        if 100 * score > spec.guard.keep_small_above
    }
    called = [key for key in candidates if key not in good][:routed]
    escalated = {key for key, row in rows.items() if row["reason"] == "escalated"}
    assert good & set(order[:routed]), "the check tells a guarded job from another"
    assert set(large) == set(called) | escalated and len(large) <= places
    assert {key for key, row in rows.items() if row["route"] == "large"} == set(large)
    assert all(row["translation"] == (large.get(key) or small.get(key)) for key, row in rows.items())

    guard = report["guard"]
    assert guard["metric"]["name"] == "comet:comet" and guard["calls"] == {"large": len(large)}
    assert guard["kept_small"] == len(set(order[:routed]) - set(called))
    assert guard["freed_places_taken"] == len(set(called) - set(order[:routed]))
    assert (guard["held_back"], guard["escalated"]) == (held_back, len(escalated))
    assert guard["extra_small_translations"] == len(set(small) & set(large))

    audit = report["audit"]
    (sample,) = (out / "_job" / "audit").glob("*.parquet")
    drawn = {(line["shard"], line["row"]) for line in pq.read_table(sample).to_pylist()}
    assert audit["sampled"] == audit["rows"] == len(drawn) == max(12, math.ceil(0.25 * len(gains)))
    asked = Counter(line["route"] for line in committed(out, "audit_translations"))
    assert audit["calls"] == {route: asked[route] for route in ("large", "small")}
    assert audit["calls"] == {"large": len(drawn - set(large)), "small": len(drawn - set(small))}
    assert -1 <= audit["spearman"]["value"] <= 1 and report["drift"]["rows"] == len(gains)
