"""Split parallel text into train (translators), labels (router) and test, both ways of each pair.

    python jobs/demo/split_text.py TEXT.parquet... --out runs/demo-models/text

Each file has a column `en` and one of `de` and `zh`. Sentences that translate one another, however
indirectly, are one group, and a group goes whole: no sentence of one language, whatever its case and
punctuation, is on two sides. (The same letters in two languages, a name say, are two sentences.)
"""

from __future__ import annotations

import argparse
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

LANGUAGES = ("de", "zh")
# Shares of the groups. The rest trains the translators.
TEST, LABELS = 0.03, 0.20
SHARD_ROWS = 4096
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("source", "reference", "source_lang", "target_lang", "group")]
)


def clean(text: str) -> str:
    """The sentence as the models read it: composed, without byte order mark, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\ufeff", "").split())


def key(text: str) -> str:
    """What makes two sentences of a language the same: letters and digits, whatever case and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\W+", "", folded) or folded


def read_pairs(paths: Sequence[Path]) -> list[tuple[str, str, str]]:
    """(other language, English, other), each pair once."""
    pairs: dict[tuple[str, str, str], None] = {}
    for path in paths:
        table = pq.read_table(path)
        found = [name for name in LANGUAGES if name in table.column_names]
        if "en" not in table.column_names or len(found) != 1:
            raise SystemExit(f"{path}: wants columns en and one of {', '.join(LANGUAGES)}")
        for english, other in zip(table["en"].to_pylist(), table[found[0]].to_pylist(), strict=True):
            if english and other and clean(english) and clean(other):
                pairs[found[0], clean(english), clean(other)] = None
    return list(pairs)


def groups(pairs: Sequence[tuple[str, str, str]]) -> list[str]:
    """A name for each pair's group: connected sentences have one, the same in every run."""
    nodes: dict[tuple[str, str], int] = {}
    ends = np.array(
        [
            (
                nodes.setdefault(("en", key(english)), len(nodes)),
                nodes.setdefault((language, key(other)), len(nodes)),
            )
            for language, english, other in pairs
        ]
    )
    links = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(nodes), len(nodes)))
    _, component = connected_components(links, directed=False)
    smallest: dict[int, str] = {}
    for (language, text), node in nodes.items():
        name = hashlib.sha256(f"{language}\0{text}".encode()).hexdigest()[:16]
        smallest[component[node]] = min(name, smallest.get(component[node], name))
    return [smallest[component[node]] for node in ends[:, 0]]


def side(group: str) -> str:
    """Where a group goes: by its name alone, the same in every run over the same text.

    More text can join groups and rename them, and so move sentences: split all of it anew then.
    """
    place = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if place < TEST else "labels" if place < TEST + LABELS else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-models/text"))
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "labels": [], "test": []}
    pairs = read_pairs(arguments.text)
    for (language, english, other), group in zip(pairs, groups(pairs), strict=True):
        for source_lang, source, target_lang, reference in (
            ("en", english, language, other),
            (language, other, "en", english),
        ):
            rows[side(group)].append(
                {
                    "source": source,
                    "reference": reference,
                    "source_lang": source_lang,
                    "target_lang": target_lang,
                    "group": group,
                }
            )
    for name, lines in rows.items():
        # By group, so that shards are alike and a sentence's rows lie together.
        table = pa.Table.from_pylist(sorted(lines, key=lambda line: line["group"]), SCHEMA)
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.parquet"):
            old.unlink()  # of a split of other text, whose sentences may be on other sides
        for start in range(0, table.num_rows, SHARD_ROWS):
            pq.write_table(
                table.slice(start, SHARD_ROWS),
                folder / f"{start // SHARD_ROWS:03d}.parquet",
                compression="zstd",
            )
        print(f"{name}: {table.num_rows:,} rows, {len(set(table['group'].to_pylist())):,} groups")


if __name__ == "__main__":
    main()
