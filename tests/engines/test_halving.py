"""An engine that certain rows kill, in this process: who is given up, and after how many deaths."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routelmt_batch.engines.halving import EngineBroken, EngineDied, Halving

HARMLESS = -1


class Mortal:
    """Answers a row with twice its number. A batch with a killer in it dies as a whole, some rows after
    the first answers."""

    def __init__(self, kills=lambda rows: False) -> None:
        self.kills = kills
        self.alive = True
        self.inside: set[int] = set()
        self.answered: list[int] = []
        self.deaths = 0
        self.starts = 0

    async def ask(self, row: int) -> int:
        self.inside.add(row)
        try:
            await asyncio.sleep(0)
            if self.alive and self.kills(self.inside):
                self.alive = False
                self.deaths += 1
            await asyncio.sleep(0)
            if not self.alive:
                raise EngineDied
        finally:
            self.inside.discard(row)
        self.answered.append(row)
        return 2 * row

    def restart(self) -> None:
        self.starts += 1
        assert not self.alive and not self.inside
        self.alive = True


def results(engine: Mortal, rows: int, room: int) -> list:
    async def run() -> list:
        halving = Halving(engine.ask, engine.restart, room, lambda row: HARMLESS)
        sent = asyncio.gather(*(halving.send(row) for row in range(rows)), return_exceptions=True)
        return await asyncio.wait_for(sent, 20)

    found = asyncio.run(run())
    engine.answered = [row for row in engine.answered if row != HARMLESS]
    return found


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
    results(engine, 8, 8)
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
    assert {type(each) for each in found[3:]} == {EngineBroken}
    assert engine.deaths <= 12


def test_many_killers_in_succession_do_not_make_an_engine_broken():
    engine = Mortal(lambda inside: bool(inside & set(range(10, 20))))
    assert results(engine, 32, 32) == [None if 10 <= row < 20 else 2 * row for row in range(32)]


def test_an_engine_that_dies_with_nothing_in_it_is_started_once():
    """It is found dead by the rows that a search let in again."""

    class Idle(Mortal):
        idle_deaths = 0

        async def ask(self, row: int) -> int:
            if row > 2 and not self.idle_deaths:
                self.alive, self.idle_deaths = False, 1
            if not self.alive:
                raise EngineDied
            return await super().ask(row)

    engine = Idle(lambda inside: 2 in inside)
    assert results(engine, 9, 3) == [0, 2, None, *(2 * row for row in range(3, 9))]
    assert engine.starts == engine.deaths + engine.idle_deaths


def test_an_engine_that_does_not_start_again_ends_it():
    engine = Mortal(lambda inside: 1 in inside)
    engine.restart = lambda: 1 / 0
    assert {type(each) for each in results(engine, 4, 4)} == {ZeroDivisionError}


def test_an_error_of_a_row_is_its_own():
    engine = Mortal(lambda inside: 3 in inside)
    ask = engine.ask

    async def fails(row: int) -> int:
        if row == 1:
            raise ValueError("no such token")
        return await ask(row)

    engine.ask = fails
    found = results(engine, 4, 4)
    assert isinstance(found[1], ValueError) and [found[0], *found[2:]] == [0, 4, None]
