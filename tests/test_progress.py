"""How progress is told."""

import pytest

from routelmt_batch.progress import speed


@pytest.mark.parametrize(
    ("per_second", "told"),
    [(1234.4, "1,234 rows/s"), (1.0, "1 rows/s"), (0.4, "2.5 s/row"), (0.0, "0 rows/s")],
)
def test_what_is_slow_is_told_in_seconds(per_second, told):
    assert speed(per_second, "rows") == told
