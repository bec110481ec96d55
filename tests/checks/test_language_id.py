"""Scripts and languages of texts, by Unicode's own names and by py3langid."""

import unicodedata

import pytest

from routelmt_batch.checks.language_id import LOOKALIKES, SCRIPTS, letters, probability, script_share, weight
from routelmt_batch.prompts import LANGUAGES


def test_every_language_has_a_script_and_is_its_own_lookalike():
    assert all(SCRIPTS[code] for code in LANGUAGES)
    assert all(code in LOOKALIKES[code] for code in LANGUAGES)
    assert all(code in LOOKALIKES[other] for code in LANGUAGES for other in LOOKALIKES[code])


@pytest.mark.parametrize(
    ("text", "language", "name"),
    [
        ("Straße", "de", "LATIN"),
        ("Вулиця", "uk", "CYRILLIC"),
        ("καλημέρα", "el", "GREEK"),
        ("גשם", "he", "HEBREW"),
        ("مطر", "ur", "ARABIC"),
        ("ქუჩა", "ka", "GEORGIAN"),
        ("ᠮᠣᠩᠭᠣᠯ", "mn_cn", "MONGOLIAN"),
        ("བོད", "bo", "TIBETAN"),
        ("ひらがなカタカナ漢字", "ja", ("HIRAGANA", "KATAKANA", "CJK")),
        ("한글", "ko", "HANGUL"),
    ],
)
def test_scripts_are_unicodes(text, language, name):
    assert all(unicodedata.name(letter).startswith(name) for letter in text), "by an independent table"
    assert script_share(letters(text), SCRIPTS[language]) == 1
    assert script_share(letters(text), SCRIPTS["te"]) == 0


def test_letters_leave_out_marks_digits_and_addresses():
    assert letters("See https://example.org/a, 42 times: naïve コーヒー!") == "Seetimesnaïveコヒ"
    assert letters("请访问https://example.org谢谢") == "请访问谢谢"
    assert letters("mail a.b@example.org www.example.org") == "mail"


def test_share_of_mixed_scripts_and_of_none():
    assert script_share("ab漢字", SCRIPTS["zh"]) == 0.5
    assert script_share("", SCRIPTS["zh"]) == 1
    assert script_share(letters("Ўзбек oʻzbek"), SCRIPTS["uz"]) == 1, "Uzbek has two"


def test_a_dense_character_weighs_two():
    assert weight("abc") == 3
    assert weight("漢字かなカナ한글ab") == 2 * 8 + 2


def test_probability_of_the_language_or_of_one_like_it():
    text = "Hvordan har du det i dag, og hvad laver du i aften?"
    assert probability(text, "da") == probability(text, "no") > 0.9
    assert probability(text, "en") < 0.01


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_identifier_knows_every_language_that_it_is_asked_for(code):
    assert probability("x", code) != 0


def test_languages_whose_script_is_theirs_alone_have_no_probability():
    assert [probability("text", code) for code in ("ko", "hi", "th", "bo", "mn_cn")] == [None] * 5


def test_a_long_text_without_spaces_takes_linear_time():
    assert letters("語" * 200_000 + "." + "a" * 200_000) == "語" * 200_000 + "a" * 200_000
