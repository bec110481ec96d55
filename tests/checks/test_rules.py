"""The checks: good translations pass, each fault has its reason. Texts were written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from routelmt_batch.checks.rules import CHECK_REASONS, check_translations, repetition
from routelmt_batch.errors import InputError
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.spec import Checks
from tests.conftest import DEMO

ENGLISH = "The train to the coast leaves at half past six, so we have to get up early tomorrow."
TRANSLATIONS = {
    "am": "ወደ ባህር ዳርቻ የሚሄደው ባቡር ስድስት ሰዓት ተኩል ላይ ይነሳል፣ ስለዚህ ነገ በጠዋት መነሳት አለብን።",
    "ar": "يغادر القطار إلى الساحل في السادسة والنصف، لذلك علينا أن نستيقظ مبكرا غدا.",
    "cs": "Vlak k pobřeží odjíždí v půl sedmé, takže musíme zítra brzy vstávat.",
    "de": "Der Zug an die Küste fährt um halb sieben, also müssen wir morgen früh aufstehen.",
    "el": "Το τρένο για την ακτή φεύγει στις έξι και μισή, οπότε πρέπει να ξυπνήσουμε νωρίς αύριο.",
    "es": "El tren a la costa sale a las seis y media, así que mañana tenemos que levantarnos temprano.",
    "fa": "قطار ساحل ساعت شش و نیم حرکت می‌کند، پس فردا باید زود بیدار شویم.",
    "fr": "Le train pour la côte part à six heures et demie, nous devons donc nous lever tôt demain.",
    "he": "הרכבת לחוף יוצאת בשש וחצי, אז אנחנו צריכים לקום מוקדם מחר.",
    "hi": "तट की ओर जाने वाली ट्रेन साढ़े छह बजे निकलती है, इसलिए हमें कल जल्दी उठना होगा।",
    "id": "Kereta ke pantai berangkat pukul setengah tujuh, jadi besok kita harus bangun pagi-pagi.",
    "ja": "海岸行きの電車は六時半に出るので、明日は早く起きなければなりません。",
    "ko": "해안으로 가는 기차는 여섯 시 반에 떠나므로 내일은 일찍 일어나야 합니다.",
    "no": "Toget til kysten går klokka halv sju, så vi må stå opp tidlig i morgen.",
    "ru": "Поезд на побережье отправляется в половине седьмого, поэтому завтра нам надо рано встать.",
    "sw": "Treni ya kwenda pwani inaondoka saa kumi na mbili na nusu, kwa hiyo kesho lazima tuamke mapema.",
    "th": "รถไฟไปชายฝั่งออกตอนหกโมงครึ่ง พรุ่งนี้เราจึงต้องตื่นแต่เช้า",
    "tr": "Sahile giden tren altı buçukta kalkıyor, bu yüzden yarın erken kalkmamız gerekiyor.",
    "uk": "Потяг на узбережжя вирушає о пів на сьому, тому завтра нам треба рано встати.",
    "vi": "Chuyến tàu ra bờ biển khởi hành lúc sáu giờ rưỡi, vì vậy ngày mai chúng ta phải dậy sớm.",
    "zh": "开往海边的火车六点半出发，所以我们明天得早起。",
}
TEXTS = {"en": ENGLISH, **TRANSLATIONS}


def check(source, translation, target="de", source_lang="en", truncated=False, **settings):
    rows = check_translations(
        [source], [translation], [source_lang], [target], [truncated], Checks(**settings)
    )
    return rows[0]


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_good_translation_has_no_reason_in_either_direction(language):
    assert check(ENGLISH, TEXTS[language], language) == []
    assert check(TEXTS[language], ENGLISH, "en", language) == []


def test_the_demo_references_pass():
    rows = [line.split("\t") for line in (DEMO / "sentences.tsv").read_text("utf-8").splitlines()]
    sources, targets, texts, references = (list(column) for column in zip(*rows, strict=True))
    whole = [False] * len(rows)
    assert not any(check_translations(texts, references, sources, targets, whole, Checks()))
    assert not any(check_translations(references, texts, targets, sources, whole, Checks()))


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_copied_source_is_named_in_every_direction(language):
    assert "copied_source" in check(ENGLISH, ENGLISH, language)
    assert "copied_source" in check(TEXTS[language], TEXTS[language], "en", language)


@pytest.mark.parametrize(
    ("source", "translation", "target"),
    [
        ("New York City", "New York City", "fr"),
        ("The Metropolitan Museum of Art, New York", "The Metropolitan Museum of Art, New York", "de"),
        ("3,1415926535897932384626433832795", "3,1415926535897932384626433832795", "zh"),
        ("https://example.org/a/long/path/of/letters", "https://example.org/a/long/path/of/letters", "ru"),
        ("letters.to.the.editor@example.org", "letters.to.the.editor@example.org", "ja"),
        ("Microsoft Office", "Microsoft Office", "zh"),
        ("OK", "OK", "th"),
    ],
)
def test_names_numbers_and_addresses_are_rightly_copied(source, translation, target):
    assert check(source, translation, target) == []


def test_a_short_copy_in_a_script_that_is_not_latin_is_wrong():
    assert check("东京塔呢", "东京塔呢", "en", "zh", language_min_letters=8) == ["wrong_script"]


def test_case_width_and_punctuation_do_not_hide_a_copy():
    assert "copied_source" in check(
        ENGLISH, ENGLISH.replace("train", "TRAIN").replace(",", " ，").rstrip("."), "sw"
    )


def test_the_same_text_may_be_right_in_a_language_that_looks_like_the_source():
    assert check(TEXTS["zh"], TEXTS["zh"], "yue", "zh") == []
    assert check(TEXTS["id"], TEXTS["id"], "ms", "id") == []
    assert check(TEXTS["no"], TEXTS["no"], "da", "no") == []


@pytest.mark.parametrize(
    ("wanted", "got", "reason"),
    [
        ("zh", "de", "wrong_script"),
        ("ru", "en", "wrong_script"),
        ("ar", "he", "wrong_script"),
        ("th", "ko", "wrong_script"),
        ("en", "zh", "wrong_script"),
        ("am", "hi", "wrong_script"),
        ("bo", "zh", "wrong_script"),
        ("mn_cn", "ru", "wrong_script"),
        ("de", "en", "wrong_language"),
        ("fr", "es", "wrong_language"),
        ("tr", "vi", "wrong_language"),
        ("sw", "id", "wrong_language"),
        ("uk", "ru", "wrong_language"),
        ("fa", "ar", "wrong_language"),
        ("zh", "ja", "wrong_language"),
        ("ja", "zh", "wrong_language"),
    ],
)
def test_another_script_or_language_than_the_target_s(wanted, got, reason):
    source_lang = "cs" if "en" in (wanted, got) else "en"
    found = check(TEXTS[source_lang], TEXTS[got], wanted, source_lang)
    assert found[-1] == reason and set(found) <= {"length_ratio", reason}


def test_a_short_text_has_no_language():
    assert check("Hi Tom", "Hi Tom", "de") == []
    assert check("Mum!", "妈妈！", "de") == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_looped_tail_is_named(language):
    text = TEXTS[language]
    assert "repetition" in check(ENGLISH, text + text[-12:] * 20, language)


def test_a_source_that_repeats_as_well_excuses_it():
    source, translation = ("No, no, no, no, no, no, no!", "Nein, nein, nein, nein, nein, nein, nein!")
    assert check(source, translation) == []
    assert (
        check("I said no, and I meant what I said to you.", translation)
        == ["repetition", "wrong_language"][:1]
    )


@pytest.mark.parametrize(
    ("source", "translation", "target", "source_lang", "found"),
    [
        (ENGLISH, "Der Zug fährt.", "de", "en", True),
        (ENGLISH, "火车走了。", "zh", "en", True),
        (TEXTS["zh"], "The train.", "en", "zh", True),
        ("Stop it!", TEXTS["de"], "de", "en", True),
        ("Stop it!", "Hör sofort damit auf!", "de", "en", False),
        ("Hi.", "Einen schönen guten Tag!", "de", "en", False),
    ],
)
def test_length_ratio_by_script_with_slack_for_short_texts(source, translation, target, source_lang, found):
    assert ("length_ratio" in check(source, translation, target, source_lang)) is found


def test_bounds_of_a_direction_stand_before_the_usual_ones():
    bounds = {"en-zh": (0.5, 0.9)}  # these translations have 0.27
    assert check(ENGLISH, TEXTS["zh"], "zh", length_ratios=bounds) == ["length_ratio"]
    assert check(ENGLISH, TEXTS["ja"], "ja", length_ratios=bounds) == []


def test_empty_null_and_truncated():
    assert check(ENGLISH, None) == check(ENGLISH, " \n") == ["empty"]
    assert check(ENGLISH, "", truncated=True) == ["truncated", "empty"]
    assert check(ENGLISH, TEXTS["de"], truncated=True) == ["truncated"]
    assert check_translations([], [], [], [], [], Checks()) == []


def test_a_language_that_is_none_of_lmts_is_refused():
    with pytest.raises(
        InputError, match=r"'xx' are not among LMT's 60: check only rows that were translated"
    ):
        check("a", "b", "xx")


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"en-xx": (0.1, 0.8)}, "'en-xx' is not a direction in LMT's codes, such as en-zh"),
        ({"en": (0.1, 0.8)}, "'en' is not a direction"),
        ({"en-zh": (0.8, 0.1)}, r"en-zh: \[0.8, 0.1\] is not 0 <= low < high"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(ratios, message):
    with pytest.raises(ValidationError, match=message):
        Checks(length_ratios=ratios)


@given(st.text(min_size=1, max_size=40), st.integers(1, 30))
def test_repetition_is_the_share_of_8_grams_seen_before(unit, times):
    text = unit * times
    seen: list[str] = []
    again = 0
    for start in range(len(text) - 7):
        gram = text[start : start + 8]
        again += gram in seen
        seen.append(gram)
    assert repetition(text) == pytest.approx(again / len(seen) if len(seen) >= 16 else 0.0)


@given(
    st.text(), st.none() | st.text(), st.sampled_from(sorted(LANGUAGES)), st.sampled_from(sorted(LANGUAGES))
)
def test_any_text_gets_known_reasons_once_each_and_the_same_alone_or_among_others(
    source, translation, source_lang, target
):
    alone = check(source, translation, target, source_lang)
    assert set(alone) <= set(CHECK_REASONS) and len(set(alone)) == len(alone)
    rows = check_translations(
        [ENGLISH, source],
        [ENGLISH, translation],
        ["en", source_lang],
        ["de", target],
        [True, False],
        Checks(),
    )
    assert rows[1] == alone


@given(st.sampled_from(sorted(TEXTS)), st.sampled_from(sorted(TEXTS)))
def test_a_text_is_never_called_foreign_in_its_own_language(source_lang, target):
    assert not {"wrong_script", "wrong_language"} & set(
        check(TEXTS[source_lang], TEXTS[target], target, source_lang)
    )
