"""Rows that really kill their engine: its process dies by SIGKILL whenever such a row reaches it."""

import contextlib

import psutil
import pytest

from tests import oracle
from tests.conftest import write_shard
from tests.engines import plugin
from tests.engines.test_kill import CHILD, Command
from tests.waiting import wait_for

pytestmark = pytest.mark.engine


def engines(command: Command) -> set[psutil.Process]:
    """The living ones, which are children of their actors."""
    found = set()
    for process in list(command.family):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and CHILD in " ".join(process.cmdline()):
                found.add(process)
    return found


def test_rows_that_kill_their_engine_are_found_though_the_actor_that_looks_for_them_is_killed(
    make_spec, tmp_path
):
    corpus = tmp_path / "deadly"
    texts = [f"There are {number} trees." for number in range(6)]
    write_shard(corpus / "a.parquet", texts)
    spec = make_spec(
        input__uri=str(corpus),
        run__part_rows=3,
        run__max_failed_fraction=0.5,
        budget__fraction=0.1,  # of five gains: no place, no large engine to start
        router__env=plugin.environment(tmp_path / "plugin", [texts[5]]),
        models__small__max_num_seqs=1,  # few suspects, so few starts until the row is found
        models__small__env=plugin.environment(tmp_path / "plugin", [texts[4]]),
    )
    command = Command(spec)
    wait_for(lambda: any((tmp_path / "out/_job/plan").glob("*")), "plan")
    scored = engines(command)
    wait_for(lambda: engines(command) - scored, "engine that translates")
    (engine,) = engines(command) - scored
    actor = engine.parent()
    wait_for(lambda: engine not in engines(command), "row that kills it")
    actor.kill()  # in the middle of the search, which another one begins anew
    code, errors = command.finish()
    assert code == 3, errors
    for name in ("score", "small"):
        assert f"{name}: 1 row killed the engine: engine_killed" in errors
    rows = oracle.check(tmp_path / "out", corpus, "0.1")
    told = {row: (line["status"], line["reason"]) for (_, row), line in rows.items()}
    assert told[4] == ("quarantined", "engine_killed")
    assert told[5] == ("ok", "no_gain"), "without a gain it is the small model's"
    assert {told[row][0] for row in (0, 1, 2, 3)} == {"ok"}
    assert oracle.scores(tmp_path / "out")["a.parquet", 5]["reason"] == "engine_killed"
    lines = oracle.log(tmp_path / "out")
    for stage in ("scores", "translations"):
        spans = [span for line in lines if line.get("stage") == stage for span in line["spans"].values()]
        assert sum(rows for rows, *_ in spans) == 6, "every row once"
    assert command.survivors(within_s=10) == []
