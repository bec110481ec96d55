"""The ceiling of an evaluation, against lists of sources that are sorted by hand and really repeated."""

import json
import math
from collections import defaultdict
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from routelmt_batch.errors import InputError
from routelmt_batch.learning.evaluation import evaluation as module
from routelmt_batch.learning.evaluation.contest import Routing
from routelmt_batch.learning.evaluation.evaluation import write
from routelmt_batch.learning.evaluation.guards import GuardSettings
from routelmt_batch.learning.evaluation.show import table as terminal
from routelmt_batch.learning.evaluation.tables import read_tables
from routelmt_batch.stats import resampling
from tests.learning.test_evaluate import made, run

SOURCES = 90
BUDGET = Decimal("0.3")


def rows(seed: int = 0) -> dict[str, list]:
    """Up to four references a source, a row each, in no order. A source gains alike by all of its references,
    with noise; its last row may come twice, which is no further reference."""
    draw = np.random.default_rng(seed)
    found = []
    for source in range(SOURCES):
        gain = draw.normal(5, 10)
        small = draw.uniform(20, 80)
        for reference in range(int(draw.integers(1, 5))):
            one = float(small + draw.normal(0, 5))
            found.append(
                {
                    "source": f"Sentence {source // 2}.",
                    "source_lang": "en",
                    "target_lang": ("de", "zh")[source % 2],
                    "reference": f"Satz {source}, {reference}.",
                    "quality_small": one,
                    "quality_large": one + gain + float(draw.normal(0, 10)),
                    "mine": gain + float(source % 7),
                    "free": one,
                }
            )
        if source % 5 == 0:
            found.append(found[-1])
    lines = [found[place] for place in draw.permutation(len(found))]
    return {name: [line[name] for line in lines] for name in lines[0]}


@pytest.fixture
def by_rows(tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(rows()), path)
    return path


def of_sources(path) -> list[dict]:
    """Each source with several references: its two gains, and its scores, in the order of first rows."""
    lines, gains, seen = {}, defaultdict(list), set()
    for line in pq.read_table(path).to_pylist():
        key = line["source"], line["target_lang"]
        if (key, line["reference"]) in seen:
            continue
        seen.add((key, line["reference"]))
        lines.setdefault(key, line)
        gains[key].append(line["quality_large"] - line["quality_small"])
    found = []
    for key, line in lines.items():
        if len(gains[key]) > 1:
            first, second = np.mean(gains[key][::2]), np.mean(gains[key][1::2])
            found.append(line | {"first": first, "second": second, "mean": (first + second) / 2})
    return found


def delta(sources: list[dict], orders, measures) -> float:
    k = math.floor(BUDGET * len(sources))
    best = sorted(sources, key=lambda source: -orders(source))[:k]
    return sum(measures(source) for source in best) / k


def figures(sources: list[dict], score="mine") -> dict[str, float]:
    def first(source):
        return source["first"]

    def second(source):
        return source["second"]

    def mean(source):
        return source["mean"]

    ceiling = (delta(sources, first, second) + delta(sources, second, first)) / 2
    random = sum(map(mean, sources)) / len(sources)
    mine = delta(sources, lambda source: source[score], mean)
    return {
        "mean_delta": ceiling,
        "oracle_mean_delta": (delta(sources, first, first) + delta(sources, second, second)) / 2,
        "random_mean_delta": random,
        "correlation": stats.pearsonr([*map(first, sources)], [*map(second, sources)]).statistic,
        "share": 100 * (mine - random) / (ceiling - random),
    }


def assert_same(found, name, expected, pick):
    """Values, or bounds, of all sources and of each direction."""
    parts = {"all": (found.ceiling.overall, found.routers[name].attainable_share.overall)}
    for direction, part in found.ceiling.directions.items():
        parts[direction] = part, found.routers[name].attainable_share.directions[direction]
    assert list(parts) == list(expected)
    for place, (part, share) in parts.items():
        given = {key: pick(getattr(part, key)) for key in expected[place] if key != "share"}
        assert given | {"share": pick(share)} == pytest.approx(expected[place])


def test_the_ceiling_and_the_routers_share_of_it_are_those_of_sorted_lists(tmp_path, by_rows):
    found = run(tmp_path, [by_rows], scores=["mine"])
    sources = of_sources(by_rows)
    some = {
        f"en-{lang}": [source for source in sources if source["target_lang"] == lang] for lang in ("de", "zh")
    }
    expected = {name: figures(part) for name, part in {"all": sources, **some}.items()}
    assert_same(found, "mine", expected, lambda interval: interval.value)
    ceiling = found.ceiling.overall
    assert (ceiling.sources, ceiling.k) == (len(sources), math.floor(BUDGET * len(sources)))
    assert ceiling.random_mean_delta.value < ceiling.mean_delta.value < ceiling.oracle_mean_delta.value
    assert found.ceiling_note is None


