"""A vLLM plugin for tests: an engine that is slow, and is killed when it is sent certain prompts.

vLLM loads it in each of its processes, as any plugin, from a folder on PYTHONPATH.
"""

import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

VARIABLE = "TEST_ENGINE"  # JSON: `deadly`, a list of prompts as token ids; `seconds` for each row


def hold() -> None:
    if VARIABLE not in os.environ:
        return
    from vllm.v1.engine.core import EngineCore

    settings = json.loads(os.environ[VARIABLE])
    deadly = set(map(tuple, settings["deadly"]))
    add_request = EngineCore.add_request

    def add(self, request, *args, **kwargs):
        if tuple(request.prompt_token_ids) in deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(settings["seconds"])
        return add_request(self, request, *args, **kwargs)

    EngineCore.add_request = add


def environment(folder: Path, deadly: Iterable[Sequence[int]] = (), seconds: float = 0) -> dict[str, str]:
    """Install the plugin into a folder: what a pool's `env` then has to hold."""
    metadata = folder / "slow_or_deadly-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (folder / "slow_or_deadly.py").write_text(Path(__file__).read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-or-deadly\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nslow_or_deadly = slow_or_deadly:hold\n"
    )
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    settings = {"deadly": [list(map(int, prompt)) for prompt in deadly], "seconds": seconds}
    return {"PYTHONPATH": path, VARIABLE: json.dumps(settings)}
