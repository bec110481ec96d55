"""AWS profiles: credentials from the files of Amazon's tools, SSO included, which obstore does not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routelmt_batch.errors import StoreRefused

_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))


def profile_credentials(root: str, environ: Mapping[str, str]) -> Any | None:
    """A source of a bucket's credentials by boto3, which also asks roles; None: obstore finds them itself.

    It is None for other clouds, if the environment has the credentials or says that none are needed, and if
    there is neither AWS_PROFILE nor a file of Amazon's tools.

    Raises:
        StoreRefused: the profile does not exist, or has no valid credentials.
    """
    unsigned = environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    if not root.startswith("s3://") or unsigned or environ.get("AWS_ACCESS_KEY_ID"):
        return None
    files = [Path(environ.get(name) or path).expanduser() for name, path in _FILES]
    if not (environ.get("AWS_PROFILE") or any(file.is_file() for file in files)):
        return None
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        # The provider's region replaces the environment's, which boto3 does not read under this name.
        session = boto3.Session(region_name=environ.get("AWS_REGION"))
        return Boto3CredentialProvider(session) if session.get_credentials() else None
    except BotoCoreError as error:
        profile = environ.get("AWS_PROFILE", "default")
        raise StoreRefused(
            f"{root}: no credentials from the AWS profile {profile} ({' '.join(str(error).split())}). Set "
            "AWS_PROFILE to another profile, log in again (`aws sso login`), or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
