"""Counts the words of a corpus of Parquet files. It does not know what the counts are for."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pyarrow as pa

from routelmt_batch.corpus.shards import READ_ROWS, discover, is_text
from routelmt_batch.errors import InputError
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.uris import locate

# A word of letters, or one Han character: Chinese is written without spaces.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|[^\W\d_{_HAN}]+")
MOST_WORDS = 1 << 21  # about 300 MB of counts


def words(text: str) -> list[str]:
    """A text's words, lower-cased; each Chinese character is a word."""
    return _WORD.findall(text.casefold())


def corpus_files(uri: str, column: str, key: str = "router.source") -> tuple[str, ...]:
    """The files of a corpus (a folder, a glob or one file), in name order. Only their footers are read.

    Raises:
        InputError: there are no files, or a file is unreadable or has no such column of text.
    """
    files = []
    for _, location in discover(uri, key=key):
        path = location.canonical()
        try:
            with parquet_file(path) as file:
                schema = file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{key} {path}: not readable as Parquet: {error}") from None
        if column not in schema.names:
            raise InputError(
                f"{key} {path}: no column {column!r} to count words in; it has "
                f"{', '.join(schema.names) or 'no columns'}"
            )
        if not is_text(schema.field(column).type):
            raise InputError(f"{key} {path}: column {column!r} is {schema.field(column).type}, not string")
        files.append(str(path))
    return tuple(files)


@functools.lru_cache(maxsize=1)
def count_words(
    files: tuple[str, ...], column: str, most_words: int = MOST_WORDS
) -> tuple[Counter[str], int]:
    """How often each word occurs in a column of Parquet files, and how many words there are in all.

    Memory is bounded by `most_words`. If there are more, the rarest so far are forgotten: first those
    that occurred once, the next time those that occurred at most twice, and so on, as word2vec bounds its
    vocabulary (ReduceVocab). Counts of rare words are then too low; those of other words stay exact.
    """
    counts: Counter[str] = Counter()
    total = rare = 0
    for path in files:
        with parquet_file(locate(path)) as file:
            for batch in file.iter_batches(READ_ROWS, columns=[column]):
                batch_words = [word for text in batch.column(0).to_pylist() if text for word in words(text)]
                total += len(batch_words)
                counts.update(batch_words)
                while len(counts) > most_words:
                    rare += 1
                    counts = Counter({word: count for word, count in counts.items() if count > rare})
    return counts, total
