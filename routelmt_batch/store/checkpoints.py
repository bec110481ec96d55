"""Model checkpoints by folder, URI or hub name: existence, hashes, context length and end tokens.

It reads configuration files and hashes files; it never loads weights. A model in an object store is fetched
first.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelmt_batch import fetched
from routelmt_batch.errors import ModelError
from routelmt_batch.files.location import Location
from routelmt_batch.files.uris import is_remote
from routelmt_batch.files.uris import locate as locate_uri
from routelmt_batch.files.write import sha256_at
from routelmt_batch.progress import Bars
from routelmt_batch.spec import Pool, near
from routelmt_batch.spec.text import parse
from routelmt_batch.store.cache import fetch

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_BLOB = re.compile(r"[0-9a-f]{64}")
# Configuration, tokenizer, chat templates and code: whatever else than weights changes what a model does.
_TEXTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.yaml", "**/*.jinja", "**/*.py")
_CARD = "routelmt.json"  # its parts that matter have fingerprints of their own; `calibrate` changes it
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
COMET_WEIGHTS = "checkpoints/model.ckpt"
_COMET_SETTINGS = "hparams.yaml"


def locate(source: str, key: str, bars: Bars | None = None) -> None:
    """Check that a model exists before any engine starts.

    Raises:
        ModelError: no such folder, a folder without config.json or weights, or a hub name that
            is neither in the local cache nor on the hub.
        RoutelmtError: it cannot be fetched from its object store; see cache.fetch.
    """
    if is_remote(source):
        fetch(source, key, "config.json", bars=bars)
    folder = _folder(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{key} {source}: no config.json there; give a Hugging Face model folder")
        if not _weight_files(folder):
            raise ModelError(f"{key} {source}: no weights there (*.safetensors); give a complete folder")
    elif not _HUB_NAME.fullmatch(source):
        others = [path.name for path in folder.parent.glob("*/") if (path / "config.json").exists()]
        raise ModelError(f"{key} {source}: no such folder{near(folder.name, others)}")
    else:
        try:
            path = _hub_file(source, "config.json")
        except Exception as error:  # the hub client raises a dozen kinds; each means "not there"
            raise _not_on_hub(source, key, error) from None
        fetched.add({source: fetched.Copy(_hub(source)[0], {}, Path(path).parent.name)})


def _hub(source: str) -> tuple[str, str | None]:
    """A model's name on the hub, and the commit that this process knows of it, or else its revision."""
    found = _HUB_NAME.fullmatch(source)
    name, revision = found.groups() if found else (source, None)
    return name, fetched.commit(source) or revision


def _not_on_hub(source: str, key: str, error: Exception) -> ModelError:
    return ModelError(
        f"{key} {source}: no such folder beside the spec, and no such model in the Hugging "
        f"Face cache or on the hub ({type(error).__name__}). Check the name, or download the "
        "model and give its folder"
    )


@dataclass(frozen=True)
class CometFiles:
    """A COMET checkpoint: its .ckpt file (a path or URI) or hub name, its hparams.yaml, and the .ckpt file's
    SHA-256."""

    source: str
    hparams: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """The hub name, or the folder's name."""
        return Path(self.source).parents[1].name if self.source.endswith(".ckpt") else self.source


def comet(source: str, key: str) -> CometFiles:
    """A COMET checkpoint by its folder, its .ckpt file (each a path or URI) or its hub name.

    Raises:
        ModelError: it does not exist, or lacks hparams.yaml, which names its class.
        RoutelmtError: it cannot be fetched from its object store; see cache.fetch.
    """
    if is_remote(source):
        checkpoint = source if source.endswith(".ckpt") else f"{source.rstrip('/')}/{COMET_WEIGHTS}"
        folder = locate_uri(checkpoint).parent.parent
        fetch(str(folder), key, str(locate_uri(checkpoint).relative_to(folder)))
        path = Path(fetched.local(checkpoint))
    else:
        path = Path(source).absolute()
        path = path / COMET_WEIGHTS if path.is_dir() else path
        checkpoint = str(path)
    if path.suffix == ".ckpt":
        settings = path.parents[1] / _COMET_SETTINGS
        for file in (path, settings):
            if not file.is_file():
                raise ModelError(
                    f"{key} {source}: no {file}; a COMET checkpoint is a folder with {_COMET_SETTINGS} "
                    f"and {COMET_WEIGHTS}"
                )
        return CometFiles(checkpoint, _settings(settings), _digest(path))
    if not _HUB_NAME.fullmatch(source):
        raise ModelError(f"{key} {source}: no such folder or .ckpt file; give one, or a hub name")
    try:
        return CometFiles(source, _settings(Path(_hub_file(source, _COMET_SETTINGS))), _comet_digest(source))
    except ModelError:
        raise
    except Exception as error:  # see locate
        raise _not_on_hub(source, key, error) from None


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = parse(path.read_text(encoding="utf8")).value
    except ValueError as error:
        raise ModelError(f"{path}: not valid YAML: {error}") from None
    return settings if isinstance(settings, dict) else {}


