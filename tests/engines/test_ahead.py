"""Engines that start while others run: those of the next pass, and those of a pool that grows."""

import contextlib
import time
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest

from routelmt_batch.engines.lanes import Lane
from routelmt_batch.engines.pools import Pools
from routelmt_batch.engines.session import Session
from routelmt_batch.routers.scorers import Length, Random
from routelmt_batch.rows import SCORES
from routelmt_batch.spec import Pool
from routelmt_batch.stages.translate import NOT_YET_KNOWN
from tests.conftest import MODELS
from tests.engines.given import ALL, Given, keep_results, requests
from tests.waiting import wait_for

pytestmark = pytest.mark.engine


@pytest.fixture
def pools(ray_session, tmp_path):
    """In the tests' session as if it were a cluster: of one machine without GPUs nothing starts ahead."""
    with Session(tmp_path / "logs", address="auto", verbose=True) as session:
        yield Pools(session)


def lane(label, folder, rows: int = 40) -> Lane:
    texts = [f"{label} {row}" for row in range(rows)]
    return Lane(
        label,
        Pool(source=""),
        [Given(requests(source=texts))],
        ALL,
        keep_results(folder),
        10,
        stage=SCORES,
        scorer=Random(1),
    )


def engines(since: float = 0.0) -> int:
    """Processes of engines that have come of this one."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += "routelmt_batch.engines.child" in process.cmdline() and process.create_time() > since
    return found


def test_a_pass_takes_engines_that_started_before_it_began(pools, tmp_path):
    first, second = lane("first", tmp_path), lane("second", tmp_path / "second")
    (tmp_path / "second").mkdir()
    running = pools.run([first])
    next(running)
    asked = time.time()
    assert pools.start_ahead([replace(second, units=(), pending=NOT_YET_KNOWN)], [first])
    assert not pools.start_ahead([second], [first]), "once"
    wait_for(lambda: engines(asked), "the second's engine", within_s=30)
    assert len(list(running)) == 3
    began = time.time()
    receipts = list(pools.run([second]))
    assert [receipt.lane for receipt in receipts] == ["second"] * 4
    assert all(receipt.started_at < began for receipt in receipts), "it was up, or on its way"
    table = pq.read_table(tmp_path / "second")
    assert sorted(table["row"].to_pylist()) == list(range(40)) and not any(table["error"].to_pylist())


def test_engines_that_no_pass_takes_are_sent_home(pools, tmp_path):
    first, second = lane("first", tmp_path), lane("second", tmp_path)
    assert pools.start_ahead([replace(second, units=(), pending=NOT_YET_KNOWN)], [])
    # Its parts go elsewhere: these are not the engines that it needs.
    other = replace(second, write=keep_results(tmp_path / "logs"))
    (tmp_path / "logs").mkdir(exist_ok=True)
    began = time.time()
    assert all(receipt.started_at > began for receipt in pools.run([other]))
    assert pools.start_ahead([replace(second, units=(), pending=NOT_YET_KNOWN)], [first])
    wait_for(engines, "its engine", within_s=30)
    pools.dismiss()
    wait_for(lambda: not engines(), "its end", within_s=30)
    assert len(list(pools.run([first]))) == 4


def test_nothing_starts_ahead_where_there_is_no_room(pools, ray_session, tmp_path):
    first, second = lane("first", tmp_path), lane("second", tmp_path)
    wide = replace(first, pool=Pool(source="", replicas={"min": 1, "max": 16}))
    assert not pools.start_ahead([second], [wide]), "the pass that runs may grow"
    with Session(tmp_path / "logs", verbose=True) as session:
        assert not Pools(session).start_ahead([second], [first]), "side by side on the same cores"


def test_a_pool_grows_while_there_is_work_for_more_engines(pools, tmp_path):
    # Long texts: a scorer that is too quick never has all its calls taken.
    texts = ["far too long " * 10_000] * 200
    rows = replace(
        lane("many", tmp_path),
        pool=Pool(source="", replicas={"min": 1, "max": 2}),
        units=[Given(requests(source=texts))],
        part_rows=1,
        scorer=Length(str(MODELS / "small")),
    )
    receipts = list(pools.run([rows]))
    assert len(receipts) == 200 and len({receipt.engine for receipt in receipts}) == 2
