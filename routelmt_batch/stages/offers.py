"""What an earlier job's output knows of its texts, sent to those who look for them by a hash of text and
languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit, languages, read_unit
from routelmt_batch.rows import FALLBACK, OK, SKIPPED, TOO_LONG, TRUNCATED
from routelmt_batch.spec import Texts
from routelmt_batch.stages.exchange import Exchange
from routelmt_batch.stages.stretches import KEY, TEXTS, keys_of
from routelmt_batch.threads import Stop

VALUES = [
    ("job", pa.int32()),  # its place among the earlier jobs
    *((name, pa.large_string()) for name in TEXTS),
    ("gain", pa.float32()),
    ("too_long", pa.bool_()),
    ("route", pa.string()),
    ("translation", pa.large_string()),
    ("output_tokens", pa.int32()),
    ("truncated", pa.bool_()),
]
OFFERED = pa.schema([*KEY, *VALUES])
_READ = ("predicted_gain", "status", "reason", "route", "translation", "output_tokens")


@dataclass(frozen=True)
class Offer:
    """Output shards of an earlier job that one task reads."""

    job: int
    texts: Texts
    units: Sequence[Unit]


@dataclass(frozen=True)
class Offerer:
    """Sends what an earlier job knows of its texts to buckets, in a task; returns the file's name."""

    offered: Exchange

    def __call__(self, offer: Offer, stop: Stop) -> str:
        columns, texts = offer.texts.columns, offer.texts
        names = [columns.source, *_READ]
        names += [columns.source_lang] if texts.source_lang is None else []
        names += [columns.target_lang] if texts.target_lang is None else []
        tables = [OFFERED.empty_table()]
        for unit in offer.units:
            for _, batch in read_unit(unit, names):
                stop()
                tables.append(_offered(offer, batch))
        return send_by_key(self.offered, pa.concat_tables(tables))


def _offered(offer: Offer, batch: pa.RecordBatch) -> pa.Table:
    """The rows of an output that have a score, a translation, or too long a text. Of the others nothing is
    known: they failed, or were given to no model."""
    source, target = languages(batch, offer.texts)
    translated = pc.is_in(batch["status"], pa.array([OK, FALLBACK]))
    too_long = pc.and_(pc.equal(batch["status"], SKIPPED), pc.equal(batch["reason"], TOO_LONG))
    gain = batch["predicted_gain"]
    table = pa.table(
        {
            "job": np.full(batch.num_rows, offer.job, np.int32),
            "source": batch[offer.texts.columns.source].cast(pa.large_string()),
            "source_lang": source.cast(pa.large_string()),
            "target_lang": target.cast(pa.large_string()),
            "gain": pc.if_else(pc.is_nan(gain), None, gain),
            "too_long": pc.fill_null(too_long, False),
            "route": pc.if_else(translated, batch["route"], None),
            "translation": pc.if_else(translated, batch["translation"], None).cast(pa.large_string()),
            "output_tokens": batch["output_tokens"],
            "truncated": pc.fill_null(pc.equal(batch["reason"], TRUNCATED), False),
        }
    )
    known = pc.or_(pc.or_(pc.is_valid(table["gain"]), table["too_long"]), pc.is_valid(table["translation"]))
    texts = pc.and_(pc.is_valid(table["source"]), pc.and_(*(pc.is_valid(table[name]) for name in TEXTS[1:])))
    table = table.filter(pc.and_(known, texts))
    return pa.table([*keys_of(table), *table.columns], schema=OFFERED)


def send_by_key(exchange: Exchange, rows: pa.Table) -> str:
    """Send rows to the buckets of their keys."""
    bucket = rows["high"].to_numpy() % np.uint64(exchange.receivers)
    return exchange.send(rows, bucket.astype(np.int64))
