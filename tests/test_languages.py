"""Language codes: LMT's own, those that only spell them otherwise, and hints for the rest."""

import pytest

from routelmt_batch.languages import direction, is_code, nearest, understood
from routelmt_batch.prompts import LANGUAGES

# FLORES-200's codes (facebookresearch/flores, flores200/README) of LMT's languages, in the order of LANGUAGES.
# Its Mongolian is Cyrillic, LMT's is not; its Pashto is named by the code of a southern variety.
FLORES = [
    "amh_Ethi",
    "arb_Arab",
    "azj_Latn",
    "bul_Cyrl",
    "ben_Beng",
    "bod_Tibt",
    "ces_Latn",
    "dan_Latn",
    "deu_Latn",
    "ell_Grek",
    "eng_Latn",
    "spa_Latn",
    "pes_Arab",
    "fin_Latn",
    "fra_Latn",
    "heb_Hebr",
    "hin_Deva",
    "hrv_Latn",
    "hun_Latn",
    "hye_Armn",
    "ind_Latn",
    "isl_Latn",
    "ita_Latn",
    "jpn_Jpan",
    "jav_Latn",
    "kat_Geor",
    "kaz_Cyrl",
    "khm_Khmr",
    "kor_Hang",
    "kir_Cyrl",
    "lao_Laoo",
    "khk_Cyrl",
    "mar_Deva",
    "zsm_Latn",
    "mya_Mymr",
    "npi_Deva",
    "nld_Latn",
    "nob_Latn",
    "pol_Latn",
    "pbt_Arab",
    "por_Latn",
    "ron_Latn",
    "rus_Cyrl",
    "sin_Sinh",
    "slk_Latn",
    "swe_Latn",
    "swh_Latn",
    "tam_Taml",
    "tel_Telu",
    "tgk_Cyrl",
    "tha_Thai",
    "tgl_Latn",
    "tur_Latn",
    "uig_Arab",
    "ukr_Cyrl",
    "urd_Arab",
    "uzn_Latn",
    "vie_Latn",
    "yue_Hant",
    "zho_Hans",
]
OTHERS = {"khk_Cyrl", "pbt_Arab"}


def test_lmts_codes_are_themselves():
    assert [understood(code) for code in LANGUAGES] == list(LANGUAGES)


@pytest.mark.parametrize(("code", "known"), list(zip(FLORES, LANGUAGES, strict=True)))
def test_flores_codes_are_understood(code, known):
    assert understood(code) == (None if code in OTHERS else known)


@pytest.mark.parametrize(
    ("code", "known"),
    [
        ("EN", "en"),
        ("en-US", "en"),
        ("en_GB", "en"),
        (" en ", "en"),
        ("eng", "en"),
        ("ger", "de"),
        ("fre", "fr"),
        ("cze", "cs"),
        ("zh_CN", "zh"),
        ("zh-Hans-CN", "zh"),
        ("cmn", "zh"),
        ("chi", "zh"),
        ("zh-yue", "yue"),
        ("pt-BR", "pt"),
        ("es-419", "es"),
        ("nb", "no"),
        ("fil", "tl"),
        ("iw", "he"),
        ("in", "id"),
        ("mn-Mong", "mn_cn"),
        ("MN_CN", "mn_cn"),
    ],
)
def test_codes_that_are_spelled_otherwise(code, known):
    assert understood(code) == known


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("zh-TW", "zh"),  # another script than LMT's `zh` has
        ("zho_Hant", "zh"),
        ("uz-Cyrl", "uz"),
        ("nn", "no"),
        ("sr-Latn", "hr"),
        ("arz", "ar"),
        ("jp", "ja"),
        ("cz", "cs"),
        ("english", "en"),
        ("germn", "de"),
        ("tlh", "tl"),
        ("und", None),
        ("mul", None),
        ("12", None),
        ("", None),
    ],
)
def test_other_codes_are_not_understood_and_the_nearest_is_named(code, hint):
    assert understood(code) is None
    assert nearest(code) == hint


def test_directions_name_lmts_codes():
    assert direction("EN", "zho_Hans") == "en-zh"
    assert direction("tlh", None) == "unknown-unknown"
    assert direction("en", "") == "en-unknown"


@pytest.mark.parametrize("text", ["I saw a cat.", "en de", "日本", "x" * 9, "a-b-c-d-e-f", "en\nde"])
def test_text_is_no_code(text):
    assert not is_code(text) and understood(text) is None and nearest(text) is None
