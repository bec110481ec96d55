"""For tests: a brake on an engine, and texts that kill its process.

It is a `sitecustomize` in a folder on PYTHONPATH: Python loads it as the engine's process starts.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "TEST_ENGINE"  # JSON: `deadly`, a list of source texts; `brake`, a file
_BRAKE_S = 0.5  # for each row


def hold() -> None:
    if VARIABLE not in os.environ or "routelmt_batch.engines.child" not in sys.orig_argv:
        return
    settings = json.loads(os.environ[VARIABLE])
    models = importlib.import_module("routelmt_batch.engines.models")

    def slowed(model: type) -> None:
        add_rows = model.add

        def add(self, keys, rows):
            texts = rows["source"].to_pylist()
            if set(texts) & set(settings["deadly"]):
                os.kill(os.getpid(), signal.SIGKILL)
            brake = Path(settings["brake"])
            brake.with_name(f"rows-{os.getpid()}").touch()
            if brake.exists():
                time.sleep(_BRAKE_S * len(texts))
            add_rows(self, keys, rows)

        model.add = add

    slowed(models.Generator)
    slowed(models.ScorerModel)


def environment(folder: Path, deadly: Iterable[str] = ()) -> dict[str, str]:
    """Install it into a folder: what a pool's `env` then has to hold. Its brake is on while there is a file
    `brake` in the folder; a process with rows leaves a file `rows-<pid>`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(Path(__file__).read_text() + "\n\nhold()\n")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {
        "PYTHONPATH": path,
        VARIABLE: json.dumps({"deadly": list(deadly), "brake": str(folder / "brake")}),
    }
