"""A metric by each reference of a row, against sacrebleu called for one pair after the other."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sacrebleu.metrics import CHRF

from routelmt_batch.engines.models import Loading
from routelmt_batch.metrics.by_reference import ByReference
from routelmt_batch.metrics.metric import Chrf

HYPOTHESES = ["Das Haus ist groß.", "Ja.", "Wo ist die Katze?"]
REFERENCES = [["Das Haus ist sehr groß.", "Ein großes Haus.", "Das Haus."], ["Ja."], ["Wo?", "Wo ist sie?"]]


def rows() -> pa.Table:
    lists = pa.array(REFERENCES, pa.list_(pa.string()))
    table = pa.table({"reference": lists, "hypothesis": HYPOTHESES, "source": ["a", "b", "c"]})
    return pa.concat_tables([table.slice(0, 1), table.slice(1)])  # as a model's waiting rows are


def test_a_row_has_a_quality_by_each_of_its_references_in_their_order():
    expected = [
        [CHRF().sentence_score(hypothesis, [one]).score for one in several]
        for hypothesis, several in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert ByReference(Chrf())(rows()) == expected


@dataclass(frozen=True)
class Short(Chrf):
    """Reads ten characters of a reference."""

    def cuts(self, rows: pa.Table) -> np.ndarray:
        return np.array([len(text) > 10 for text in rows["reference"].to_pylist()])

    def load(self) -> str:
        return "loaded"


def test_a_row_is_cut_if_one_of_its_references_is_too_long():
    assert ByReference(Short())(rows()) == ByReference(Chrf())(rows())
    assert ByReference(Short()).cuts(rows()).tolist() == [True, False, True]
    assert ByReference(Chrf()).cuts(rows()).tolist() == [False] * 3


def test_a_metric_s_model_is_loaded_before_its_first_row():
    assert isinstance(ByReference(Short()), Loading)
    assert (ByReference(Short()).load(), ByReference(Chrf()).load()) == ("loaded", None)
