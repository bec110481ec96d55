"""Addresses of object stores in the environment, checked before a client reads them. It opens no store."""

from __future__ import annotations

import re
from collections.abc import Mapping

from routelmt_batch.errors import StoreRefused

# The variables that obstore reads.
_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ALLOWED = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")


def fault(address: str) -> str | None:
    """What is wrong with the address of a store. It does not quote it: it may contain a secret."""
    if set("@?") & set(address):
        return "it contains a login or a signature. Leave it out; clients find credentials in other variables"
    if not re.fullmatch(r"https?://[^\s/]\S*", address):
        return "give a URL that begins with https:// or http:// and has no spaces"
    return None


def check(root: str, environ: Mapping[str, str]) -> None:
    """Raises StoreRefused if the environment has a wrong address of a bucket's store."""
    for name in _VARIABLES[root.partition(":")[0]]:
        if environ.get(name) == "":
            raise StoreRefused(
                f"{root}: {name} is empty in the environment. Unset it, or give the store's URL"
            )
        if name in environ and (wrong := fault(environ[name])):
            raise StoreRefused(f"{root}: {name} in the environment is not valid: {wrong}")


def is_plain(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for HTTP without TLS, as for a store on this machine."""
    variables = (name for names in _VARIABLES.values() for name in names)
    return any(environ.get(name, "").startswith("http://") for name in variables) or any(
        environ.get(name, "").lower() in ("1", "true") for name in _ALLOWED
    )
