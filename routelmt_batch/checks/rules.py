"""Cheap checks that find faults in a translation from the text alone. They know nothing of models.

A check flags only clear cases, because a flag can cost a call to the large model. With the defaults of
`Checks` these shares of good translations are flagged: 0.04% of Tatoeba's en-zh, 0.02% of zh-en, 0.13% of
en-de, 0.14% of de-en (73,323 pairs), and 0.2% of 59,532 sentences from free software's messages in 53
languages. Of faults put into the same pairs (sources of 20 characters or more) the checks find 100% of
looped tails, 97% of texts in another language, 78% (de-en, where nouns are taken for names) to 99% of
copies, 29 to 98% of texts cut after a quarter, and 0 to 25% of texts cut after a half. Lengths vary too much
to find more of these; only the engine knows which texts were cut off.
On one core the checks read 10,000 to 30,000 rows of 25 characters a second, or 3,000 rows of 400.
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

# Characters for each character of English: medians over free software's messages. Others are near 1.
_DENSITY: Final = {"zh": 0.33, "yue": 0.33, "ja": 0.55, "ko": 0.55}

_GRAM: Final = 8  # characters; real sentences repeat few strings of this length
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
    """For each translation, the reasons of `CHECK_REASONS` why it is doubtful; most have none.

    Arguments have one value per row; `truncated` is true if the model was stopped before its end token.
    An empty translation has only the reasons `empty` and, if it was stopped, `truncated`.

    Raises:
        InputError: a language code is not one of LMT's.
    """
    if unknown := {*source_langs, *target_langs} - LANGUAGES.keys():
        raise InputError(
            f"language codes {', '.join(sorted(map(repr, unknown)))} are not among LMT's 60: "
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
    doubts = [REPETITION] * _loops(source, translation, settings)
    letters = language_id.letters(translation)
    if _words(source) == _words(translation):
        # Names, numbers and addresses may be copied, and so may text between lookalikes.
        prose = language_id.letters(_CAPITALISED.sub(" ", source))
        if language_id.weight(prose) >= settings.copied_min_letters:
            doubts += [COPIED_SOURCE] * (target_lang not in language_id.LOOKALIKES[source_lang])
        elif language_id.script_share(letters, language_id.LATIN) == 1:
            return doubts  # names in Latin letters occur in texts of any script
    elif _is_out_of_bounds(source.strip(), translation, source_lang, target_lang, settings):
        doubts.append(LENGTH_RATIO)
    return doubts + _foreign(translation, letters, target_lang, settings)


def _words(text: str) -> list[str]:
    """Letters and digits, whatever their case, width and punctuation."""
    words: list[str] = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return words


def _loops(source: str, translation: str, settings: Checks) -> bool:
    share = repetition(translation)
    return share > settings.repetition_excess and share - repetition(source) > settings.repetition_excess


def repetition(text: str) -> float:
    """Share, from 0 to 1, of the character 8-grams that occurred earlier in the text; 0 if it is very short.

    seq-rep-n of Welleck et al. (ICLR 2020, arXiv 1908.04319), over characters, so that it works without
    word boundaries: a string repeated k times in a row gives about 1 - 1/k.
    """
    grams = len(text) - _GRAM + 1
    if grams < _MIN_GRAMS:
        return 0.0
    return 1 - len({text[i : i + _GRAM] for i in range(grams)}) / grams


def _is_out_of_bounds(
    source: str, translation: str, source_lang: str, target_lang: str, settings: Checks
) -> bool:
    """Whether the length ratio is out of bounds even if the source were longer or shorter by the slack.

    The ratio of a short text alone means little.
    """
    density = _DENSITY.get(source_lang, 1.0)
    usual = _DENSITY.get(target_lang, 1.0) / density
    low, high = settings.length_ratios.get(
        f"{source_lang}-{target_lang}", (usual / settings.length_factor, usual * settings.length_factor)
    )
    slack = settings.length_slack_chars * density
    return not low * (len(source) - slack) <= len(translation) <= high * (len(source) + slack)


def _foreign(translation: str, letters: str, target_lang: str, settings: Checks) -> list[str]:
    """Check the script first: the language of a text in a wrong script cannot be identified."""
    if language_id.weight(letters) < settings.language_min_letters:
        return []
    if language_id.script_share(letters, language_id.SCRIPTS[target_lang]) < settings.min_script_share:
        return [WRONG_SCRIPT]
    probability = language_id.probability(translation, target_lang)
    return [WRONG_LANGUAGE] * (probability is not None and probability < settings.min_language_probability)
