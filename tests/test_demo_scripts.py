"""The demo's own scripts: a split that keeps groups whole, translators that go on with the same work only."""

import hashlib
import importlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sacrebleu.metrics import CHRF
from scipy import stats

from routelmt_batch.engines import quality
from routelmt_batch.learning.training import model_card
from tests.conftest import DEMO, MODELS, comets

pytestmark = pytest.mark.slow


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


WORDS = [
    "I",
    "saw",
    "a",
    "cat",
    "near",
    "the",
    "river",
    "and",
    "dog",
    "in",
    "house",
    "Ich",
    "sah",
    "eine",
    "Katze",
    "am",
    "Fluss",
    "Haus",
    "Hund",
    "und",
]


def labels(folder: Path, rows: int, seed: int) -> list[dict]:
    """A label table of random words; the second model's translations are nearer to the reference."""
    draw, found = random.Random(seed), []
    for group in range(rows):
        source, reference, small = (" ".join(draw.choices(WORDS, k=5)) for _ in range(3))
        row = {"source": source, "reference": reference, "source_lang": "en", "target_lang": "de"}
        texts = {"small": small, "large": f"{reference[: draw.randrange(1, 30)]} {small}"}
        for model, text in texts.items():
            row[f"translation_{model}"] = text
            row[f"quality_{model}"] = CHRF().sentence_score(text, [reference]).score
        row["gain"] = row["quality_large"] - row["quality_small"]
        found.append(row | {"group": f"{seed} {group}"})
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(found), folder / "data" / "a.parquet")
    return found


def examples(card: str) -> list[tuple[str, str, float]]:
    """The scores that a COMET card gives for a few pairs."""
    lines = card.split("| source | translation | score |")[1].split("## Data")[0].strip().splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(source, translation, float(score)) for source, translation, score in cells]


def check_examples(folder: Path, more: Sequence[dict[str, str]] = ()) -> list[float]:
    """The card's examples are what COMET says; the scores of more samples, by the same start of COMET."""
    given = examples((folder / "README.md").read_text(encoding="utf8"))
    scores = comets(folder, [{"src": source, "mt": text} for source, text, _ in given] + [*more])["scores"]
    assert len(given) == 3
    assert [score for *_, score in given] == pytest.approx([100 * score for score in scores[:3]], abs=0.006)
    return scores[3:]


def test_a_comet_is_trained_and_its_card_says_what_it_scores(tmp_path):
    labels(tmp_path / "labels", 90, seed=0)
    held_out = labels(tmp_path / "labels-test", 40, seed=1)
    labels(tmp_path / "text" / "train", 90, seed=2)
    command = [quality.check().python, "-W", "ignore", str(DEMO / "make_comet.py"), str(tmp_path)]
    out = tmp_path / "comet"
    answer = subprocess.run(
        [*command, "--out", str(out), "--epochs", "1"], capture_output=True, text=True, timeout=200
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    models = ("small", "large")
    samples = [{"src": row["source"], "mt": row[f"translation_{m}"]} for m in models for row in held_out]
    scores, chrf = check_examples(out, samples), [row[f"quality_{m}"] for m in models for row in held_out]
    card = (out / "README.md").read_text(encoding="utf8")
    for name, first in (("both, all directions", 0), ("the large model", len(held_out))):
        found = [
            test(scores[first:], chrf[first:]).statistic
            for test in (stats.pearsonr, stats.spearmanr, stats.kendalltau)
        ]
        assert f"| {name} | {len(chrf[first:])} | " + " | ".join(f"{one:.3f}" for one in found) in card
    published = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    assert str(tmp_path) not in (out / "hparams.yaml").read_text()
    assert "checkpoints/model.ckpt" in published and "encoder/model.safetensors" not in published


def test_the_shipped_comet_is_the_one_that_its_card_measured():
    folder = MODELS / "comet"
    digest = hashlib.sha256((folder / "checkpoints" / "model.ckpt").read_bytes()).hexdigest()
    assert f"`{digest}`" in (folder / "README.md").read_text(encoding="utf8")
    check_examples(folder)
