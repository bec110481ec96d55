"""Jobs on real engines, joining the tests' one Ray session."""

import contextlib
from collections.abc import Iterator

import pytest

from routelmt_batch.engines.session import Session
from routelmt_batch.engines.vllm import VllmEngine
from routelmt_batch.workspace import Folder


@pytest.fixture
def open_engine(ray_session):
    @contextlib.contextmanager
    def opened(folder: Folder) -> Iterator[VllmEngine]:
        with Session(folder.logs, verbose=True) as session:
            yield VllmEngine(session)

    return opened
