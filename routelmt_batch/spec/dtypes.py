"""Resolves `dtype: auto`: bfloat16 if every machine of the pool computes in it, else float32.

A job resolves it once, when it begins. This module looks at processors and knows no engine.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from routelmt_batch.spec import Metric, PassSpec, Pool

AUTO = "auto"
BFLOAT16: Literal["bfloat16"] = "bfloat16"
FLOAT32: Literal["float32"] = "float32"
# Instructions that multiply matrices in bfloat16, as /proc/cpuinfo names them: AVX-512, AMX, Arm. Without
# one of them bfloat16 is about four times slower than float32.
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_GPU_CAPABILITY = 8.0  # lowest CUDA capability with bfloat16 (Ampere)

Spec = TypeVar("Spec", bound=PassSpec)
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Processors:
    """The processors of one machine: its CPU's bfloat16 instructions, if it has them, and the CUDA
    capabilities of its GPUs."""

    machine: str
    cpu_bfloat16: str | None
    gpus: tuple[float, ...] = ()

    def lacks(self, on_gpu: bool) -> str | None:
        """Why this machine does not compute in bfloat16, in words; None if it does."""
        if on_gpu:
            old = [gpu for gpu in self.gpus if gpu < _GPU_CAPABILITY]
            return f"{self.machine} has a GPU of CUDA capability {old[0]:g}" if old else None
        return None if self.cpu_bfloat16 else f"the CPU of {self.machine} has no bfloat16 instructions"


def here(machine: str = "this machine") -> list[Processors]:
    """The processors of this machine."""
    flags = cpu_flags()
    return [Processors(machine, next((flag for flag in _CPU_FLAGS if flag in flags), None), _gpus())]


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = "Features" if platform.machine() == "aarch64" else "flags"
    return set(next((line for line in lines if line.startswith(name)), "").split())


def _gpus() -> tuple[float, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return tuple(map(float, answer.stdout.split())) if answer.returncode == 0 else ()


def choose(pool: Pool, machines: Sequence[Processors]) -> tuple[Literal["bfloat16", "float32"], str]:
    """The dtype of a pool on these machines, and the reason in words."""
    with_gpus = [machine for machine in machines if machine.gpus]
    on_gpu = bool(with_gpus) if pool.gpus is None else pool.gpus > 0
    if on_gpu and not with_gpus:
        return BFLOAT16, "current GPUs compute in it (the cluster has no GPU node yet)"
    candidates = with_gpus if on_gpu else machines
    lacking = [reason for machine in candidates if (reason := machine.lacks(on_gpu))]
    if lacking:
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return FLOAT32, f"{lacking[0]}{more}"
    return BFLOAT16, "GPUs compute in it" if on_gpu else "the CPU has instructions for it"


class Choice(NamedTuple):
    """The dtype that a pool's `auto` became."""

    pool: str
    dtype: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pool}.dtype auto: {self.dtype}, because {self.reason}"


def settle(
    spec: Spec, known: Mapping[str, str], look: Callable[[], Sequence[Processors]] = here
) -> tuple[Spec, dict[str, str], list[Choice]]:
    """Replace `dtype: auto` in every pool of a spec.

    Args:
        known: dtypes by pool that the job began with. A resumed job keeps them.
        look: finds the machines that the job may run on. It is called only if a pool needs it.

    Returns:
        The spec; the dtypes that replaced `auto`, by pool (`models.small`); the choices made now.
    """
    machines: list[Processors] = []
    chosen: dict[str, str] = {}
    choices: list[Choice] = []

    def settled(key: str, model: Model) -> Model:
        changes: dict[str, object] = {}
        for name in type(model).model_fields:
            value, inner = getattr(model, name), f"{key}.{name}".lstrip(".")
            if isinstance(value, BaseModel):
                changes[name] = settled(inner, value)
        if isinstance(model, Pool) and not isinstance(model, Metric) and model.dtype == AUTO:
            if key not in known:
                if not machines:
                    machines.extend(look())
                choices.append(Choice(key, *choose(model, machines)))
            chosen[key] = changes["dtype"] = known.get(key) or choices[-1].dtype
        return model.model_copy(update=changes)

    return settled("", spec), chosen, choices
