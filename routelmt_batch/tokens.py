"""Tokenizers that read text as data: the name of a control token in a text is ordinary text.

It knows no prompts. It is imported in the quality environment, too, whose transformers is older.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from routelmt_batch.fetched import commit, local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_loading = threading.Lock()  # two threads cannot import transformers at once


@functools.lru_cache(maxsize=4)
def load_tokenizer(source: str, trust_remote_code: bool = False) -> TextTokenizer:
    """The tokenizer of a model folder, a fetched model's URI or a hub name; cached in the process."""
    with _loading:
        from transformers import AutoTokenizer

        return TextTokenizer(
            AutoTokenizer.from_pretrained(
                local(source), revision=commit(source), trust_remote_code=trust_remote_code
            )
        )


class TextTokenizer:
    """A tokenizer that takes every text as data.

    It gives each control token (`<eos>`, `<|im_end|>`) a secret name, which no text can contain. `marked`
    puts the secret names into a text of ours, such as a chat template, so its control tokens still work.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        # mistral-common's tokenizers take every text as data, and have no way to read text of ours otherwise.
        self._is_plain = self.backend is None and not hasattr(tokenizer, "_tokenize")
        self._names = {} if self._is_plain else controls(tokenizer)
        hide(tokenizer, self._names)
        # The longest name first: one may begin with another.
        self._known = re.compile(
            "|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or "(?!)"
        )
        self._secret = re.compile("(" + "|".join(self._names.values()) + ")")

    def marked(self, text: str) -> str:
        """Our own text, in which the names of control tokens stand for the tokens."""
        return self._known.sub(lambda found: self._names[found[0]], text)

    def is_secret(self, token: str) -> bool:
        """Whether this is a secret name, which no text holds."""
        return token in self._names.values()

    def ids(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """Token ids of each text. With `add_special_tokens` the tokenizer puts its own around them."""
        if not texts:
            return []
        backend = self.backend
        if backend is not None:
            # Without offsets and masks, which nobody reads: the same ids in less time.
            found = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in found]
        if self._is_plain:
            found = self.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
            return [list(ids) for ids in found]
        return [self._python_ids(text, add_special_tokens) for text in texts]

    @property
    def backend(self) -> Any | None:
        """The tokenizer of the library `tokenizers`; None if the model brings another."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    def _python_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids by a tokenizer that is written in Python, such as one that comes with a model."""
        tokens: list[str] = []
        originals = {secret: name for name, secret in self._names.items()}
        for piece in self._secret.split(text) if self._names else [text]:
            if piece in originals:
                tokens.append(originals[piece])
            elif piece:
                tokens += self.tokenizer.tokenize(piece, split_special_tokens=True)
        ids: list[int] = self.tokenizer.convert_tokens_to_ids(tokens)
        return self.tokenizer.build_inputs_with_special_tokens(ids) if add_special_tokens else ids


def controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The names of a tokenizer's control tokens, each with a secret one.

    These are the tokens that it calls special, and those added ones that its chat template writes (Qwen3's
    `<think>` is one). Other added tokens are words of the vocabulary, such as Gemma's line breaks.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    named = {
        token.content: f"control{secrets.token_hex(16)}"
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    }
    return named | {
        name: f"control{secrets.token_hex(16)}" for name in tokenizer.all_special_tokens if name not in named
    }


def hide(tokenizer: PreTrainedTokenizerBase, names: dict[str, str]) -> None:
    """Give control tokens other names in a tokenizer of the library `tokenizers`; their ids stay.

    `encode_special_tokens` of that library is not enough: it leaves added tokens that are not special, and a
    vocabulary that holds the names itself (XLM-R's) finds them in a text all the same.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return
    from tokenizers import Tokenizer

    made = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in made["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = made["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:  # Unigram: pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:  # a merge whose result has another name now would be refused
        model["merges"] = [pair for pair in model["merges"] if not names.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    backend = Tokenizer.from_str(json.dumps(made))
    backend.no_truncation()
    backend.no_padding()
    tokenizer._tokenizer = backend
    for attribute, name in tokenizer.special_tokens_map.items():
        if name in names:
            setattr(tokenizer, attribute, names[name])