def _comet_digest(source: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, COMET_WEIGHTS)
    return _digest(Path(cached)) if isinstance(cached, str) else _hub_lists(source)[COMET_WEIGHTS]


@functools.lru_cache(maxsize=16)
def _hub_file(source: str, name: str) -> str:
    from huggingface_hub import hf_hub_download, logging, try_to_load_from_cache

    logging.set_verbosity_error()  # it would log each retry; our error reports the outcome
    model, revision = _hub(source)
    cached = try_to_load_from_cache(model, name, revision=revision)
    if isinstance(cached, str):
        return cached
    return str(hf_hub_download(model, name, revision=revision, etag_timeout=10))


def config(source: str, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a checkpoint; empty if the checkpoint does not have it. Of a model in an object store
    that is not fetched yet, only this file is read."""
    if is_remote(source) and not fetched.copies(source):
        path: Path | Location | None = locate_uri(source) / name
    else:
        path = _file(source, name)
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=16)
def weights_hash(source: str) -> str:
    """SHA-256 over the names and SHA-256s of a checkpoint's weight files.

    Files in a Hugging Face cache are named by their SHA-256 and are not read. For a hub name that
    is not in the cache, the hub's list of file hashes is used, without a download.
    """
    folder = _folder(source)
    if folder.is_dir():
        digests = {file.name: _digest(file) for file in _weight_files(folder)}
    else:
        digests = _hub_digests(source)
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def texts(source: str) -> Mapping[str, str]:
    """SHA-256s of a checkpoint's configuration, tokenizer, chat templates and code, by their paths in its
    folder. Of a hub name: only its commit, which holds all of them."""
    folder = _folder(source)
    if not folder.is_dir():
        return {"commit": Path(_hub_file(source, "config.json")).parent.name}
    paths = {path for pattern in _TEXTS for path in folder.glob(pattern) if path.is_file()}
    names = {path.relative_to(folder): path for path in paths}
    # Folders such as `_train` and `.git` hold no part of the model.
    meant = {name: path for name, path in names.items() if not name.parts[0].startswith(("_", "."))}
    return {str(name): _digest(path) for name, path in sorted(meant.items()) if str(name) != _CARD}


@functools.lru_cache(maxsize=64)
def content(path: str) -> str:
    """SHA-256 of a file, or over the weights, configuration, tokenizer and code of a folder."""
    if not Path(path).is_dir():
        return _digest(Path(path))
    parts = {"weights": weights_hash(path), **texts(path)}
    return hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in parts.items()).encode()
    ).hexdigest()


def _file(source: str, name: str) -> Path | None:
    """A file of a checkpoint, from its folder, the cache or the hub; None if it does not exist."""
    path = _folder(source) / name
    if not path.parent.is_dir():
        try:
            path = Path(_hub_file(source, name))
        except Exception:  # see locate; an absent optional file is no fault
            return None
    return path if path.is_file() else None


def _folder(source: str) -> Path:
    """A model's folder on this machine; a model in an object store is fetched first."""
    return Path(fetch(source).folder if is_remote(source) else source)


def _weight_files(folder: Path) -> list[Path]:
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def file_names(source: str) -> list[str]:
    """Names of the files on the top level of a checkpoint: of its folder, or of the cache or the hub."""
    folder = _folder(source)
    if not folder.is_dir():
        folder = Path(_hub_file(source, "config.json")).parent
        if not _weight_files(folder):
            return [name for name in _hub_lists(source) if "/" not in name]
    return [path.name for path in folder.iterdir()]


def _digest(file: Path) -> str:
    blob = file.resolve()
    if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        return blob.name
    return fetched.digest(file) or sha256_at(blob)


def _hub_digests(source: str) -> dict[str, str]:
    cached = Path(_hub_file(source, "config.json")).parent
    if files := _weight_files(cached):
        return {file.name: _digest(file) for file in files}
    return {name: digest for name, digest in _hub_lists(source).items() if name.endswith(".safetensors")}


def _hub_lists(source: str) -> dict[str, str]:
    """The SHA-256 of each large file of a model, as the hub lists it."""
    from huggingface_hub import HfApi

    name, revision = _hub(source)
    siblings = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    return {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs}


def context_tokens(source: str) -> int | None:
    """The longest sequence that the checkpoint's configuration allows, or None if it gives no limit."""
    value = config(source).get("max_position_embeddings")
    return value if isinstance(value, int) else None


def end_tokens(source: str) -> tuple[int, ...]:
    """Token ids that end a generation, from generation_config.json, else from config.json."""
    for name in ("generation_config.json", "config.json"):
        value = config(source, name).get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(value)
    return ()


def check_pool(key: str, pool: Pool, bars: Bars | None = None) -> None:
    """Raises ModelError if a pool's model does not exist or its context is shorter than the pool asks for."""
    locate(pool.source, f"{key}.source", bars)
    context = context_tokens(pool.source)
    if context is not None and pool.max_model_len_tokens > context:
        raise ModelError(
            f"{key}.max_model_len_tokens {pool.max_model_len_tokens}: {pool.source} reads {context} "
            "tokens at most; give no more"
        )