def test_its_intervals_are_percentiles_over_sources_really_resampled(tmp_path, by_rows):
    found = run(tmp_path, [by_rows], scores=["mine"], seed=3)
    sources = of_sources(by_rows)
    samples = []
    for stream in np.random.SeedSequence(3).spawn(50):
        counts = resampling.resample(len(sources), np.random.Generator(np.random.PCG64(stream)))
        samples.append(
            figures([one for one, times in zip(sources, counts, strict=True) for _ in range(times)])
        )
    for side, percentile in (("low", 2.5), ("high", 97.5)):
        expected = {key: np.percentile([one[key] for one in samples], percentile) for key in samples[0]}
        ceiling, share = found.ceiling.overall, found.routers["mine"].attainable_share.overall
        given = {key: getattr(getattr(ceiling, key), side) for key in expected if key != "share"}
        assert given | {"share": getattr(share, side)} == pytest.approx(expected)


def test_a_guard_is_measured_on_the_same_sources_as_its_router(tmp_path, by_rows):
    """Of the router's first 2k sources, the k of lowest quality are routed; a verified one may bring nothing."""
    settings = GuardSettings(["guarded=mine+free"], ["after=mine+free+mine"], margin=30)
    found = run(tmp_path, [by_rows], scores=["mine"], guards=settings)
    sources = of_sources(by_rows)
    k = math.floor(BUDGET * len(sources))
    expected = figures(sources)
    best = sorted(sources, key=lambda source: -source["mine"])
    lowest = sorted(best[: 2 * k], key=lambda source: source["free"])[:k]
    after = [0.0 if source["mine"] < source["free"] - 30 else source["mean"] for source in best[:k]]
    assert any(gain == 0 for gain in after) and any(after)
    room = expected["mean_delta"] - expected["random_mean_delta"]
    for name, gains in (("guarded", [source["mean"] for source in lowest]), ("after", after)):
        share = 100 * (sum(gains) / k - expected["random_mean_delta"]) / room
        assert found.routers[name].attainable_share.overall.value == pytest.approx(share)


def flat(value: dict, name: str = "") -> dict[str, float]:
    inner = [
        flat(one, f"{name}.{key}") if isinstance(one, dict) else {f"{name}.{key}": one}
        for key, one in value.items()
    ]
    return {key: one for part in inner for key, one in part.items()}


def test_a_list_of_gains_is_as_good_as_a_row_for_each_reference(tmp_path, by_rows):
    """Its sources come in the order of the rows' first ones, so that even the resamples are the same."""
    lines: dict[tuple, list[dict]] = {}
    seen = set()
    for line in pq.read_table(by_rows).to_pylist():
        if line["reference"] not in seen:
            seen.add(line["reference"])
            lines.setdefault((line["source"], line["target_lang"]), []).append(line)
    merged = []
    for same in lines.values():
        small, large = ([line[f"quality_{route}"] for line in same] for route in ("small", "large"))
        gains = [b - a for a, b in zip(small, large, strict=True)]
        merged.append(
            same[0]
            | {"quality_small": np.mean(small), "quality_large": np.mean(large), "gain_by_reference": gains}
        )
    for line in merged:
        line["reference"] = None
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.Table.from_pylist(merged), path)
    listed = run(tmp_path / "lists", [path], scores=["mine"])
    apart = run(tmp_path, [by_rows], scores=["mine"])
    assert flat(listed.ceiling.as_json()) == pytest.approx(flat(apart.ceiling.as_json()))
    shares = [found.routers["mine"].attainable_share.overall.value for found in (listed, apart)]
    assert shares[0] == pytest.approx(shares[1])


def test_without_texts_no_row_is_known_to_share_a_source(tmp_path, by_rows):
    pq.write_table(pq.read_table(by_rows).drop(["source"]), by_rows)
    found = run(tmp_path, [by_rows], scores=["mine"])
    assert found.ceiling is None and found.routers["mine"].attainable_share is None
    assert found.ceiling_note.startswith("No ceiling: no source has several references")
    assert "label sources that have several references" in found.ceiling_note


def test_the_same_reference_twice_is_one(tmp_path, by_rows):
    lines = [line for line in pq.read_table(by_rows).to_pylist() if line["reference"].endswith(", 0.")]
    assert len(lines) > len({line["reference"] for line in lines})
    pq.write_table(pa.Table.from_pylist(lines), by_rows)
    assert run(tmp_path, [by_rows], scores=["mine"]).ceiling is None


def test_a_metric_that_read_no_references_makes_no_ceiling(tmp_path, by_rows):
    """Rows that share a source then have one gain, not the gains by several references."""
    metadata = {b"routelmt": json.dumps(made("0" * 64, input={"columns": {"reference": None}}))}
    pq.write_table(pq.read_table(by_rows).replace_schema_metadata(metadata), by_rows)
    assert run(tmp_path, [by_rows], scores=["mine"]).ceiling is None


