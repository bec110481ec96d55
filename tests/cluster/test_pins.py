"""The pins: each a version that a public index has, and the same in all environments where they must be."""

import re
from importlib.metadata import version

import pytest

from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "cluster").glob("requirements-*.txt"))


def pins(path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().split())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_is_one_public_version(path):
    for line in path.read_text().splitlines():
        # A local version, `2.13.0+cpu`, is on no public index, and no build for another machine.
        assert re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.]+", line), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_is_the_same_everywhere_that_it_is(path):
    assert pins(path).get("ray") == (None if "quality" in path.stem else version("ray"))


def test_the_gpu_build_of_torch_is_whole():
    """What the CUDA build of torch 2.13.0 names as its own requirements (its metadata on PyPI)."""
    gpu = pins(REPOSITORY / "cluster" / "requirements-gpu.txt")
    wanted = {
        "torch": "2.13.0",
        "triton": "3.7.1",
        "nvidia-nccl-cu13": "2.29.7",
        "nvidia-cudnn-cu13": "9.20.0.48",
    }
    assert wanted.items() <= gpu.items()
    assert gpu["cuda-toolkit"].startswith("13.0.3")
