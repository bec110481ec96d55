"""The translation prompt: LMT's template, language names, chat template, token ids.

It knows models only by folder, URI or hub name, and imports transformers only when it loads a tokenizer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from routelmt_batch.fetched import local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# NiuTrans/LMT, src/utils.py (`en_trans_prompt`), with this package's field names.
LMT_TEMPLATE = (
    "Translate the following text from {source_lang} into {target_lang}:\n"
    "{source_lang}: {source}\n{target_lang}:"
)

# The 60 languages of LMT-60 (NiuTrans/LMT, README), by the names in the prompts of its src/inference.py.
LANGUAGES = {
    "am": "Amharic",
    "ar": "Arabic",
    "az": "Azerbaijani",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bo": "Tibetan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Modern Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Modern Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "jv": "Javanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Central Khmer",
    "ko": "Korean",
    "ky": "Kirghiz",
    "lo": "Lao",
    "mn_cn": "Inner Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "si": "Sinhala",
    "sk": "Slovak",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "tl": "Tagalog",
    "tr": "Turkish",
    "ug": "Uighur",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "yue": "Yue Chinese",
    "zh": "Chinese",
}


@functools.lru_cache(maxsize=4)
def load_tokenizer(source: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, a fetched model's URI or a hub name; cached in the process."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        local(source), trust_remote_code=trust_remote_code
    )
    return tokenizer


@dataclass(frozen=True)
class Prompter:
    """Turns rows into the token ids that one model reads.

    The template's text is wrapped in the tokenizer's chat template if it has one (generation
    prompt added; special tokens come from that template); otherwise it is tokenized unchanged.
    """

    source: str
    template: str = LMT_TEMPLATE
    trust_remote_code: bool = False

    def load(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, self.trust_remote_code)

    def token_ids(
        self, texts: Sequence[str], source_langs: Sequence[str], target_langs: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of each prompt; languages are codes of `LANGUAGES`."""
        if not texts:
            return []
        prompts = [
            self.template.format(source_lang=LANGUAGES[s], target_lang=LANGUAGES[t], source=text)
            for text, s, t in zip(texts, source_langs, target_langs, strict=True)
        ]
        tokenizer = self.load()
        chat = bool(getattr(tokenizer, "chat_template", None))
        if chat:
            conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = list(
                map(
                    str,
                    tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True),
                )
            )
        ids: list[list[int]] = tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
        return ids


def cut_off(ids: list[int], limit: int) -> list[int]:
    """Cut to at most `limit` tokens: the first ones and the last, which ends an encoder's input."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
