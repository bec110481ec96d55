"""jobs/nightly.yaml, the spec to start from: read as a job reads it, nothing downloaded."""

import pytest

from routelmt_batch.spec.file import load
from tests.conftest import REPOSITORY

NIGHTLY = REPOSITORY / "jobs" / "nightly.yaml"
LINES = NIGHTLY.read_text(encoding="utf8").splitlines()


def test_it_is_a_job_from_bucket_to_bucket():
    spec = load(NIGHTLY)
    assert (spec.models.small.source, spec.models.large.source) == (
        "s3://corpora/models/LMT-60-0.6B",
        "s3://corpora/models/LMT-60-8B",
    )
    assert spec.router.source == "s3://corpora/routers/lmt-60"
    assert (spec.input.uri, spec.output.uri) == ("s3://corpora/in", "s3://corpora/out/by-hand")
    assert spec.metric and spec.metric.checkpoint == "Unbabel/wmt22-cometkiwi-da"
    assert spec.models.prompt_limit_tokens == 1536, "as its comment says"


@pytest.mark.parametrize("line", [line for line in LINES if line and not line.startswith("#")])
def test_every_line_says_what_it_is(line):
    # A section's name may stand alone: its keys say it.
    assert "#" in line or line in ("input:", "output:", "budget:", "models:", "router:", "run:")


def test_a_night_sets_budget_and_output():
    spec = load(NIGHTLY, budget_fraction="0.2", output_uri="s3://corpora/out/2026-11-22")
    assert (str(spec.budget.fraction), spec.output.uri) == ("0.2", "s3://corpora/out/2026-11-22")
