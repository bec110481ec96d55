"""Language codes: LMT's own, and others that only spell them otherwise (`EN`, `en-US`, `zh_CN`, `zho_Hans`).

It loads langcodes (BCP 47, CLDR) only for a code that is not LMT's.
"""

from __future__ import annotations

import difflib
import functools
import re

from routelmt_batch.prompts import LANGUAGES

UNKNOWN = "unknown"
_CODE = re.compile(r"[A-Za-z0-9]{1,8}(?:[-_][A-Za-z0-9]{1,8}){0,4}")
# langcodes' distances: to 5 it is the same language, perhaps of another region (`es-419`); Serbian in Latin
# script is 9 from Croatian, and Traditional Chinese 54 from `zh`, which is Simplified in LMT.
_SAME = 5
_ALIKE = 25


@functools.lru_cache(maxsize=4096)
def understood(code: str) -> str | None:
    """LMT's code for a language code, however it is spelled; None if it is no code of LMT's languages."""
    return code if code in LANGUAGES else _closest(code.strip(), _SAME)


def direction(source_lang: str | None, target_lang: str | None) -> str:
    """`en-de`; a code that is not understood counts as `unknown`, so that bad codes make one entry."""
    return "-".join((code and understood(code)) or UNKNOWN for code in (source_lang, target_lang))


def is_direction(text: str) -> bool:
    """Whether a text is a direction in LMT's codes, such as `en-zh`."""
    codes = text.split("-")
    return len(codes) == 2 and set(codes) <= LANGUAGES.keys()


def is_code(text: str) -> bool:
    """Whether a text has the form of a language code. Anything else may be corpus text, and is not shown."""
    return _CODE.fullmatch(text) is not None


def nearest(code: str) -> str | None:
    """LMT's code that is most like one that is not understood, for a hint: of a language near to it (`zh` for
    `zh-Hant`), of the country with that code (`ja` for `jp`), or of a code or name of like letters."""
    from langcodes import tag_is_valid

    if not is_code(code):
        return None
    language = re.split("[-_]", code)[0]
    if found := _closest(code, _ALIKE) or _closest(language, _ALIKE):
        return found
    country = None if tag_is_valid(language) else _closest(f"und-{language}", _SAME)
    if country and country != "en":  # which is langcodes' answer for a country that it does not know, too
        return country
    names = {name.lower(): known for known, name in LANGUAGES.items()} | {known: known for known in LANGUAGES}
    match = difflib.get_close_matches(code.lower(), names, n=1)
    return names[match[0]] if match else None


def hint(code: str) -> str:
    """The nearest code as a hint for a message; empty if there is none."""
    return f"; did you mean {found!r}?" if (found := nearest(code)) else ""


def _closest(code: str, most: int) -> str | None:
    """LMT's code within a distance of langcodes."""
    from langcodes import closest_match
    from langcodes.tag_parser import LanguageTagError

    if not is_code(code):
        return None
    try:
        match: str = closest_match(code, list(LANGUAGES), max_distance=most)[0]
    except LanguageTagError:
        return None
    return match if match in LANGUAGES else None
