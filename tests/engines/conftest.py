"""Jobs on real engines, joining the tests' one Ray session."""

import contextlib
from collections.abc import Iterator

import pytest

from routelmt_batch.engines.pools import Pools
from routelmt_batch.engines.session import Session
from routelmt_batch.files.write import kept_folder
from routelmt_batch.store.folder import Folder


@pytest.fixture
def open_engine(ray_session):
    @contextlib.contextmanager
    def opened(folder: Folder) -> Iterator[Pools]:
        with kept_folder(folder.logs) as logs, Session(logs, verbose=True) as session:
            yield Pools(session)

    return opened
