"""Cheap checks on every translation: what is wrong with it as far as text alone can tell. It knows no model.

A check speaks only when it is sure, for its word can cost a call to the large model. With the defaults of
`Checks` it calls doubtful, of good translations, 0.04% of Tatoeba's en-zh, 0.02% of zh-en, 0.13% of en-de,
0.14% of de-en (73,323 pairs), and 0.2% of 59,532 sentences from free software's messages in 53 languages.
Of faults put into the same pairs, in sources of 20 characters or more, it finds looped tails 100%, another
language 97%, copies 78% (de-en, nouns taken for names) to 99%, and of text cut after a quarter 29 to 98%,
after a half 0 to 25%: lengths vary that much, so that only the engine's word tells what was cut off.
On one core it reads 10,000 to 30,000 rows of 25 characters a second, 3,000 of 400.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

import regex

from routelmt_batch.checks import language_id
from routelmt_batch.errors import InputError
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.rows import EMPTY, TRUNCATED
from routelmt_batch.spec import Checks

COPIED_SOURCE: Final = "copied_source"
REPETITION: Final = "repetition"
LENGTH_RATIO: Final = "length_ratio"
WRONG_SCRIPT: Final = "wrong_script"
WRONG_LANGUAGE: Final = "wrong_language"
NOT_CHECKED: Final = "not_checked"  # the checks themselves failed on it
CHECK_REASONS: Final = (
    EMPTY,
    TRUNCATED,
    COPIED_SOURCE,
    REPETITION,
    LENGTH_RATIO,
    WRONG_SCRIPT,
    WRONG_LANGUAGE,
)

# Characters that say what one of English says; medians over messages of free software, others are near 1.
_DENSITY: Final = {"zh": 0.33, "yue": 0.33, "ja": 0.55, "ko": 0.55}

_GRAM: Final = 8  # characters; of real sentences few are repeated at that length
_MIN_GRAMS: Final = 16

_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_CAPITALISED = regex.compile(r"\b\p{Lu}\w*")


def check_translations(
    sources: Sequence[str],
    translations: Sequence[str | None],
    source_langs: Sequence[str],
    target_langs: Sequence[str],
    truncated: Sequence[bool],
    settings: Checks,
) -> list[list[str]]:
    """The reasons of `CHECK_REASONS` for which each translation is doubtful; none for most.

    Columns have one value a row; `truncated` is true where the model was stopped before its end token.
    An empty translation has no reason but that and `truncated`.

    Raises:
        InputError: a language code is not one of LMT's.
    """
    if unknown := {*source_langs, *target_langs} - LANGUAGES.keys():
        raise InputError(
            f"languages {sorted(map(repr, unknown))} are none of LMT's 60 codes: "
            "check only rows that were translated"
        )
    rows = zip(sources, translations, source_langs, target_langs, truncated, strict=True)
    return [
        [TRUNCATED] * cut + _doubts(source, translation or "", source_lang, target_lang, settings)
        for source, translation, source_lang, target_lang, cut in rows
    ]


def _doubts(source: str, translation: str, source_lang: str, target_lang: str, settings: Checks) -> list[str]:
    translation = translation.strip()
    if not translation:
        return [EMPTY]
    found = [REPETITION] * _loops(source, translation, settings)
    letters = language_id.letters(translation)
    if _words(source) == _words(translation):
        # Names, numbers and addresses are rightly copied, and so is text between lookalikes.
        prose = language_id.letters(_CAPITALISED.sub(" ", source))
        if language_id.weight(prose) >= settings.copied_min_letters:
            found += [COPIED_SOURCE] * (target_lang not in language_id.LOOKALIKES[source_lang])
        elif language_id.script_share(letters, language_id.LATIN) == 1:
            return found  # names in Latin letters stand in texts of any script
    elif _is_out_of_bounds(source.strip(), translation, source_lang, target_lang, settings):
        found.append(LENGTH_RATIO)
    return found + _foreign(translation, letters, target_lang, settings)


def _words(text: str) -> list[str]:
    """Letters and digits, whatever their case, width and punctuation."""
    words: list[str] = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return words


def _loops(source: str, translation: str, settings: Checks) -> bool:
    share = repetition(translation)
    return share > settings.repetition_excess and share - repetition(source) > settings.repetition_excess


def repetition(text: str) -> float:
    """Share, from 0 to 1, of the character 8-grams that stood in the text before; 0 for a very short one.

    seq-rep-n of Welleck et al. (ICLR 2020, arXiv 1908.04319), over characters, so that it works without
    word boundaries: a unit that stands k times in a row gives about 1 - 1/k.
    """
    grams = len(text) - _GRAM + 1
    if grams < _MIN_GRAMS:
        return 0.0
    return 1 - len({text[i : i + _GRAM] for i in range(grams)}) / grams


def _is_out_of_bounds(
    source: str, translation: str, source_lang: str, target_lang: str, settings: Checks
) -> bool:
    """The slack counts as so many characters of source more or less: a short text's ratio says little."""
    density = _DENSITY.get(source_lang, 1.0)
    usual = _DENSITY.get(target_lang, 1.0) / density
    low, high = settings.length_ratios.get(
        f"{source_lang}-{target_lang}", (usual / settings.length_factor, usual * settings.length_factor)
    )
    slack = settings.length_slack_chars * density
    return not low * (len(source) - slack) <= len(translation) <= high * (len(source) + slack)


def _foreign(translation: str, letters: str, target_lang: str, settings: Checks) -> list[str]:
    """The script first: in a wrong one, there is no language to ask for."""
    if language_id.weight(letters) < settings.language_min_letters:
        return []
    if language_id.script_share(letters, language_id.SCRIPTS[target_lang]) < settings.min_script_share:
        return [WRONG_SCRIPT]
    probability = language_id.probability(translation, target_lang)
    return [WRONG_LANGUAGE] * (probability is not None and probability < settings.min_language_probability)
