"""The script and the language of a text. It knows LMT's 60 languages, not what a translation is.

Languages are identified by py3langid (naive Bayes over byte n-grams; Lui & Baldwin, 2012), whose wheel
contains its model. It was chosen by measurement on 15,893 texts of 56 languages (Tatoeba; messages of free
software). A text was flagged if the library named another language, except a lookalike, with a confidence
above a bound; the bound was set so that 0.2 to 1.0% of right texts were flagged. "found" is the share of
English texts that were then flagged where another language in Latin script was expected:

    library                      LMT's languages   found   texts/s, 1 core   memory
    py3langid 0.4.0, LMT's only       58 of 60       78%            34,000    86 MB
    py3langid 0.4.0                         58       66%            31,000    75 MB
    lingua 2.1.1                            45       40%             1,700  1218 MB
    lingua 2.1.1, low accuracy              45       40%             9,400    87 MB
    fastText lid.176.ftz                    59       23%           107,000     6 MB
    CLD3 (cld3-py 3.1.0)                    56       45%            51,000     4 MB

A bound on the expected language's own probability (`probability`) does better: with a bound of 0.05, 93% are
found, and 0.7% of right texts and 0.1% of whole sentences are flagged.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import regex

from routelmt_batch.prompts import LANGUAGES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Unicode scripts that each language is written in, as in FLORES-200; Uzbek is in two.
_SCRIPTS = {
    "Latin": "az cs da de en es fi fr hr hu id is it jv ms nl no pl pt ro sk sv sw tl tr uz vi",
    "Cyrillic": "bg kk ky ru tg uk uz",
    "Arabic": "ar fa ps ug ur",
    "Devanagari": "hi mr ne",
    "Han": "ja yue zh",
    "Hiragana": "ja",
    "Katakana": "ja",
    "Hangul": "ko",
    "Armenian": "hy",
    "Bengali": "bn",
    "Ethiopic": "am",
    "Georgian": "ka",
    "Greek": "el",
    "Hebrew": "he",
    "Khmer": "km",
    "Lao": "lo",
    "Mongolian": "mn_cn",
    "Myanmar": "my",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo",
}
LATIN = frozenset({"Latin"})
SCRIPTS = {
    language: frozenset(script for script, languages in _SCRIPTS.items() if language in languages.split())
    for language in LANGUAGES
}

# Languages that the identifier confuses in 2% of texts or more (except Russian and English, whose words
# occur in other languages' texts), and Yue and Chinese, whose formal texts can be identical.
_LOOKALIKES = ("az tr", "da no", "hi mr ne", "id jv ms", "kk ky", "yue zh")
LOOKALIKES = {
    language: frozenset({language}.union(*(g.split() for g in _LOOKALIKES if language in g.split())))
    for language in LANGUAGES
}

# Web and mail addresses have no language. Letters that scripts share, such as the Japanese long vowel mark,
# belong to no script.
_ADDRESS = regex.compile(r"(?<![!-~])[!-~]*?(?:://|www\.|@)[!-~]*")
_LETTERS = regex.compile(r"[\p{L}--\p{Script=Common}]+", regex.VERSION1)
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]+")


def letters(text: str) -> str:
    """Only the letters of a text, without those of web and mail addresses."""
    return "".join(_LETTERS.findall(_ADDRESS.sub(" ", text)))


def weight(letters: str) -> int:
    """The amount of text, in letters of an alphabet; one of Chinese, Japanese or Korean counts as two."""
    return len(letters) + sum(map(len, _DENSE.findall(letters)))


def script_share(letters: str, scripts: frozenset[str]) -> float:
    """Share of the letters, from 0 to 1, that belong to the scripts; 1 if there are no letters."""
    own = sum(map(len, _letters_of(scripts).findall(letters)))
    return own / len(letters) if letters else 1.0


def probability(text: str, language: str) -> float | None:
    """Probability, from 0 to 1, that the text is in the language or in one of its lookalikes.

    None if the script alone identifies the language.
    """
    if language not in _sharing_a_script():
        return None
    ranked = dict(_identifier().rank(_ADDRESS.sub(" ", text)))
    return float(sum(ranked.get(code, 0.0) for code in LOOKALIKES[language]))


@functools.cache
def _letters_of(scripts: frozenset[str]) -> regex.Pattern[str]:
    return regex.compile("[" + "".join(rf"\p{{{script}}}" for script in sorted(scripts)) + "]+")


@functools.cache
def _sharing_a_script() -> frozenset[str]:
    return frozenset(
        language
        for language in LANGUAGES
        if any(SCRIPTS[language] & SCRIPTS[other] for other in LANGUAGES if other not in LOOKALIKES[language])
    )


@functools.cache
def _identifier() -> LanguageIdentifier:
    """The identifier of LMT's languages. Loading it takes 0.3 s and 86 MB, once per process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([label for label in identifier.labels if label in LANGUAGES])
    return identifier
