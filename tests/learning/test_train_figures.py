"""A router's figures, read back from the SVG: every panel, its rows, and the tenths' means."""

import re

import numpy as np
import pytest
from matplotlib import pyplot

from routelmt_batch.learning.training import figures


@pytest.mark.parametrize("rows", [0, 1, 25])
def test_predicted_against_realised_is_drawn_for_few_rows_and_none(tmp_path, rows):
    values = np.arange(rows, dtype=float)
    figures.predicted_against_realised(values, values * 2, tmp_path / "p", "Held-out rows")
    assert (tmp_path / "p.png").stat().st_size and (tmp_path / "p.svg").stat().st_size


def test_each_direction_has_a_panel_of_its_own_rows(tmp_path):
    draw = np.random.default_rng(0)
    directions = ["en-de"] * 700 + ["de-en"] * 20 + ["en-zh"] + ["zh-en"] * 2 + ["en-fr"] * 3
    predicted = draw.normal(5, 3, len(directions))
    predicted[-3:] = np.nan  # a direction without any prediction
    realised = predicted + draw.normal(0, 10, len(directions))
    figures.by_direction(predicted, realised, directions, tmp_path / "p")
    first = (tmp_path / "p.svg").read_bytes()
    titles = re.findall(r"<!-- (\S+ \([\d,]+ rows\)) -->", first.decode())
    assert titles == [f"{name} ({directions.count(name)} rows)" for name in sorted(set(directions))]
    assert len(first) < 150_000 and (tmp_path / "p.png").stat().st_size < 150_000
    image = pyplot.imread(tmp_path / "p.png")
    assert image.shape[0] < image.shape[1], "two rows of four columns"
    figures.by_direction(predicted, realised, directions, tmp_path / "p")
    assert (tmp_path / "p.svg").read_bytes() == first
