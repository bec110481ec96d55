"""What `dtype: auto` means on some machines: bfloat16 where they compute in it, else float32.

Resolved once, when a job begins. It looks at processors and knows no engine.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from routelmt_batch.spec import Metric, PassSpec, Pool

AUTO = "auto"
BFLOAT16: Literal["bfloat16"] = "bfloat16"
FLOAT32: Literal["float32"] = "float32"
# Instructions that multiply matrices in bfloat16, as /proc/cpuinfo names them: AVX-512, AMX, Arm. Without
# one of them bfloat16 is about four times slower than float32.
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_GPU_CAPABILITY = 8.0  # of CUDA, from which on GPUs have bfloat16 (Ampere)

Spec = TypeVar("Spec", bound=PassSpec)
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Processors:
    """What one machine computes with: the instruction set of its CPU that counts here, if it has one, and
    its GPUs' CUDA capabilities."""

    machine: str
    cpu_bfloat16: str | None
    gpus: tuple[float, ...] = ()

    def lacks(self, on_gpu: bool) -> str | None:
        """Why this machine is none for bfloat16, in words; None if it is."""
        if on_gpu:
            old = [one for one in self.gpus if one < _GPU_CAPABILITY]
            return f"{self.machine} has a GPU of CUDA capability {old[0]:g}" if old else None
        return None if self.cpu_bfloat16 else f"the CPU of {self.machine} has no bfloat16 instructions"


def here(machine: str = "this machine") -> list[Processors]:
    """This machine's."""
    flags = cpu_flags()
    return [Processors(machine, next((one for one in _CPU_FLAGS if one in flags), None), _gpus())]


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
    """The dtype of a pool on some machines, and why, in words."""
    with_gpus = [one for one in machines if one.gpus]
    on_gpu = bool(with_gpus) if pool.gpus is None else pool.gpus > 0
    if on_gpu and not with_gpus:
        return BFLOAT16, "the GPUs of today compute in it (no node with one is there yet)"
    found = with_gpus if on_gpu else machines
    lacking = [told for one in found if (told := one.lacks(on_gpu))]
    if lacking:
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return FLOAT32, f"{lacking[0]}{more}"
    return BFLOAT16, "GPUs compute in it" if on_gpu else "the CPU has instructions for it"


def settle(
    spec: Spec, known: Mapping[str, str], look: Callable[[], Sequence[Processors]] = here
) -> tuple[Spec, dict[str, str], list[str]]:
    """A spec whose pools say `auto` no more.

    Args:
        known: dtypes by pool that the job began with: it keeps them wherever it goes on.
        look: the machines that it may run on; asked only if a pool needs it.

    Returns:
        The spec, the dtypes that stood as `auto` by pool (`models.small`), and of those chosen now why.
    """
    machines: list[Processors] = []
    chosen: dict[str, str] = {}
    told: list[str] = []

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
                dtype, why = choose(model, machines)
                told.append(f"{key}.dtype auto: {dtype}, because {why}")
            chosen[key] = changes["dtype"] = known.get(key) or dtype
        return model.model_copy(update=changes)

    return settled("", spec), chosen, told
