"""The demo's own scripts: a split that keeps groups whole, translators that go on with the same work only."""

import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.learning.training import model_card
from tests.conftest import DEMO


@pytest.fixture
def script(monkeypatch):
    """A script of jobs/demo and a way to run it in this process, as its command line would."""
    monkeypatch.syspath_prepend(str(DEMO))

    def load(name: str):
        module = importlib.import_module(name)

        def run(*arguments: object) -> None:
            monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
            module.main()

        return module, run

    return load


def sides(folder: Path) -> dict[tuple[str, str], set[str]]:
    """On which sides each sentence stands, by language and letters."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in folder.glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            for text, language in (("source", "source_lang"), ("reference", "target_lang")):
                letters = "".join(filter(str.isalnum, row[text].casefold()))
                found.setdefault((row[language], letters), set()).add(path.parent.name)
    return found


def test_no_sentence_stands_on_two_sides_and_an_older_split_leaves_nothing(script, tmp_path):
    _, split = script("split_text")

    def text(first: int, last: int) -> Path:
        english = [f"Sentence {i // 3}{'!' * (i % 2)}" for i in range(first, last)]
        german = [f"Satz {i // 2}." for i in range(first, last)]
        pq.write_table(pa.table({"en": english, "de": german}), tmp_path / "text.parquet")
        return tmp_path / "text.parquet"

    split(text(0, 6000), "--out", tmp_path / "split")
    first = sides(tmp_path / "split")
    assert {side for of_it in first.values() for side in of_it} == {"train", "labels", "test"}
    assert all(len(of_it) == 1 for of_it in first.values())
    split(text(6000, 6600), "--out", tmp_path / "split")
    assert not set(first) & set(sides(tmp_path / "split"))


def test_translators_go_on_with_the_same_text_seed_and_recipe_only(script, tmp_path, monkeypatch):
    module, run = script("train_translators")
    text, out = tmp_path / "text", tmp_path / "out"

    def write(words: Sequence[str]) -> None:
        rows = [
            {"source": f"a {one}", "reference": f"ein {one}", "source_lang": "en", "target_lang": "de"}
            for one in words
        ]
        text.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), text / "000.parquet")

    def train(*more: object) -> None:
        run(text, "--out", out, "--model", "small", *more)

    def refused(told: str, *more: object) -> None:
        with pytest.raises(SystemExit, match=told):
            train(*more)

    write(("cat", "dog", "house", "tree"))
    step, steps = module.take_step, []

    def killed_at_the_second(*arguments: object) -> float:
        if steps:
            raise KeyboardInterrupt
        steps.append(1)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "CHECKPOINT_STEPS", 1)
        patch.setattr(module, "take_step", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train()
    refused("small.checkpoint.pt: made from something else: seed: was 0, is 1. Change it back", "--seed", 1)
    train()
    told = json.loads((out / "small" / "training.json").read_text())
    assert (told["steps"], told["seed"], told["examples"]) == (2, 0, 4)
    train()  # there already
    refused("out/small: made from something else: most_steps: was None, is 1", "--most-steps", 1)
    write(("cat", "dog"))
    refused("out/tokenizer: made from something else: text: was [0-9a-f]{64}, is [0-9a-f]{64}")


def test_the_shipped_routers_card_shows_every_plot_that_training_draws():
    card = (DEMO / "models/router/README.md").read_text(encoding="utf8")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card)
    assert shown == [f"{model_card.PLOT}.png", f"{model_card.PLOT_BY_DIRECTION}.png"]
    for name in shown:
        for path in (DEMO / "models/router" / name, (DEMO / "models/router" / name).with_suffix(".svg")):
            assert 0 < path.stat().st_size < 200_000, path


@pytest.mark.parametrize(
    ("output", "row"),
    [("router-q", "RouteLMT-Q"), ("router-head", "head only"), ("router-full", "all weights")],
)
def test_the_makefile_trains_with_the_learning_rates_that_are_told(output, row):
    makefile = (DEMO.parent.parent / "Makefile").read_text(encoding="utf8").replace("\\\n", " ")
    (line,) = [one for one in makefile.splitlines() if one.endswith(f"--output $(TRAINED)/{output}")]
    (told,) = re.findall(rf"^\| {row}.*?\| learning rate (\S+)", DEMO.joinpath("README.md").read_text(), re.M)
    assert float(line.partition("learning_rate=")[2].split()[0]) == float(told)
