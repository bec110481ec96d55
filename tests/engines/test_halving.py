"""An engine that certain rows kill, in this process: who is given up, and after how many deaths."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routelmt_batch.engines.halving import Halving
from routelmt_batch.engines.models import RowsFailed
from routelmt_batch.engines.process import EngineBroken, EngineDied

HARMLESS = -1


class Mortal:
    """Answers a row with twice its number, `step` rows at a time. With a killer in it, it dies as a whole,
    after some answers."""

    def __init__(self, kills=lambda rows: False, step: int = 3) -> None:
        self.kills = kills
        self.step = step
        self.alive = True
        self.inside: dict[int, int] = {}  # rows by their keys
        self.answered: list[int] = []
        self.most_inside = 0
        self.deaths = 0
        self.starts = 0

    def send(self, keys, rows) -> None:
        self.inside.update(zip(keys, rows, strict=True))
        self.most_inside = max(self.most_inside, len(self.inside))

    def receive(self):
        if self.alive and self.kills(set(self.inside.values())):
            self.alive = False
            self.deaths += 1
        if not self.alive:
            raise EngineDied
        some = list(self.inside.items())[: self.step]
        for key, _ in some:
            del self.inside[key]
        self.answered += [row for _, row in some]
        return [(key, 2 * row) for key, row in some]

    def start(self) -> None:
        self.starts += 1
        assert not self.alive
        self.alive, self.inside = True, {}


def results(engine: Mortal, rows: int, room: int, calls: int = 3, **settings) -> list:
    """What each row gets; of some calls at once, each with a share of the rows."""
    halving = Halving(
        engine,
        room,
        lambda rows, places: [rows[place] for place in places],
        lambda rows: [HARMLESS],
        lambda error: error.name if isinstance(error, RowsFailed) else None,
        **settings,
    )
    found: list = [None] * rows
    shares = [list(range(rows))[start::calls] for start in range(min(calls, rows))]

    def call(share: list[int]) -> None:
        try:
            for place, result in halving.run(share, range(len(share))).items():
                found[share[place]] = result
        except Exception as error:
            for row in share:
                found[row] = error

    threads = [threading.Thread(target=call, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert engine.most_inside <= room
    engine.answered = [row for row in engine.answered if row != HARMLESS]
    return found


class Scorer(Mortal):
    """Answers rows as Mortal does, in blocks of `step`. It lives, and fails on a block with a bad row in it."""

    def __init__(self, bad=lambda row: "", step: int = 3) -> None:
        super().__init__(step=step)
        self.bad = bad
        self.blocks = 0

    def receive(self):
        some = list(self.inside.items())[: self.step]
        self.blocks += 1
        for _, row in some:
            if name := self.bad(row):
                for taken, _ in some:
                    del self.inside[taken]
                raise RowsFailed([taken for taken, _ in some], name, f"it is {row}")
        return super().receive()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 9), st.data())
def test_rows_that_a_scorer_fails_on_have_the_errors_name_and_the_others_their_score(rows, room, step, data):
    names = data.draw(st.dictionaries(st.integers(0, rows - 1), st.sampled_from(["KeyError", "ValueError"])))
    engine = Scorer(lambda row: names.get(row, ""), step)
    assert results(engine, rows, room) == [names.get(row, 2 * row) for row in range(rows)]
    assert sorted(engine.answered) == sorted(set(range(rows)) - set(names)), "each is answered once"
    assert not engine.starts


def test_one_bad_row_of_many_is_found_in_few_calls():
    engine = Scorer(lambda row: "ValueError" if row == 500 else "", step=1024)
    results(engine, 1024, 2048, calls=1)
    assert engine.blocks < 30


def test_a_scorer_that_fails_on_every_row_ends_it_at_once_with_what_it_says_of_a_harmless_one():
    engine = Scorer(lambda row: "OSError", step=1024)
    found = results(engine, 1024, 2048)
    assert {str(each) for each in found} == {"it fails even on a harmless row: OSError: it is -1"}
    assert engine.blocks < 14, "a model that does not load is not tried a thousand times"


def test_a_scorer_that_has_worked_is_not_blamed_for_a_last_block_of_bad_rows():
    engine = Scorer(lambda row: "ValueError" if row >= 20 else "", step=8)
    assert results(engine, 22, 8, calls=1) == [*(2 * row for row in range(20)), "ValueError", "ValueError"]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.data())
def test_the_killers_alone_are_given_up(rows, room, data):
    killers = data.draw(st.sets(st.integers(0, rows - 1), max_size=12))
    engine = Mortal(lambda inside: bool(inside & killers))
    found = results(engine, rows, room)
    assert found == [None if row in killers else 2 * row for row in range(rows)]
    assert sorted(engine.answered) == sorted(set(range(rows)) - killers), "each is answered once"
    assert engine.starts == engine.deaths
    # Twice together, once for each level of halves, for each killer; see the module's words.
    assert engine.deaths <= len(killers) * (2 + rows.bit_length())


@pytest.mark.parametrize("killer", range(8))
def test_one_in_eight_costs_five_deaths_at_most(killer):
    engine = Mortal(lambda inside: killer in inside)
    results(engine, 8, 8, calls=1)
    assert 3 <= engine.deaths <= 5


def test_a_death_by_something_else_is_no_rows_fault():
    engine = Mortal(lambda inside: engine.deaths < 1)
    assert results(engine, 20, 8) == [2 * row for row in range(20)]
    assert engine.deaths == 1


def test_rows_that_kill_it_only_together_all_pass():
    engine = Mortal(lambda inside: {2, 5} <= inside)
    assert results(engine, 8, 8) == [2 * row for row in range(8)]


@pytest.mark.parametrize("room", [16, 4])
def test_an_engine_that_dies_of_everything_is_broken_for_every_row(room):
    engine = Mortal(lambda inside: True)
    found = results(engine, 16, room)
    assert {type(each) for each in found} == {EngineBroken}
    assert engine.deaths <= 12


def test_many_killers_in_succession_do_not_make_an_engine_broken():
    engine = Mortal(lambda inside: bool(inside & set(range(10, 20))))
    assert results(engine, 32, 32) == [None if 10 <= row < 20 else 2 * row for row in range(32)]


def test_an_engine_that_died_with_nothing_in_it_is_started_once():
    """It is found dead by the rows that come next."""
    engine = Mortal()
    engine.alive = False
    assert results(engine, 9, 3) == [2 * row for row in range(9)]
    assert engine.starts == 1


def test_an_engine_that_does_not_start_again_ends_it():
    engine = Mortal(lambda inside: 1 in inside)
    engine.start = lambda: 1 / 0
    assert {type(each) for each in results(engine, 4, 4, calls=1)} == {ZeroDivisionError}


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_row_whose_result_is_none_yet_is_sent_again_as_often_as_it_may(retries):
    engine = Mortal()
    found = results(engine, 6, 4, again=lambda result: result == 4, retries=retries)
    assert found == [2 * row for row in range(6)]
    assert engine.answered.count(2) == 1 + retries and engine.answered.count(3) == 1
