"""The ways in which the tests' proxy lets a store fail, and the rules that say which requests fail.

A rule knows S3's methods and keys. It does not know how the proxy carries it out.
"""

import re
from dataclasses import dataclass
from typing import Literal

from tests.files.messages import Method

Kind = Literal[
    "slow_down",  # 503 SlowDown; the request does not reach the server
    "error_500",  # 500 InternalError; the request does not reach the server
    "cut_upload",  # the connection ends after half of the request's body; nothing reaches the server
    "cut_after",  # the server carries the request out, then the connection ends without an answer
    "cut_download",  # the connection ends after half of the answer's body
    "slow",  # waits first; a request whose client is killed meanwhile can still reach the server
    "hide_in_listing",  # listings leave out the keys that match; reads of these keys work
    "ignore_conditions",  # If-Match and If-None-Match are removed: a store without conditional writes
]

# A request ends in one way only.
ENDINGS: frozenset[Kind] = frozenset(("slow_down", "error_500", "cut_upload", "cut_after", "cut_download"))
# The methods of a fault that names none, where the kind does not make sense for all.
_METHODS: dict[Kind, tuple[Method, ...]] = {
    "cut_upload": ("put", "multipart"),
    "cut_download": ("get",),
    "hide_in_listing": ("list",),
    "ignore_conditions": ("put", "copy", "multipart", "delete"),
}


@dataclass(frozen=True)
class Fault:
    """A rule: which requests it meets, and what happens to them.

    `key` is a regular expression. It is searched in the request's key: the prefix of a listing, the keys of a
    bulk delete joined by newlines. For `hide_in_listing` it is searched in the listed keys instead.

    Of the requests that match, the first `after` pass unharmed, the next `times` are met (None: all), and the
    rest pass unharmed. A request meets one fault of each kind at most.
    """

    kind: Kind
    method: Method | None = None
    key: str = ""
    times: int | None = None
    after: int = 0
    seconds: float = 1.0  # for `slow`
    reset: bool = False  # for the cuts: the connection is reset (RST), not closed (FIN)

    def matches(self, method: Method, key: str) -> bool:
        methods = (self.method,) if self.method else _METHODS.get(self.kind, (method,))
        return method in methods and (self.kind == "hide_in_listing" or self.finds(key))

    def finds(self, key: str) -> bool:
        return re.search(self.key, key) is not None

    def is_due(self, matched: int) -> bool:
        """Whether it meets a request, after so many others that it matched."""
        return matched >= self.after and (self.times is None or matched < self.after + self.times)
