"""Weights that are pickles: loading one can run code that is in it. They are named, or refused.

It reads names of files only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from routelmt_batch.errors import ModelError
from routelmt_batch.files.uris import is_remote
from routelmt_batch.progress import Bars
from routelmt_batch.spec import COMET, Metric, Part, Pool, Router, Translator
from routelmt_batch.store import checkpoints

_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_READ_NO_WEIGHTS = ("length", "rarity", "random")  # kinds of routers


def check_pickles(spec: Part, bars: Bars) -> None:
    """Warn of pools whose weights are pickles, unless their `allow_pickle` says that they are trusted.

    Raises:
        ModelError: they are on the hub, where anybody can publish weights, and are not said to be trusted.
    """
    for key, pool in _pools(spec):
        if pool.allow_pickle or not (names := ", ".join(pickled(pool))):
            continue
        what = f"{key} {pool.source}: its weights ({names}) are pickles, and to load one can run code in it"
        if _is_on_hub(pool.source.removeprefix(COMET)):
            raise ModelError(
                f"{what}. Give a model with safetensors or, if you trust its owner, set {key}.allow_pickle "
                "to true"
            )
        bars.warn(f"{what}. If you trust them, set {key}.allow_pickle to true")


def pickled(pool: Pool) -> list[str]:
    """Names of the files that are unpickled when a pool's model is loaded."""
    source = pool.source.removeprefix(COMET)
    if pool.source.startswith(COMET) or (isinstance(pool, Router) and pool.kind == "sentinel"):
        return [Path(source).name if source.endswith(".ckpt") else checkpoints.COMET_WEIGHTS]
    names = checkpoints.file_names(source)
    as_pickle = isinstance(pool, Translator) and pool.engine.get("load_format") == "pt"
    if any(name.endswith(".safetensors") for name in names) and not as_pickle:
        return []
    return sorted(name for name in names if name.endswith(_PICKLED))


def _pools(spec: Part, prefix: str = "") -> Iterator[tuple[str, Pool]]:
    """The pools of a spec whose models have weights, by their keys."""
    for name, part in spec:
        if isinstance(part, Pool):
            without = (isinstance(part, Router) and part.kind in _READ_NO_WEIGHTS) or (
                isinstance(part, Metric) and not part.source.startswith(COMET)
            )
            if not without:
                yield f"{prefix}{name}", part
        elif isinstance(part, Part):
            yield from _pools(part, f"{prefix}{name}.")


def _is_on_hub(source: str) -> bool:
    return not (is_remote(source) or source.endswith(".ckpt") or Path(source).is_dir())
