"""How long something is waited for: durations in specs, and a clock that only counts its own waits."""

import pytest

from routelmt_batch.errors import SpecError
from routelmt_batch.patience import Patience, Silence, in_words
from routelmt_batch.spec.file import load


def test_silence_adds_up_waits_until_something_changes():
    silence = Silence()
    assert [silence.after(2, value) for value in "aaabbb"] == [0, 2, 4, 0, 2, 4]


def test_a_spec_says_how_long_engines_are_waited_for(make_spec):
    assert load(make_spec()).run.patience == Patience(stall_s=1800, start_s=3600)
    given = load(make_spec(run__stall_timeout="90s", run__start_timeout="1h30m")).run
    assert given.patience == Patience(stall_s=90, start_s=5400)


@pytest.mark.parametrize("value", [1800, "1800", "0m", "", "soon", None])
def test_a_duration_needs_a_unit_and_is_not_zero(make_spec, value):
    with pytest.raises(SpecError, match=r"run.stall_timeout: .*give hours, minutes or seconds"):
        load(make_spec(run__stall_timeout=value))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.5, "0.5 s"), (90, "90 s"), (1800, "30 min"), (5400, "90 min")]
)
def test_durations_in_messages(seconds, words):
    assert in_words(seconds) == words
