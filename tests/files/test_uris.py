"""Paths and URIs: what is taken, and what is refused in words without secrets."""

import pytest

from routelmt_batch.errors import UsageError
from routelmt_batch.files.uris import locate, on_disk

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:/bucket/x", "s3:/bucket/x: a URI has two slashes: s3://bucket/x. If it is a path"),
        ("file:/data/x", "file:///data/x"),
        ("s3://b/a/../x", "give s3://b/x, or rename the objects"),
        ("s3://b/out//night", "give s3://b/out/night, or"),
        ("gs://b/./x", "give gs://b/x, or"),
        (f"az://c/x.parquet?sv=2024&sig={SECRET}", "az://c/x.parquet?***: a URI has no query"),
        (f"s3://b?X-Amz-Signature={SECRET}", "a URI has no query"),
        (f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}", "give a path, or a URI that begins"),
    ],
)
def test_what_is_no_uri_is_refused(uri, message):
    with pytest.raises(UsageError) as error:
        locate(uri)
    assert message in str(error.value) and SECRET not in str(error.value)


@pytest.mark.parametrize("uri", ["s3://b", "s3://b/in/part-?.parquet", "s3://b/lang=??/x", "a/b", "./s3:/x"])
def test_what_is_one_is_taken(uri):
    assert str(locate(uri)) == uri.removeprefix("./")


def test_a_file_on_a_disk_is_asked_for(tmp_path):
    assert on_disk(f"file://{tmp_path}/x", "a spec file") == tmp_path / "x"
    with pytest.raises(UsageError, match="s3://b/job.yaml: a spec file is on a disk; give a path"):
        on_disk("s3://b/job.yaml", "a spec file")
