"""What the errors of an object store mean: a refusal, which the same request would meet again, or an outage,
which may end. It sends no request."""

from __future__ import annotations

import re

from routelmt_batch.errors import StoreError, StoreRefused

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# Paths of the clouds' metadata services, which are asked last.
_NO_CREDENTIALS = (
    "/latest/api/token",
    "/latest/meta-data/",
    "/computeMetadata/",
    "/metadata/identity/",
)
_WHERE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the files in ~/.aws, a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the files of gcloud, a service account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_KEY and the other AZURE_ variables, an identity of the machine",
}
_DENIED = ("status code: 401", "status code: 403")
_NO_HOST = ("Name or service not known", "No address associated with hostname")
# 408, 409 and 429 ask for another try. So do some refusals with 400: what was sent arrived cut or late.
_REFUSED = re.compile(r"status code: 4(?!08|09|29)\d\d|incorrectly configured region")
_ON_THE_WAY = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)
# obstore's own few tries are not all that were made.
_TRIES = re.compile(r" in [\d.]+\S+, after \d+ retries, max_retries: \d+, retry_timeout: \S+")
_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"')
_MOST_CHARS = 300


def explained(where: object, error: Exception) -> Exception:
    """The error to raise for one of obstore's at a location. Changed objects are the caller's.

    Returns:
        FileNotFoundError, StoreRefused, or StoreError for an outage.
    """
    from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError

    def says(codes: tuple[str, ...]) -> bool:
        return any(code in str(error) for code in codes)

    # A list has one class for all errors.
    if says(_NO_BUCKET):
        return StoreRefused(f"{where}: no such bucket ({reason(error)}). Check its name")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(str(where))
    if says(_NO_CREDENTIALS):
        looked = _WHERE[str(where).partition(":")[0]]
        return StoreRefused(
            f"{where}: no credentials were found ({reason(error)}). These were looked for: {looked}. Set one "
            "of them where the job runs"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or says(_DENIED):
        return StoreRefused(
            f"{where}: the store denies access ({reason(error)}). Check the credentials, and that "
            "their role may read and write below this prefix"
        )
    if isinstance(error, InvalidPathError):
        return StoreRefused(
            f"{where}: a name there cannot be used ({reason(error)}). Rename that object, or give "
            "another prefix"
        )
    if says(_NO_HOST):
        return StoreRefused(
            f"{where}: the store's host is not known ({reason(error)}). Check the endpoint or the account's "
            "name in the environment and in `storage` of the spec"
        )
    if _REFUSED.search(str(error)) and not says(_ON_THE_WAY):
        return StoreRefused(
            f"{where}: the store refuses the request ({reason(error)}). Check the URI, and endpoint, region "
            "and credentials in the environment and in `storage` of the spec"
        )
    return StoreError(
        f"{where}: the store did not do it ({reason(error)}). Nothing committed is lost: check the "
        "store and its settings, and run the same command again"
    )


def reason(error: Exception) -> str:
    """What a store answered: its code and message, without the request, which may name credentials."""
    text = str(error)
    if found := _CODE.search(text):
        return ": ".join(part for part in found.groups() if part)[:_MOST_CHARS]
    message, _, debug = text.partition("\n\n")
    shown = _TRIES.sub("", " ".join(message.split()))[:_MOST_CHARS]
    causes = _CAUSE.findall(debug)
    return ": ".join([shown, *causes[-1:]])
