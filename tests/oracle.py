"""An independent reader of a job's output: pyarrow, json and a full sort, nothing of the package."""

import hashlib
import json
import math
import struct
from collections import Counter
from decimal import Decimal
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Key = tuple[str, int]  # shard, row

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


def parts(output: Path) -> list[dict]:
    """The log's entries of committed parts: one by one, or together with an event."""
    records = log(output)
    return [
        part for record in records for part in ([record] if "part" in record else record.get("parts", []))
    ]


def committed(output: Path, stage: str) -> list[Path]:
    return [output / "_job" / stage / part["part"] for part in parts(output) if part["stage"] == stage]


def digests(output: Path) -> dict[str, str]:
    """Every committed part's hash."""
    paths = [output / "_job" / part["stage"] / part["part"] for part in parts(output)]
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


def calls(output: Path, corpus: Path) -> dict[Key, list[Key]]:
    """The rows of each row's call, in the input's order, by the spec that the job wrote: rows with the same text
    and languages, unless it does not fold."""
    given = yaml.safe_load((output / "_job/spec.yaml").read_text())["input"]
    columns = given["columns"]
    rows: dict[object, list[Key]] = {}
    call: dict[Key, list[Key]] = {}
    for path in sorted(
        corpus.rglob("*.parquet"), key=lambda path: path.relative_to(corpus).as_posix().encode()
    ):
        shard = path.relative_to(corpus).as_posix()
        for row, line in enumerate(pq.read_table(path).to_pylist()):
            text = line[columns["source"]]
            languages = [given[key] or line[columns[key]] for key in ("source_lang", "target_lang")]
            # YAML 1.1, which pyyaml reads, has `off` for false.
            alone = given["fold"] in ("off", False) or not (text and text.strip() and all(languages))
            call[shard, row] = rows.setdefault((shard, row) if alone else (text, *languages), [])
            call[shard, row].append((shard, row))
    return call


def top(scored: dict[Key, dict], fraction: str, call: dict[Key, list[Key]] | None = None) -> set[Key]:
    """The routed rows, by sorting everything; of calls for several rows the first rows, by their total gain as
    float32."""
    gains = {key: line["gain"] for key, line in scored.items() if line["gain"] is not None}
    gains = {key: gain for key, gain in gains.items() if not math.isnan(gain)}
    if call:
        gains = {key: float(np.float32(gain) * np.float32(len(call[key]))) for key, gain in gains.items()}
    places = math.floor(Decimal(fraction) * len(gains))
    order = sorted(gains, key=lambda key: (-gains[key], key[0].encode(), key[1]))
    return set(order[:places])


def check_report(output: Path, kind: str) -> None:
    """Check `reports/job.json` of a job or of labels by its JSON Schema in the docs."""
    schema = json.loads((SCHEMAS / f"{kind}-report.schema.json").read_text(encoding="utf8"))
    jsonschema.validate(json.loads((output / "reports/job.json").read_text()), schema)


def check(output: Path, corpus: Path, fraction: str) -> dict[tuple[str, int], dict]:
    """Check a finished job against its input; give its rows by (shard, row)."""
    scored, call = scores(output), calls(output, corpus)
    routed = top(scored, fraction, call)
    spec = yaml.safe_load((output / "_job/spec.yaml").read_text())
    reuses = bool(spec["reuse"] or spec["translation_memory"])
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
        counted: Counter[str] = Counter()
        followers = 0
        for index, line in enumerate(added.to_pylist()):
            key = (shard, index)
            first = call[key][0]
            _check_row(key, line, scored[first], first in routed, reuses)
            counted[line["status"]] += 1
            followers += key != first
            rows[key] = line
        report = json.loads((output / "reports" / f"{shard}.json").read_text())
        assert (report["rows"], report["status"]) == (before.num_rows, counted)
        assert report["folded_rows"] == followers
    for key, line in rows.items():
        assert line == rows[call[key][0]], "rows of one call have one output"
    assert set(scored) == {same[0] for same in call.values()}
    _check_job(json.loads((output / "reports" / "job.json").read_text()), rows, scored, routed)
    return rows


def _check_job(job: dict, rows: dict[Key, dict], scored: dict[Key, dict], routed: set[Key]) -> None:
    """Check what a job's report says of rows and calls."""
    assert sum(job["status"].values()) == job["rows"] == len(rows) == len(scored) + job["folded_rows"]
    used = Counter(rows[key]["route"] for key in scored)
    assert job["used_calls"] == {route: count for route, count in used.items() if route}
    gains = sorted(line["predicted_gain"] for line in rows.values() if _is_number(line["predicted_gain"]))
    budget = job["budget"]
    assert budget["planned"] == len(routed)
    assert budget["rows_with_gain"] == len(gains)
    assert budget["calls_with_gain"] == sum(_is_number(line["gain"]) for line in scored.values())
    ranks = [math.ceil(len(gains) * tenth / 10) for tenth in range(1, 10)] if gains else []
    deciles = [gains[rank - 1] for rank in ranks]
    assert job["gain"]["all"]["deciles"] == [gain if math.isfinite(gain) else None for gain in deciles]
    planned = [line["predicted_gain"] for line in rows.values() if line["planned_route"] == "large"]
    planned = [gain for gain in planned if math.isfinite(gain)]
    assert math.isclose(job["predicted_gain_planned"], math.fsum(planned), rel_tol=1e-5, abs_tol=1e-3)


def _is_number(gain: float | None) -> bool:
    return gain is not None and not math.isnan(gain)


def _check_row(key: Key, line: dict, score: dict, routed: bool, reuses: bool) -> None:
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
        upgraded = reuses and (line["planned_route"], line["route"]) == ("small", "large")
        assert upgraded or (line["route"] != line["planned_route"]) == (line["status"] == "fallback"), key
