"""Codes of a corpus are counted as a plain count of its columns counts them."""

import random
from collections import Counter

import pyarrow as pa
import pytest

from routelmt_batch.corpus.codes import NO_CODE, OTHER, Codes, count_codes, in_words
from routelmt_batch.corpus.shards import discover, inspect
from routelmt_batch.corpus.units import units
from routelmt_batch.spec import Columns, Input
from tests.conftest import COLUMNS, write_shard

WRITTEN = ["en", "EN", "eng", "de", "zho_Hans", "zh-TW", "tlh", "min", "max", None, "", "No code."]
KNOWN = {"en": "en", "EN": "en", "eng": "en", "de": "de", "zho_Hans": "zh"}


def test_every_code_is_counted_as_it_is_written(tmp_path):
    draw = random.Random(5)
    pairs = [(draw.choice(WRITTEN), draw.choice(WRITTEN)) for _ in range(500)]
    for name, part in (("a", pairs[:350]), ("b", pairs[350:])):
        sources, targets = (pa.array(column, pa.string()) for column in zip(*part, strict=True))
        texts = ["A cat."] * len(part)
        write_shard(
            tmp_path / f"in/{name}.parquet", texts, row_group_size=40, **{"from": sources, "to": targets}
        )
    spec = Input(uri=str(tmp_path / "in"), columns=Columns(**COLUMNS))
    found = count_codes(units(inspect(discover(spec.uris[0]), spec)[0], most_rows=17), spec)
    every = Counter(code for pair in pairs for code in pair)
    assert found.rows == 500
    assert found.unknown_rows == sum(not {*pair} <= KNOWN.keys() for pair in pairs)
    assert found.spelled == {
        "en": Counter({code: every[code] for code in ("EN", "eng")}),
        "zh": Counter({"zho_Hans": every["zho_Hans"]}),
    }
    assert found.unknown == {
        **{code: every[code] for code in ("zh-TW", "tlh", "min", "max")},
        NO_CODE: every[None] + every[""],
        OTHER: every["No code."],
    }
    directions = Counter("-".join(KNOWN.get(code, "unknown") for code in pair) for pair in pairs)
    assert found.directions == directions


def test_nothing_is_read_if_both_languages_are_constants(tmp_path):
    spec = Input(uri=str(tmp_path / "in"), source_lang="EN", target_lang="zh_CN", columns=Columns(**COLUMNS))
    assert (spec.source_lang, spec.target_lang) == ("en", "zh")
    path = write_shard(tmp_path / "in/a.parquet", ["A cat."] * 3)
    shards, _ = inspect(discover(spec.uris[0]), spec)
    path.unlink()
    assert count_codes(units(shards), spec).directions == {"en-zh": 3}


def test_however_many_codes_there_are_a_hundred_are_held_and_all_are_counted():
    whole = Codes()
    for part in range(4):
        counted = Codes()
        for number in range(90):
            counted.add(f"q{part}x{number}", "en", 2)
        whole.update(counted)
    assert len(whole.unknown) == 101 and whole.unknown.total() == whole.unknown_rows == whole.rows == 720
    assert whole.unknown[OTHER] == 2 * (360 - 100)


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        ({"jp": 2, "tlh": 30}, "'tlh' 30 times (nearest: 'tl'); 'jp' 2 times (nearest: 'ja')"),
        ({OTHER: 1200, NO_CODE: 1}, "text that is no code 1,200 times; no code 1 time"),
        ({f"qq{n}": 9 - n for n in range(7)}, "2 others"),
    ],
)
def test_the_most_frequent_ones_are_told_with_the_nearest(unknown, words):
    assert words in in_words(unknown)
