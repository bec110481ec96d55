"""Variables in a spec: their values reach engines and stores, and no file, log, message or submission."""

import os

import pytest
import yaml

from routelmt_batch.engines.pools import Pools
from routelmt_batch.engines.session import Session
from routelmt_batch.errors import SpecError
from routelmt_batch.spec import JobSpec
from routelmt_batch.spec.file import load, read_written
from routelmt_batch.spec.variables import Variable, check_set, variables, without_value
from routelmt_batch.submission.submit import Order

VALUE = "hunter2-and-more"
ENV = {"NCCL_SOCKET_IFNAME": VALUE}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def spec(make_spec):
    return make_spec(
        models__large__env=ENV, router__env=ENV, storage={"aws_region": VALUE, "aws_sse_kms_key_id": VALUE}
    )


def test_a_spec_is_written_with_names_alone(spec):
    loaded = load(spec)
    written = loaded.dump()
    assert VALUE not in written
    parsed = yaml.safe_load(written)
    assert parsed["models"]["large"]["env"] == {"NCCL_SOCKET_IFNAME": None}
    assert parsed["models"]["small"]["env"] == {}
    assert parsed["storage"] == {"aws_region": None, "aws_sse_kms_key_id": None}
    again = read_written(written, JobSpec)
    assert [each._replace(value=None) for each in variables(loaded)] == list(variables(again))
    assert again.dump() == written


def test_each_variable_is_known_by_its_key(spec):
    assert list(variables(load(spec))) == [
        Variable("storage.aws_region", "AWS_REGION", VALUE),
        Variable("storage.aws_sse_kms_key_id", "AWS_SSE_KMS_KEY_ID", VALUE),
        Variable("models.large.env.NCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", VALUE),
        Variable("router.env.NCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", VALUE),
    ]


def test_a_job_s_files_and_words_have_no_value(spec, invoke, tmp_path):
    for arguments in (
        ("run", "--log-format", "json"),
        ("run",),
        ("run", "--set", f"models.small.env.X={VALUE}"),
    ):
        answer = invoke(*arguments, spec)
        assert answer.exit_code == 0, answer.output
        assert VALUE not in answer.output
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert tmp_path / "out/_job/spec.yaml" in files
    assert not [path for path in files if VALUE.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "setting",
    [
        f"models.small.env=[{VALUE}]",
        f"models.small.env.X=[{VALUE}]",
        f"models.small.env.X={{{VALUE}",
        f"models.small.env={VALUE}",
        f"storage.aws_allow_http={VALUE}",
        f"storage.aws_endpoint_url={VALUE}",
        f"storage={VALUE}",
        f"guard.router.env.X=[{VALUE}]",
    ],
)
def test_no_message_about_a_wrong_value_quotes_it(setting, make_spec, invoke):
    answer = invoke("run", make_spec(), "--set", setting)
    key = setting.partition("=")[0].rpartition(".")[2]
    assert answer.exit_code == 2 and key in answer.output
    assert VALUE not in answer.output


def test_the_hint_after_a_plan_has_no_value():
    assert without_value(f"models.small.env.X={VALUE}") == "models.small.env.X=..."
    assert without_value(f"--set=storage.aws_region={VALUE}") == "--set=storage.aws_region=..."
    assert without_value("budget.fraction=0.3") == "budget.fraction=0.3"


def test_what_is_submitted_has_no_value_and_the_operator_is_told_so(spec, invoke, monkeypatch, tmp_path):
    from routelmt_batch.submission import submit as submit_module
    from routelmt_batch.submission.submissions import Submission
    from tests.submission.test_submissions import details

    orders: list[Order] = []

    def take(cluster: object, order: Order, attach: bool) -> tuple[Submission | None, bool]:
        orders.append(order)
        return Submission.read(details()), True

    monkeypatch.setattr(submit_module, "submit", take)
    answer = invoke("submit", spec, "--address", "http://head:8265")
    assert answer.exit_code == 0, answer.output
    (order,) = orders
    assert VALUE not in order.spec.dump() + order.entrypoint + answer.output
    told = (
        "not submitted: the values of AWS_REGION, AWS_SSE_KMS_KEY_ID, NCCL_SOCKET_IFNAME. The job takes those"
    )
    assert told in answer.stderr


def test_a_submitted_spec_takes_its_values_where_it_runs(spec, invoke, tmp_path):
    travelled = tmp_path / "travelled.yaml"
    travelled.write_text(load(spec).dump())
    for name in ("AWS_REGION", "AWS_SSE_KMS_KEY_ID", "NCCL_SOCKET_IFNAME"):
        os.environ.pop(name, None)
    answer = invoke("run", travelled)
    assert answer.exit_code == 2
    assert "storage.aws_region: the variable AWS_REGION is not set here" in answer.output
    assert "models.large.env.NCCL_SOCKET_IFNAME: the variable NCCL_SOCKET_IFNAME is not set" in answer.output
    os.environ |= {"AWS_REGION": "eu", "AWS_SSE_KMS_KEY_ID": "key", "NCCL_SOCKET_IFNAME": "eth0"}
    assert invoke("run", travelled).exit_code == 0


def test_an_engine_gets_the_value_of_the_spec_or_of_the_driver_s_environment(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "resource", lambda self, name: 0.0)
    pools = Pools(Session(tmp_path))
    given = load(spec).models.large
    assert pools.environment(given)["NCCL_SOCKET_IFNAME"] == VALUE
    named = given.model_copy(update={"env": {"NCCL_SOCKET_IFNAME": None}})
    os.environ["NCCL_SOCKET_IFNAME"] = "eth7"
    assert pools.environment(named)["NCCL_SOCKET_IFNAME"] == "eth7"


def test_a_spec_without_unset_variables_is_fine(make_spec):
    check_set(load(make_spec()), {})
    with pytest.raises(SpecError, match="router.env.X: the variable X is not set here"):
        check_set(load(make_spec(router__env={"X": None})), {})
