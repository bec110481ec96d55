"""Small real checkpoints of COMET's classes, untrained. Runs in the quality environment: make.py FOLDER."""

import sys
from pathlib import Path

import torch
from comet.models import ReferencelessRegression, RegressionMetric, UnifiedMetric, XCOMETMetric

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "demo"))
from comet_folder import build, make_encoder, save

TEXTS = [
    "I saw a cat near the river, and a dog in the house.",
    "Ich sah eine Katze am Fluss und einen Hund im Haus.",
    "Where is the station, please? small of large 0 1 2 3 4 5 6 7 8 9",
    "Wo ist bitte der Bahnhof? Sub Only this. Sentence number tree bread",
    "我在河边看到一只猫。车站在哪里？",
]
POSITIONS = 48
TOP = {"hidden_sizes": [8], "nr_frozen_epochs": 0, "keep_embeddings_frozen": False}
WORDS = {"word_layer": 2, "loss_lambda": 0.5}
MODELS = {
    "regression": (RegressionMetric, TOP),
    "referenceless": (ReferencelessRegression, TOP),
    "kiwi": (UnifiedMetric, {**TOP, "input_segments": ["mt", "src"]}),
    "source-only": (UnifiedMetric, {**TOP, "input_segments": ["mt"]}),
    "xcomet": (XCOMETMetric, {**TOP, **WORDS}),
}


def main(root: Path) -> None:
    for seed, (name, (kind, settings)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        folder = root / name
        make_encoder(
            folder,
            TEXTS,
            vocabulary=200,
            positions=POSITIONS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
        save(build(kind, folder, **settings), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
