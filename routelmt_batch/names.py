"""Names of files, for people to read: a name may contain anything, even what moves a terminal's cursor."""

from __future__ import annotations

import shlex


def visible(text: str) -> str:
    """A text of some lines, in which control characters and the like are escaped."""
    return "".join(mark if mark in "\n\t" or mark.isprintable() else _escape(mark) for mark in text)


def one_line(name: str) -> str:
    """A name in which line ends are escaped, too."""
    return "".join(mark if mark.isprintable() else _escape(mark) for mark in name)


def quoted(name: str) -> str:
    """A name as one word for a shell: in bash's own quotes if it is not printable."""
    if name.isprintable():
        return shlex.quote(name)
    return "$'" + "".join(_for_bash(mark) for mark in name) + "'"


def _for_bash(mark: str) -> str:
    if mark.isprintable():
        return f"\\{mark}" if mark in "\\'" else mark
    return f"\\u{ord(mark):04x}"


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode()
