"""S3's requests and answers, as far as the tests' proxy must read or edit them."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qs, unquote

Method = Literal["put", "get", "head", "list", "delete", "copy", "multipart", "other"]
_METHODS: dict[str, Method] = {"PUT": "put", "GET": "get", "HEAD": "head", "DELETE": "delete"}


def read_target(verb: str, target: str, is_copy: bool) -> tuple[Method, str]:
    """A request's method in S3's words, and its key; for a listing, the prefix."""
    path, _, query = target.partition("?")
    key = unquote(path.lstrip("/").partition("/")[2])
    arguments = parse_qs(query, keep_blank_values=True)
    if "uploads" in arguments or "uploadId" in arguments:
        return "multipart", key
    if verb == "GET" and not key:
        return ("list" if "list-type" in arguments else "other"), arguments.get("prefix", [""])[0]
    if verb == "POST":
        return ("delete" if "delete" in arguments else "other"), key
    if is_copy:
        return "copy", key
    return _METHODS[verb], key


def deleted_keys(body: bytes) -> list[str]:
    """The keys of a DeleteObjects request."""
    return [key.text or "" for key in ElementTree.fromstring(body).iterfind("{*}Object/{*}Key")]


def without_keys(listing: bytes, is_hidden: Callable[[str], bool]) -> bytes:
    """A ListObjectsV2 answer without some keys, and without the common prefixes that match themselves."""
    root = ElementTree.fromstring(listing)
    shown = 0
    for entries, name in (("Contents", "Key"), ("CommonPrefixes", "Prefix")):
        for entry in root.findall(f"{{*}}{entries}"):
            if is_hidden(entry.findtext(f"{{*}}{name}") or ""):
                root.remove(entry)
            else:
                shown += 1
    if (count := root.find("{*}KeyCount")) is not None:
        count.text = str(shown)
    space = root.tag[1:].partition("}")[0] if root.tag.startswith("{") else None
    edited: bytes = ElementTree.tostring(
        root, encoding="utf-8", xml_declaration=True, default_namespace=space
    )
    return edited


def error(code: str, message: str) -> bytes:
    """The body of a refusal."""
    xml = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{xml}<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
