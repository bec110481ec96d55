"""The prompt is LMT's to the letter, and token ids are the tokenizer's own."""

import shutil

import pytest
from transformers import AutoTokenizer

from routelmt_batch.prompts import LANGUAGES, Prompter
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


@pytest.mark.parametrize("code", ["xx", "EN", ""])
def test_codes_are_exact(code):
    assert code not in LANGUAGES
