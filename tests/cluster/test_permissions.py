"""The policy that docs/pages/clusters.md shows suffices for a job, and a job asks for nothing beyond it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import requests

from tests.conftest import REPOSITORY
from tests.files.proxy import Proxy, faulty
from tests.files.s3 import s3_server

GUIDE = (REPOSITORY / "docs/pages/clusters.md").read_text(encoding="utf8")
POLICY = json.loads(re.search(r"```json\n(.*?)```", GUIDE, re.DOTALL).group(1))
BUCKET = "arn:aws:s3:::corpora"
ACTIONS = {
    "get": "s3:GetObject",
    "head": "s3:GetObject",
    "list": "s3:ListBucket",
    "put": "s3:PutObject",
    "delete": "s3:DeleteObject",
}


def several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def is_allowed(action: str, key: str) -> bool:
    """As IAM decides: an action on an object is on its name, a list on the bucket, with its prefix."""
    for statement in POLICY["Statement"]:
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*")
        resource = BUCKET if action == "s3:ListBucket" else f"{BUCKET}/{key}"
        if (
            statement["Effect"] == "Allow"
            and action in several(statement["Action"])
            and any(fnmatchcase(resource, pattern) for pattern in several(statement["Resource"]))
            and any(fnmatchcase(key, pattern) for pattern in several(prefixes))
        ):
            return True
    return False


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[Proxy]:
    with s3_server(tmp_path / "s3") as server:
        requests.put(f"{server.endpoint}/corpora", timeout=30).raise_for_status()
        with faulty(replace(server, bucket="corpora")) as proxy:
            for name, value in proxy.environ.items():
                monkeypatch.setenv(name, value)
            yield proxy


def test_the_policy_suffices_and_nothing_beyond_it_is_asked_for(invoke, store, make_spec, corpus):
    store.server.put_folder(corpus, "in")
    settings = ("--set", "input.uri=s3://corpora/in", "--output", "s3://corpora/out/1")
    assert invoke("plan", make_spec(), *settings, "--limit", "20").exit_code == 0
    assert invoke("run", make_spec(), *settings, "--limit", "20").exit_code in (0, 3)
    assert invoke("report", "s3://corpora/out/1").exit_code == 0
    assert invoke("clean", "s3://corpora/out/1").exit_code == 0
    asked = set(store.requests)
    assert {method for method, _ in asked} == ACTIONS.keys()
    for method, keys in asked:
        for key in keys.split("\n"):
            assert is_allowed(ACTIONS[method], key), f"{method} {key}"
            # S3 says that an object is not there only to who may list it: it compares the object's name with
            # the condition on prefixes.
            assert is_allowed("s3:ListBucket", key), f"{method} {key}"


@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("s3:PutObject", "in/a.parquet"),
        ("s3:DeleteObject", "models/LMT-60-8B/config.json"),
        ("s3:GetObject", "internal/salaries"),
        ("s3:ListBucket", ""),
        ("s3:ListBucket", "other/"),
    ],
)
def test_the_policy_allows_no_more(action, key):
    assert not is_allowed(action, key)
