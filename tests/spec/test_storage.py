"""`storage:` holds options of stores, never credentials, and becomes environment variables."""

import pytest

from routelmt_batch.errors import SpecError
from routelmt_batch.learning.training.spec import load_train_spec
from routelmt_batch.spec.file import load
from routelmt_batch.spec.storage import shared

SECRET = "wJalrXUtnFEMI/K7MDENG"


def test_options_become_variables_and_what_is_set_wins(make_spec):
    options = {
        "aws_endpoint_url": "http://minio:9000",
        "aws_region": "eu-west-1",
        "aws_allow_http": True,
        "aws_virtual_hosted_style_request": False,
        "azure_storage_account_name": "corpora",
    }
    environ = {"AWS_REGION": "us-east-1", "AWS_SECRET_ACCESS_KEY": SECRET}
    load(make_spec(storage=options)).storage.apply(environ)
    wanted = {
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AZURE_STORAGE_ACCOUNT_NAME": "corpora",
    }
    assert environ == wanted | {"AWS_SECRET_ACCESS_KEY": SECRET}
    assert shared(environ) == wanted, "a node has its own credentials"


def test_a_spec_without_storage_sets_nothing(make_spec):
    environ: dict[str, str] = {}
    load(make_spec()).storage.apply(environ)
    assert environ == {}


@pytest.mark.parametrize(
    "key",
    [
        "aws_secret_access_key",
        "AWS_SECRET_ACCESS_KEY",
        "aws_access_key_id",
        "aws_session_token",
        "aws_sse_customer_key_base64",
        "google_service_account_key",
        "google_application_credentials",
        "google_bearer_token",
        "azure_storage_account_key",
        "azure_storage_access_key",
        "azure_storage_sas_token",
        "azure_client_secret",
        "azure_storage_token",
        "password",
    ],
)
@pytest.mark.parametrize("by_option", [False, True])
def test_credentials_are_refused_and_not_shown(make_spec, key, by_option):
    with pytest.raises(SpecError) as error:
        if by_option:
            load(make_spec(), [f"storage.{key}={SECRET}"])
        else:
            load(make_spec(storage={key: SECRET}))
    assert f"storage: {key}: credentials do not belong in a spec" in str(error.value)
    assert "into its environment, a role of the machine" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("storage.aws_regoin=eu-west-1", "unknown key; did you mean 'aws_region'?"),
        ("storage.aws_endpoint_url=minio:9000", "aws_endpoint_url: give a URL that begins with https://"),
        (f"storage.aws_endpoint_url=https://me:{SECRET}@minio:9000", "contains a login or a signature"),
        (f"storage.azure_storage_endpoint=https://me.net/?sig={SECRET}", "contains a login or a signature"),
        (f"models.small.env.HF_TOKEN={SECRET}", "models.small: env: HF_TOKEN: credentials do not belong"),
        (f"models.large.engine.hf_token={SECRET}", "models.large: engine: hf_token: credentials do not"),
        (f"router.env.AWS_SECRET_ACCESS_KEY={SECRET}", "router: env: AWS_SECRET_ACCESS_KEY: credentials do"),
        (f"input.uri=s3://AKIA:{SECRET}@bucket/in", "credentials are taken from the environment"),
        (f"output.uri=s3://AKIA:{SECRET}@bucket/out", "credentials are taken from the environment"),
        (f"models.small.source=s3://AKIA:{SECRET}@bucket/m", "credentials are taken from the environment"),
        (f"metric=comet:s3://AKIA:{SECRET}@bucket/m", "credentials are taken from the environment"),
    ],
)
def test_what_is_wrong_is_told_without_secrets(make_spec, setting, message):
    with pytest.raises(SpecError) as error:
        load(make_spec(), [setting])
    assert message in str(error.value)
    assert SECRET not in str(error.value)


def test_a_variable_that_only_looks_like_a_secret_is_passed_on(make_spec):
    env = {"TOKENIZERS_PARALLELISM": "false", "VLLM_CACHE_ROOT": "/cache"}
    assert load(make_spec(models__small__env=env)).models.small.env == env


def test_a_training_spec_has_storage_too(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(
        "name: a\ntables: [labels]\noutput: {uri: router}\nbase: {source: Demo/Small}\n"
        "storage: {aws_region: eu-west-1}\n"
    )
    assert load_train_spec(path).storage.variables() == {"AWS_REGION": "eu-west-1"}
