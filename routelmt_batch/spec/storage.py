"""Options of object stores that are no secret.

They become environment variables, which stores' clients read. It knows no client and no credential. A spec
that is written has their names alone.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from routelmt_batch.files.endpoints import fault as endpoint_fault
from routelmt_batch.spec.parts import NAMES_ALONE, Part
from routelmt_batch.spec.values import NOT_HERE, secrets


class Storage(Part):
    """Options of the object stores that the job reads and writes: environment variables, in lower case. A
    variable that is set where the command runs replaces its option. Credentials are refused. Values are
    written nowhere, and not submitted."""

    aws_endpoint_url: str | None = Field(
        None, description="Address of an S3 store other than Amazon's, such as `https://minio.example:9000`."
    )
    aws_region: str | None = Field(None, description="Region of the buckets.")
    aws_allow_http: bool | None = Field(
        None, description="Allow connections without TLS. An endpoint with `http://` allows them, too."
    )
    aws_virtual_hosted_style_request: bool | None = Field(
        None, description="Whether the endpoint contains the bucket's name."
    )
    aws_skip_signature: bool | None = Field(
        None, description="Send requests without credentials, as public buckets allow."
    )
    aws_request_payer: bool | None = Field(None, description="Pay for requests to requester-pays buckets.")
    aws_server_side_encryption: str | None = Field(
        None, description="How S3 encrypts what is written, such as `aws:kms`. Default: the bucket's setting."
    )
    aws_sse_kms_key_id: str | None = Field(
        None, description="Name (ARN) of the KMS key that S3 encrypts with. It is no secret."
    )
    google_base_url: str | None = Field(
        None, description="Address of a Google Cloud Storage other than Google's."
    )
    google_allow_http: bool | None = Field(None, description="Allow connections without TLS.")
    google_skip_signature: bool | None = Field(
        None, description="Send requests without credentials, as public buckets allow."
    )
    azure_storage_account_name: str | None = Field(
        None, description="Storage account of the containers in `az://CONTAINER/KEY`."
    )
    azure_storage_endpoint: str | None = Field(
        None, description="Address of a blob storage other than the account's on Azure."
    )
    azure_allow_http: bool | None = Field(None, description="Allow connections without TLS.")
    azure_skip_signature: bool | None = Field(
        None, description="Send requests without credentials, as public containers allow."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, value: object) -> object:
        if isinstance(value, Mapping):
            unknown = [str(key) for key in value if str(key).lower() not in cls.model_fields]
            if found := secrets(unknown):
                raise ValueError(f"{', '.join(found)}: {NOT_HERE}")
        return value

    # A validator of the whole: a message about one key would quote its value.
    @model_validator(mode="after")
    def _no_login(self) -> Storage:
        for name in ("aws_endpoint_url", "google_base_url", "azure_storage_endpoint"):
            address = getattr(self, name)
            if address is not None and set("@?") & set(address):
                raise ValueError(f"{name}: contains a login or a signature: {NOT_HERE}")
            if address is not None and (wrong := endpoint_fault(address)):
                raise ValueError(f"{name}: {wrong}")
        return self

    @model_serializer(mode="wrap")
    def _given(self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        names = self.named()
        return dict.fromkeys(names) if info.context == NAMES_ALONE else serialize(self)

    def named(self) -> list[str]:
        """The options that are given, or named without a value."""
        return [name for name in type(self).model_fields if name in self.model_fields_set]

    def variables(self) -> dict[str, str]:
        """The options that are given, as environment variables."""
        return {
            name.upper(): str(value).lower() if isinstance(value, bool) else value
            for name, value in self.model_dump(exclude_none=True).items()
        }

    def apply(self, environ: MutableMapping[str, str]) -> None:
        """Put the options into an environment. Variables that are set already win."""
        for name, value in self.variables().items():
            environ.setdefault(name, value)


def shared(environ: Mapping[str, str]) -> dict[str, str]:
    """The store options of an environment, for processes on other nodes. Nodes have their own credentials."""
    names = map(str.upper, Storage.model_fields)
    return {name: environ[name] for name in names if name in environ}
