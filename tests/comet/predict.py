"""unbabel-comet by itself: from {checkpoint folder: samples} its scores and which samples it cuts.

Runs in the quality environment and knows nothing of routelmt_batch.
"""

import json
import os
import sys

import comet
import torch


def tokens(model, sample: dict) -> list:
    """Every token that the model would be given of one sample."""
    inputs = model.prepare_sample([sample], stage="predict")
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    return [part[key].tolist() for part in parts for key in part if key.endswith("input_ids")]


def predict(folder: str, samples: list[dict]) -> dict:
    os.chdir(folder)
    model = comet.load_from_checkpoint("checkpoints/model.ckpt")
    with torch.inference_mode():
        # One at a time: no padding, no order.
        scores = [
            model.predict([one], batch_size=1, gpus=0, num_workers=0, progress_bar=False).scores[0]
            for one in samples
        ]
    given = [tokens(model, one) for one in samples]
    model.encoder.model.config.max_position_embeddings = 10**6
    cut = [before != tokens(model, one) for before, one in zip(given, samples, strict=True)]
    return {"scores": scores, "cut": cut}


if __name__ == "__main__":
    print(json.dumps({folder: predict(folder, samples) for folder, samples in json.load(sys.stdin).items()}))
