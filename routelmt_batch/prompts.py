"""The translation prompt: LMT's template, language names, chat template, token ids.

It knows models only by folder, URI or hub name, and tokenizers as tokens.py gives them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from routelmt_batch.errors import ModelError
from routelmt_batch.tokens import TextTokenizer, load_tokenizer

_TOGETHER_CHARS = 1 << 20
_PLACE = "the-users-text"  # in the chat template, until a prompt takes its place
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


@dataclass(frozen=True)
class Prompter:
    """Turns rows into the token ids that one model reads.

    The template's text is wrapped in the tokenizer's chat template if it has one (generation
    prompt added; special tokens come from that template); otherwise it is tokenized unchanged. A row's text
    is data: the name of a control token in it is split into ordinary tokens.
    """

    source: str
    template: str = LMT_TEMPLATE
    trust_remote_code: bool = False

    def load(self) -> TextTokenizer:
        return load_tokenizer(self.source, self.trust_remote_code)

    def token_ids(
        self, texts: Sequence[str], source_langs: Sequence[str], target_langs: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of each prompt; languages are codes of `LANGUAGES`.

        Long texts are tokenized a few at a time: a megabyte of text takes 160 of memory.
        """
        ids: list[list[int]] = []
        for part in _by_length(texts):
            ids += self._token_ids(texts[part], source_langs[part], target_langs[part])
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that the text has at least. It takes a thousandth of the tokenizer's time.

        A token is no longer than the longest in the vocabulary. White space is not counted: a special token
        may take in what surrounds it.
        """
        longest = _longest_token(self.source, self.trust_remote_code)
        if not longest:
            return 0
        backend = self.load().backend
        normalizer = backend.normalizer if backend else None
        words = (normalizer.normalize_str(text) if normalizer else text).split()
        return sum(len(word.encode()) for word in words) // longest

    def _token_ids(
        self, texts: Sequence[str], source_langs: Sequence[str], target_langs: Sequence[str]
    ) -> list[list[int]]:
        tokenizer = self.load()
        frame = _chat_frame(self.source, self.trust_remote_code)
        before, after = frame or ("", "")
        template = f"{_literal(before)}{tokenizer.marked(self.template)}{_literal(after)}"
        prompts = [
            template.format(source_lang=LANGUAGES[s], target_lang=LANGUAGES[t], source=text)
            for text, s, t in zip(texts, source_langs, target_langs, strict=True)
        ]
        return tokenizer.ids(prompts, add_special_tokens=frame is None)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@functools.lru_cache(maxsize=4)
def _chat_frame(source: str, trust_remote_code: bool) -> tuple[str, str] | None:
    """What a tokenizer's chat template puts before and after a prompt; None if there is no such template.

    Raises:
        ModelError: the template does not give the prompt once, unchanged.
    """
    tokenizer = load_tokenizer(source, trust_remote_code)
    if not getattr(tokenizer.tokenizer, "chat_template", None):
        return None
    conversation = [{"role": "user", "content": _PLACE}]
    chat = str(
        tokenizer.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    )
    before, *after = chat.split(_PLACE)
    if len(after) != 1:
        raise ModelError(
            f"{source}: its chat template gives the user's text {len(after)} times, and a prompt needs it "
            "once. Mend the template, or remove it: then the prompt is given alone"
        )
    return tokenizer.marked(before), tokenizer.marked(after[0])


@functools.lru_cache(maxsize=4)
def _longest_token(source: str, trust_remote_code: bool) -> int:
    """Bytes of a tokenizer's longest token; 0 if it is not byte-level BPE, where a token may stand for any
    number of characters."""
    tokenizer = load_tokenizer(source, trust_remote_code)
    backend = tokenizer.backend
    if backend is None:
        return 0
    made = json.loads(backend.to_str())
    steps = made["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    removes = any(step.get("behavior") == "Removed" for step in steps)
    if made["model"]["type"] != "BPE" or removes or "ByteLevel" not in {step.get("type") for step in steps}:
        return 0
    return max(len(token.encode()) for token in backend.get_vocab() if not tokenizer.is_secret(token))


def _by_length(texts: Sequence[str]) -> Iterator[slice]:
    """Slices of texts, each of about a megabyte at most."""
    start = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > _TOGETHER_CHARS:
            yield slice(start, place)
            start, size = place, 0
        size += len(text)
    if size or start < len(texts):
        yield slice(start, len(texts))


def cut_off(ids: list[int], limit: int) -> list[int]:
    """Cut to at most `limit` tokens: the first ones and the last, which ends an encoder's input."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
