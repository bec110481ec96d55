"""The cluster launcher's file, by Ray's own schema and checks."""

import jsonschema
import pytest
import yaml

from tests.cluster.kubernetes import StrictLoader
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "cluster" / "ray-up.yaml").read_text(encoding="utf8")


def checked(text: str) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.load(text, StrictLoader))  # a SafeLoader
    validate_config(config)
    return config


def test_ray_takes_it():
    config = checked(TEXT)
    (node_type,) = config["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == config["max_workers"] == 2
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("docker:", "dockers:"),
        ("run_options:", "options:"),
        ("ssh_user:", "user:"),
    ],
)
def test_a_slip_is_refused(old, new):
    with pytest.raises(jsonschema.ValidationError):
        checked(TEXT.replace(old, new, 1))
