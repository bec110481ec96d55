"""Every reason that a row of a job may carry has words on the page, and the right kind."""

from routelmt_batch import rows
from routelmt_batch.checks.rules import CHECK_REASONS
from routelmt_batch.page.reasons import REASONS, kind


def test_a_doubtful_translation_is_a_translation():
    doubts = set(CHECK_REASONS) - set(rows.SKIP_REASONS)
    assert doubts <= REASONS.keys(), "a new check needs words for the page"
    assert {kind(reason) for reason in doubts} == {"translated"}


def test_what_happened_to_a_row_follows_from_its_reason():
    assert {kind(reason) for reason in rows.SKIP_REASONS} == {"skipped"}
    assert kind(rows.ENGINE_KILLED) == "quarantined" and kind(rows.LARGE_FAILED) == "fallback"
    assert {kind(rows.ENGINE_ERROR), kind(rows.EMPTY_OUTPUT), kind("never heard of")} == {"failed"}
