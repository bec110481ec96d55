"""An independent reader of a job's output: pyarrow, json and a full sort, nothing of the package."""

import hashlib
import json
import math
import struct
from decimal import Decimal
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq

OURS = {
    "translation": pa.string(),
    "route": pa.string(),
    "planned_route": pa.string(),
    "predicted_gain": pa.float32(),
    "status": pa.string(),
    "reason": pa.string(),
    "output_tokens": pa.int32(),
}
SCORES = {
    "shard": pa.string(),
    "row": pa.int64(),
    "gain": pa.float32(),
    "prompt_tokens": pa.int32(),
    "direction": pa.int16(),
    "reason": pa.string(),
}
SCHEMAS = Path(__file__).parent.parent / "docs/pages"
STATUSES = {"ok", "fallback", "failed", "quarantined", "skipped"}


def log(output: Path) -> list[dict]:
    """The records of a job's log, in order; fails if a segment is damaged or does not follow from the others."""
    records, previous, epoch = [], "", 0
    for number, path in enumerate(sorted((output / "_job/log").glob("[0-9]" * 10 + ".jsonl"))):
        *lines, last = path.read_bytes().splitlines(keepends=True)
        digest = hashlib.sha256(b"".join(lines)).hexdigest()
        header = json.loads(lines[0])
        assert json.loads(last) == {"sha256": digest}, f"{path} is not what was written"
        assert path.name == f"{number:010d}.jsonl" and header["previous"] == previous, path
        assert header["epoch"] >= epoch, f"{path}: of a writer that was replaced"
        previous, epoch = digest, header["epoch"]
        records += map(json.loads, lines[1:])
    return records


def committed(output: Path, stage: str) -> list[Path]:
    return [output / "_job" / stage / entry["part"] for entry in log(output) if entry.get("stage") == stage]


def digests(output: Path) -> dict[str, str]:
    """Every committed part's hash."""
    paths = [output / "_job" / part["stage"] / part["part"] for part in log(output) if "part" in part]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def scores(output: Path) -> dict[tuple[str, int], dict]:
    """Committed scores by (shard, row); fails if a row is there twice or the types are off."""
    found: dict[tuple[str, int], dict] = {}
    for part in committed(output, "scores"):
        table = pq.read_table(part)
        assert dict(zip(table.schema.names, table.schema.types, strict=True)) == SCORES
        for line in table.to_pylist():
            key = (line["shard"], line["row"])
            assert key not in found, f"{key} is scored twice"
            found[key] = line
    return found


def top(scored: dict[tuple[str, int], dict], fraction: str) -> set[tuple[str, int]]:
    """The routed rows, by sorting everything."""
    gains = {key: line["gain"] for key, line in scored.items() if line["gain"] is not None}
    gains = {key: gain for key, gain in gains.items() if not math.isnan(gain)}
    places = math.floor(Decimal(fraction) * len(gains))
    order = sorted(gains, key=lambda key: (-gains[key], key[0].encode(), key[1]))
    return set(order[:places])


def check_report(output: Path, kind: str) -> None:
    """Check `reports/job.json` of a job or of labels by its JSON Schema in the docs."""
    schema = json.loads((SCHEMAS / f"{kind}-report.schema.json").read_text(encoding="utf8"))
    jsonschema.validate(json.loads((output / "reports/job.json").read_text()), schema)


def check(output: Path, corpus: Path, fraction: str) -> dict[tuple[str, int], dict]:
    """Check a finished job against its input; give its rows by (shard, row)."""
    scored = scores(output)
    routed = top(scored, fraction)
    check_report(output, "job")
    success = json.loads((output / "_SUCCESS").read_text())
    named = {shard["shard"]: shard for shard in success["shards"]}
    rows: dict[tuple[str, int], dict] = {}
    for path in sorted(corpus.rglob("*.parquet")):
        shard = path.relative_to(corpus).as_posix()
        before, written = pq.read_table(path), output / "data" / shard
        after = pq.read_table(written)
        assert after.select(before.column_names).equals(before), shard
        added = after.select(after.column_names[before.num_columns :])
        assert dict(zip(added.schema.names, added.schema.types, strict=True)) == OURS
        data = written.read_bytes()
        assert named[shard]["sha256"] == hashlib.sha256(data).hexdigest()
        assert (named[shard]["bytes"], named[shard]["rows"]) == (len(data), before.num_rows)
        counted: dict[str, int] = {}
        for index, line in enumerate(added.to_pylist()):
            key = (shard, index)
            _check_row(key, line, scored[key], key in routed)
            counted[line["status"]] = counted.get(line["status"], 0) + 1
            rows[key] = line
        report = json.loads((output / "reports" / f"{shard}.json").read_text())
        assert (report["rows"], report["status"]) == (before.num_rows, counted)
    assert set(rows) == set(scored)
    job = json.loads((output / "reports" / "job.json").read_text())
    assert job["budget"]["planned"] == len(routed)
    assert sum(job["status"].values()) == job["rows"] == len(rows)
    return rows


def _check_row(key: tuple[str, int], line: dict, score: dict, routed: bool) -> None:
    gains = [line["predicted_gain"], score["gain"]]
    bits = [gain if gain is None else struct.pack("<f", gain) for gain in gains]
    assert bits[0] == bits[1], key
    assert line["status"] in STATUSES, key
    if line["status"] == "skipped":
        assert line["reason"] in {"empty", "null", "unknown_language", "too_long"}, key
        assert line["route"] is line["planned_route"] is line["translation"] is line["predicted_gain"] is None
        return
    assert line["planned_route"] == ("large" if routed else "small"), key
    translated = line["status"] in {"ok", "fallback"}
    assert (line["translation"] is not None) == translated == (line["route"] is not None), key
    if translated:
        assert line["translation"] == line["translation"].strip() != "", key
        assert (line["route"] != line["planned_route"]) == (line["status"] == "fallback"), key
