"""A vLLM plugin for tests: the engine's process is killed when it is sent certain prompts.

vLLM loads it in each of its processes, as any plugin, from a folder on PYTHONPATH.
"""

import json
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

VARIABLE = "TEST_POISON"  # a JSON list of prompts, as token ids


def hold() -> None:
    if VARIABLE not in os.environ:
        return
    from vllm.v1.engine.core import EngineCore

    deadly = {tuple(prompt) for prompt in json.loads(os.environ[VARIABLE])}
    add_request = EngineCore.add_request

    def add(self, request, *args, **kwargs):
        if tuple(request.prompt_token_ids) in deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return add_request(self, request, *args, **kwargs)

    EngineCore.add_request = add


def environment(folder: Path, prompts: Iterable[Sequence[int]]) -> dict[str, str]:
    """Install the plugin into a folder: what a pool's `env` then has to hold."""
    metadata = folder / "poison-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (folder / "poison.py").write_text(Path(__file__).read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\npoison = poison:hold\n")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, VARIABLE: json.dumps([list(map(int, prompt)) for prompt in prompts])}
