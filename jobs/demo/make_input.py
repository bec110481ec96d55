"""Write the demo's input shards from sentences.tsv, and those of its second night, in which some texts were
corrected and some are new: `python jobs/demo/make_input.py`.

The sentences were written for this project. Beside them stand the rows that a real corpus has: empty,
null, far too long, repeated, emoji, right-to-left, line breaks, markup, a language nobody knows.
"""

import csv
import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("source", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("reference", pa.string()),
        ("collected", pa.timestamp("us", tz="Europe/Berlin")),
        ("tags", pa.list_(pa.string())),
        ("origin", pa.struct([("page", pa.int32()), ("by", pa.string())])),
        ("price", pa.decimal128(9, 4)),
    ]
)
# Shard name, rows of each row group. Rows are dealt out in order.
SHARDS: dict[str, list[int | None]] = {
    "part-0.parquet": [40, 25, 15],
    "part-1.parquet": [70],
    "part-2-one-row.parquet": [1],
    "part-3-empty.parquet": [],
    "more/part-4.parquet": [60],
    "more/part-5.parquet": [None],  # the rest
}
ODD = [
    ("", "en", "de"),
    ("   \t ", "en", "de"),
    (None, "en", "zh"),
    ("and then we walked a little further along the road " * 60, "en", "de"),
    ("I like apples. 🍎🙂", "en", "de"),
    ("שלום עולם, how are you today?", "en", "de"),
    ("مرحبا, my friend.", "en", "zh"),
    ("First line.\nSecond line,\twith a tab.", "en", "de"),
    ("<script>alert('hello')</script> Press the button.", "en", "de"),
    ("Saluton, kiel vi fartas?", "tlh", "en"),
    ("Where is the station?", "en", None),
    ("Good night, sleep well.", "en", "de"),
    ("Good night, sleep well.", "en", "de"),
    ("Good night, sleep well.", "en", "de"),
    ("12:30", "en", "de"),
    ("!!!", "de", "en"),
]
# The second night: other texts by id, and new rows.
CORRECTED = {
    1001: "My bicycle has two flat tyres.",
    1004: "The soup needs some more pepper.",
    1006: "She reads the paper every evening.",
    1008: "The children are playing in the street.",
    1012: "Our neighbours have two old dogs.",
}
NEW = [
    ("The bakery opens at seven.", "en", "de"),
    ("The bakery opens at seven.", "en", "zh"),
    ("My sister is learning to swim.", "en", "de"),
    ("We had fish for dinner.", "en", "zh"),
    ("Der Zug hat zehn Minuten Verspätung.", "de", "en"),
    ("Die Katze schläft auf dem Stuhl.", "de", "en"),
    ("他在图书馆看书。", "zh", "en"),
]


def rows() -> list[dict]:
    with open(HERE / "sentences.tsv", encoding="utf8", newline="") as file:
        pairs = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    lines = []
    for index, (first, second, one, other) in enumerate(pairs):
        # Every fourth sentence goes without a reference, as in a corpus that is yet to be translated.
        known = index % 4 != 3
        lines.append((one, first, second, other if known else None))
        lines.append((other, second, first, one if known else None))
    lines = lines[::2] + lines[1::2]
    for place, (text, source_lang, target_lang) in enumerate(ODD):
        lines.insert(10 + 16 * place, (text, source_lang, target_lang, None))
    start = datetime.datetime(2026, 3, 28, 22, tzinfo=datetime.UTC)
    return [
        {
            "id": 1000 + index,
            "source": text,
            "source_lang": source_lang,
            "target_lang": target_lang,
            "reference": reference,
            "collected": start + datetime.timedelta(minutes=7 * index),
            "tags": None if index % 11 == 0 else ["demo", source_lang][: 1 + index % 2],
            "origin": {"page": index // 10, "by": None if index % 7 == 0 else f"author {index % 5}"},
            "price": decimal.Decimal(index * 125) / 10_000,
        }
        for index, (text, source_lang, target_lang, reference) in enumerate(lines)
    ]


def main() -> None:
    lines = rows()
    first = sum(size or 0 for size in SHARDS["part-0.parquet"])
    corrected = [line | {"source": CORRECTED.get(line["id"], line["source"])} for line in lines[:first]]
    new = [
        line
        | {
            "id": 2000 + index,
            "source": text,
            "source_lang": source,
            "target_lang": target,
            "reference": None,
        }
        for index, (line, (text, source, target)) in enumerate(zip(lines, NEW, strict=False))
    ]
    write(HERE / "second-night/part-0.parquet", SHARDS["part-0.parquet"], corrected)
    write(HERE / "second-night/part-6.parquet", [None], new)
    for name, groups in SHARDS.items():
        lines = write(HERE / "input" / name, groups, lines)
    assert not lines


def write(path: Path, groups: list[int | None], lines: list[dict]) -> list[dict]:
    """Write a shard with so many rows in each row group (None: the rest); give the rows that are left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for size in groups:
            size = len(lines) if size is None else size
            writer.write_table(pa.Table.from_pylist(lines[:size], SCHEMA))
            lines = lines[size:]
    return lines


if __name__ == "__main__":
    main()
