"""The prompt is LMT's to the letter, and token ids are the tokenizer's own."""

import shutil

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from routelmt_batch.engines.child import tokenized
from routelmt_batch.prompts import LANGUAGES, Prompter
from routelmt_batch.rows import TOO_LONG
from tests.conftest import MODELS

PROMPT = "Translate the following text from English into German:\nEnglish: A {b}\tc\nd\nGerman:"


def test_sixty_languages():
    assert len(LANGUAGES) == 60
    assert (LANGUAGES["el"], LANGUAGES["he"], LANGUAGES["mn_cn"]) == (
        "Modern Greek",
        "Modern Hebrew",
        "Inner Mongolian",
    )


def test_no_chat_template_means_the_text_as_it_stands():
    small = str(MODELS / "small")
    expected = AutoTokenizer.from_pretrained(small)(PROMPT)["input_ids"]
    assert Prompter(small).token_ids(["A {b}\tc\nd"], ["en"], ["de"]) == [expected]
    assert Prompter(small).token_ids([], [], []) == []


def test_a_chat_template_wraps_the_prompt(tmp_path):
    folder = tmp_path / "chatty"
    shutil.copytree(MODELS / "small", folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = Prompter(str(folder)).token_ids(["A {b}\tc\nd"], ["en"], ["de"])
    assert tokenizer.decode(ids[0]) == f"<user>{PROMPT}<assistant>"


TEXT = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=" \t\n\u3000ab-=", max_size=200),
    st.lists(
        st.sampled_from(["<eos>", "the ", "=" * 40, " " * 60, "e\u0301", "\u1112\u1161\u11ab", "𝔘"])
    ).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
@pytest.mark.parametrize("model", ["small", "normalizing"])
def test_a_text_never_has_fewer_tokens_than_its_bound(tokenizers, model, text):
    source, tokenizer = tokenizers[model]
    assert Prompter(source).fewest_tokens(text) <= len(tokenizer(text)["input_ids"])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The demo's tokenizer, and one that composes characters and merges what surrounds a special token."""
    folder = tmp_path_factory.mktemp("normalizing")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<gap>", lstrip=True, rstrip=True)]}
    )
    tokenizer.save_pretrained(folder)
    folders = {"small": str(MODELS / "small"), "normalizing": str(folder)}
    return {name: (source, AutoTokenizer.from_pretrained(source)) for name, source in folders.items()}


def test_a_tokenizer_whose_tokens_have_no_longest_gives_no_bound(tmp_path):
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    assert Prompter(str(tmp_path)).fewest_tokens("x" * 100_000) == 0


def test_far_too_long_texts_are_refused_without_tokens(monkeypatch):
    seen: list[str] = []
    whole = Prompter._token_ids

    def counting(self, texts, *languages):
        seen.extend(texts)
        return whole(self, texts, *languages)

    monkeypatch.setattr(Prompter, "_token_ids", counting)
    texts = ["A.", "many words " * 100_000, "many words " * 60, "B."]
    rows = pa.table({"source": texts, "source_lang": ["en"] * 4, "target_lang": ["de"] * 4})
    keys, kept, refused = tokenized([7, 8, 9, 10], rows, Prompter(str(MODELS / "small")), 100)
    assert (list(keys), kept["source"].to_pylist()) == ([7, 10], ["A.", "B."])
    assert {key: answer.skip for key, answer in refused} == {8: TOO_LONG, 9: TOO_LONG}
    assert texts[1] not in seen and texts[2] in seen


def test_long_texts_are_tokenized_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("routelmt_batch.prompts._TOGETHER_CHARS", 10)
    small = Prompter(str(MODELS / "small"))
    texts = ["Aa.", "", "Bb. Cc. Dd. Ee.", "F.", "G.", "Hh. Ii."]
    together = [ids for text in texts for ids in small._token_ids([text], ["en"], ["de"])]
    assert small.token_ids(texts, ["en"] * 6, ["de"] * 6) == together


@pytest.mark.parametrize("code", ["xx", "EN", ""])
def test_codes_are_exact(code):
    assert code not in LANGUAGES


def test_a_batch_of_nothing_but_too_long_prompts_is_refused_row_by_row():
    rows = pa.table(
        {"source": ["one two three four"] * 2, "source_lang": ["en"] * 2, "target_lang": ["de"] * 2}
    )
    keys, kept, refused = tokenized([1, 2], rows, Prompter(str(MODELS / "small")), 5)
    assert (list(keys), kept.num_rows) == ([], 0)
    assert [(key, answer.skip) for key, answer in refused] == [(1, "too_long"), (2, "too_long")]