def test_gains_that_do_not_fit_the_qualities_are_told_and_not_used(tmp_path):
    small = [50.0, 50.0, 50.0, 50.0]
    table = {
        "quality_small": small,
        "quality_large": [52.0, 54.0, 56.0, 50.0],
        "gain_by_reference": [[1.0, 3.0], [9.0, 3.0], [6.0, None], None],
    }
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(table), path)
    labels = read_tables([path])
    assert (labels.halves.of.tolist(), labels.halves.first.tolist()) == ([0], [1.0])
    assert labels.halves.second.tolist() == [3.0] and labels.halves.gain.tolist() == [2.0]
    assert labels.warnings == [
        "the mean of the column 'gain_by_reference' is not quality_large - quality_small in 1 rows (by at most "
        "2.000); the column is not used"
    ]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, 2.0], "column 'gain_by_reference' is double, not a list of numbers: write it as `label` does"),
        ([["1"], ["2"]], "column 'gain_by_reference' is list<.*string>, not a list of numbers"),
    ],
)
def test_a_column_that_holds_no_gains_is_refused(tmp_path, column, message):
    table = {"quality_small": [1.0, 2.0], "quality_large": [2.0, 3.0], "gain_by_reference": column}
    pq.write_table(pa.table(table), tmp_path / "labels.parquet")
    with pytest.raises(InputError, match=message):
        read_tables([tmp_path / "labels.parquet"])


def small_table(tmp_path, first, second):
    """A source for each pair of gains."""
    path = tmp_path / "labels.parquet"
    small = [50.0] * len(first)
    large = [50 + (a + b) / 2 for a, b in zip(first, second, strict=True)]
    gains = [list(pair) for pair in zip(first, second, strict=True)]
    pq.write_table(
        pa.table({"quality_small": small, "quality_large": large, "gain_by_reference": gains}), path
    )
    return read_tables([path])


def evaluated(labels, scores=None, budget="0.5"):
    scores = {"r": Routing(np.arange(len(labels.gain), dtype=float) if scores is None else np.array(scores))}
    return module.evaluate(labels, scores, ["random"], Decimal(budget), resamples=20)


def test_a_ceiling_that_is_not_above_random_leaves_no_share_and_says_so(tmp_path):
    found = evaluated(small_table(tmp_path, [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]))
    assert found.ceiling.overall.mean_delta.value == 1.5
    assert found.ceiling.overall.correlation.value == pytest.approx(-1)
    assert found.routers["r"].attainable_share.overall.value is None
    assert any(
        warning.startswith("ceiling, overall: not above random, so attainable_share is undefined")
        for warning in found.warnings
    )
    assert any("ceiling, overall: 4 sources with several references are few" in w for w in found.warnings)


def test_a_ceiling_without_a_place_is_undefined_and_says_so(tmp_path):
    found = evaluated(small_table(tmp_path, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), budget="0.2")
    assert found.ceiling.overall.mean_delta.value is None and found.ceiling.overall.k == 0
    assert "ceiling, overall: undefined, because --budget 0.2 is less than one of 3 sources" in found.warnings


def test_references_that_agree_leave_nothing_between_ceiling_and_oracle(tmp_path):
    gains = np.random.default_rng(0).normal(0, 10, 40).tolist()
    found = evaluated(small_table(tmp_path, gains, gains), gains)
    ceiling = found.ceiling.overall
    assert ceiling.mean_delta == ceiling.oracle_mean_delta and ceiling.correlation.value == pytest.approx(1)
    assert found.routers["r"].attainable_share.overall.value == pytest.approx(100)
    assert found.routers["oracle-gain"].attainable_share is None, "it sees what measures it"


def test_the_page_and_the_table_show_it(tmp_path, by_rows, capsys):
    found = run(tmp_path, [by_rows], scores=["mine"])
    write(found, tmp_path)
    page = (tmp_path / "evaluation.md").read_text()
    Console(width=150).print(terminal(found))
    printed = capsys.readouterr().out
    ceiling, share = found.ceiling.overall, found.routers["mine"].attainable_share.overall
    assert "| direction | sources | routed | random | ceiling | oracle | correlation |" in page
    assert f"| all | {ceiling.sources} | {ceiling.k} | {ceiling.random_mean_delta.value:.2f} [" in page
    assert f"| mine | {share.value:.2f} [" in page
    assert "attainable %" in printed and f"{share.value:.1f}" in printed
    assert f"ceiling: MeanDelta {ceiling.mean_delta.value:.2f} [" in " ".join(printed.split())


def test_the_page_and_the_table_say_how_to_get_one(tmp_path, capsys):
    table = {"quality_small": [1.0, 2.0, 3.0], "quality_large": [2.0, 4.0, 9.0]}
    pq.write_table(pa.table(table), tmp_path / "labels.parquet")
    found = evaluated(read_tables([tmp_path / "labels.parquet"]))
    write(found, tmp_path)
    Console(width=250).print(terminal(found))
    for text in (capsys.readouterr().out, (tmp_path / "evaluation.md").read_text()):
        assert "No ceiling: no source has several references" in " ".join(text.split())
