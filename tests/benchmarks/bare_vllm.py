"""vLLM alone on one of the demo's models: `vllm.LLM` in one process, given token ids. See engines.py.

    python tests/benchmarks/bare_vllm.py small TEXTS --dtype float32

Engine arguments and environment are those that the job gives its own engines. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = {"en": "English", "de": "German", "zh": "Chinese"}


def prompts(folder: Path) -> list[str]:
    """LMT's prompt of each row."""
    import pyarrow.parquet as pq

    found = []
    for line in pq.read_table(folder).to_pylist():
        source, target = LANGUAGES[line["source_lang"]], LANGUAGES[line["target_lang"]]
        found.append(
            f"Translate the following text from {source} into {target}:\n{source}: {line['source']}\n{target}:"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("score", "small", "large"))
    parser.add_argument("texts", type=Path)
    parser.add_argument("--dtype", required=True)
    given = parser.parse_args()
    gpus = Path("/dev/nvidia0").exists()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not gpus:
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        os.environ.setdefault("GOMP_SPINCOUNT", "200000")
    from vllm import LLM, SamplingParams

    arguments = {
        "model": str(REPOSITORY / "jobs/demo/models" / {"score": "router"}.get(given.model, given.model)),
        "dtype": given.dtype,
        "max_model_len": 256,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "disable_log_stats": True,
        **({} if gpus else {"enforce_eager": True, "kv_cache_memory_bytes": 128 << 20}),
    }
    if given.model == "score":
        arguments["runner"] = "pooling"
    engine = LLM(**arguments)
    ready_at = time.time()
    tokens = engine.get_tokenizer()(prompts(given.texts))["input_ids"]
    inputs = [{"prompt_token_ids": ids} for ids in tokens]
    started = time.time()
    if given.model == "score":
        engine.classify(inputs, use_tqdm=False)
    else:
        # The demo's: at most 96 tokens, end token 1.
        engine.generate(
            inputs, SamplingParams(temperature=0, max_tokens=96, stop_token_ids=[1]), use_tqdm=False
        )
    seconds = time.time() - started
    print(
        json.dumps({"started_at": psutil.Process().create_time(), "ready_at": ready_at, "seconds": seconds})
    )


if __name__ == "__main__":
    main()
