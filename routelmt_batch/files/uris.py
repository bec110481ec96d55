"""Paths and URIs as an operator writes them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from routelmt_batch.errors import UsageError
from routelmt_batch.files.bucket import SCHEMES, ObjectLocation
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.hub import SCHEME as HUB
from routelmt_batch.files.hub import HubLocation
from routelmt_batch.files.location import Location

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.*)", re.DOTALL)
# A secret key may contain slashes: after a colon, everything up to the last @ is hidden.
_LOGIN = re.compile(r"://(?:[^/\s'\"@]*:[^\s'\"]*|[^/\s'\"]*)@")
# As in a signed URL; a ? alone is a wildcard.
_QUERY = re.compile(r"\?[A-Za-z][\w-]*=[^\s'\"]*")


def locate(uri: str) -> Location:
    """The location of a path, of a file://, s3://, gs:// or az:// URI (az://CONTAINER/KEY), or of a dataset
    on the Hugging Face hub (see files.hub.SYNTAX).

    Raises:
        UsageError: an empty path, another scheme, a URI without a bucket, with a query or with a key that is
            no path, or one of the hub that is no dataset's.
    """
    if not uri.strip():
        raise UsageError("an empty path: give one, or . for this folder")
    if "\0" in uri:
        raise UsageError(f"{uri!r}: a path has no NUL character: remove it")
    if not (match := _URI.fullmatch(uri)):
        if found := _ONE_SLASH.fullmatch(uri):
            right = f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"
            raise UsageError(
                f"{without_login(uri)}: a URI has two slashes: {without_login(right)}. If it is a path, "
                "begin it with ./"
            )
        return DiskLocation(Path(uri))
    scheme, bucket, key = match[1].lower(), match[2], match[3].strip("/")
    if scheme == "file" and bucket in ("", "localhost"):
        return DiskLocation(Path(url2pathname(urlsplit(uri).path)))
    if scheme == HUB:
        return HubLocation.of(f"{HUB}://{bucket}/{key}")
    if scheme not in SCHEMES:
        raise UsageError(
            f"{without_login(uri)}: give a path, or a URI that begins with file://, "
            f"{'://, '.join(SCHEMES)}://"
        )
    if not bucket or set("@:") & set(bucket):
        raise UsageError(
            f"{without_login(uri)}: give {scheme}://BUCKET/KEY; credentials are taken from the environment"
        )
    if _QUERY.search(uri):
        raise UsageError(
            f"{without_login(uri)}: a URI has no query, such as a signature; credentials are taken from the "
            "environment"
        )
    if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise UsageError(
            f"{uri}: a key with an empty name, `.` or `..` between its slashes cannot be used; give "
            f"{scheme}://{bucket}/{posixpath.normpath(f'/{key}').lstrip('/')}, or rename the objects"
        )
    return ObjectLocation(f"{scheme}://{bucket}", key)


def without_login(text: str) -> str:
    """A text in which the logins and queries of URLs are hidden: it may be shown."""
    return _QUERY.sub("?***", _LOGIN.sub("://***@", text))


def on_disk(uri: str, what: str) -> Path:
    """The path of a file or folder that must be on a disk. `what` names it for the message.

    Raises:
        UsageError: it is in a store; or see locate.
    """
    location = locate(uri)
    if not isinstance(location, DiskLocation):
        raise UsageError(f"{uri}: {what} is on a disk; give a path")
    return location.path


def is_remote(uri: str) -> bool:
    """Whether this is the URI of an object store or a hub, which no working folder changes."""
    match = _URI.fullmatch(uri)
    return match is not None and match[1].lower() != "file"
