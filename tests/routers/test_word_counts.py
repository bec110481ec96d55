"""Words of a corpus: what counts as one, where they are looked for, and in what memory."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.errors import InputError
from routelmt_batch.routers.word_counts import corpus_files, count_words, words
from routelmt_batch.spec.file import load
from routelmt_batch.stages.recipe import check_models


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_words_are_letter_words_and_single_han_characters():
    found = words("Don't say 42 GROẞ words_here, 你好!")
    assert found == ["don", "t", "say", "gross", "words", "here", "你", "好"]


def test_a_corpus_is_a_folder_a_glob_or_a_file_as_input_is(tmp_path):
    first = write(tmp_path / "a.parquet", source=["x"])
    second = write(tmp_path / "b" / "c.parquet", source=pa.array(["y"]).dictionary_encode())
    write(tmp_path / "b" / "_not.parquet", source=["z"])
    assert corpus_files(str(tmp_path), "source") == (first, second)
    assert corpus_files(str(tmp_path / "*.parquet"), "source") == (first,)
    assert corpus_files(second, "source") == (second,)
    assert count_words((first, second), "source") == (Counter(x=1, y=1), 2)


def test_a_corpus_that_cannot_be_counted_is_told_before_anything_starts(tmp_path, make_spec):
    path = write(tmp_path / "a.parquet", id=[1, 2], source=["x", "y"])
    for column, message in (("text", "no column 'text' to count words in; it has id, source"),
                            ("id", "column 'id' is int64, not string")):  # fmt: skip
        with pytest.raises(InputError, match=f"router.source {path}: {message}"):
            corpus_files(path, column)
    with pytest.raises(InputError, match="router.source .*nowhere: no such folder or file"):
        check_models(load(make_spec(router={"kind": "rarity", "source": str(tmp_path / "nowhere")})))
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match=f"{path}: not readable as Parquet"):
        corpus_files(path, "source")


def test_opening_a_router_reads_no_text(tmp_path, make_spec, monkeypatch):
    write(tmp_path / "words" / "a.parquet", text=["x"])
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("the corpus is read"))
    spec = load(make_spec(router={"kind": "rarity", "source": str(tmp_path / "words")}))
    assert check_models(spec).router.scorer.files == (str(tmp_path / "words" / "a.parquet"),)


def test_memory_is_bounded_and_frequent_words_keep_their_counts(tmp_path):
    draw = np.random.default_rng(0).zipf(1.3, 200_000)
    said = [chr(0x4E00 + number % 20_000) for number in draw]
    texts = ["".join(said[start : start + 10]) for start in range(0, len(said), 10)]
    path = write(tmp_path / "a.parquet", source=texts)
    exact, total = Counter(said), len(said)
    assert count_words((path,), "source") == (exact, total)
    counts, found_total = count_words((path,), "source", most_words=1000)
    assert len(counts) <= 1000 < len(exact) and found_total == total
    for word, count in exact.most_common(100):
        assert 0 <= count - counts[word] <= 10
