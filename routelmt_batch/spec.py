"""The job spec: frozen pydantic models, read from YAML. It knows no engine and opens no corpus."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from routelmt_batch.prompts import LANGUAGES, LMT_TEMPLATE
from routelmt_batch.rows import OUTPUT_NAMES

# Engine arguments that have a key of their own in the spec, or that the passes depend on.
OWN_ENGINE_KEYS = {
    "model": "source",
    "task_type": "(set by the pass)",
    "dtype": "dtype",
    "max_model_len": "max_model_len_tokens",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel_size",
    "trust_remote_code": "trust_remote_code",
}


def _off_is_a_word(value: object) -> object:
    """YAML 1.1 reads a bare `off` as False."""
    return "off" if value is False else value


def _no_is_a_word(value: object) -> object:
    """YAML 1.1 reads a bare `no`, Norwegian, as False."""
    return "no" if value is False else value


def _is_a_path(uri: str) -> str:
    if "://" in uri:
        raise ValueError("object stores are not read or written yet: give a path, such as a mount")
    return uri


def _exact(value: object) -> object:
    """Keep the text of a decimal fraction: 0.29 is 29 rows of 100, not 28."""
    if isinstance(value, bool):
        raise ValueError("give a number between 0 and 1")
    if isinstance(value, int | float):
        value = repr(value)
    try:
        return Decimal(str(value).strip())
    except InvalidOperation as error:
        raise ValueError("give a number between 0 and 1, such as 0.3") from error


Uri = Annotated[str, AfterValidator(_is_a_path)]
Language = Annotated[str, BeforeValidator(_no_is_a_word)]
Fraction = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Columns(Part):
    source: str = "source"
    source_lang: str = "source_lang"
    target_lang: str = "target_lang"
    reference: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Columns:
        names = [self.source, self.source_lang, self.target_lang]
        if len(set(names)) < len(names):
            raise ValueError(f"source, source_lang and target_lang must be three columns: {names}")
        return self


class Input(Part):
    uri: Uri
    columns: Columns = Columns()
    source_lang: Language | None = None
    target_lang: Language | None = None

    @model_validator(mode="after")
    def _known_languages(self) -> Input:
        for key in ("source_lang", "target_lang"):
            code = getattr(self, key)
            if code is not None and code not in LANGUAGES:
                raise ValueError(f"{key} {code!r} is not one of LMT's 60 codes{near(code, LANGUAGES)}")
        return self


class Output(Part):
    uri: Uri
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"


class Pool(Part):
    """One model and the engines that serve it. Sizes are per replica."""

    source: str
    replicas: int = Field(1, ge=1)
    gpus: int | None = Field(None, ge=0)  # None: tensor_parallel_size if the cluster has GPUs
    cpus: float = Field(1, gt=0)  # Ray CPUs reserved
    threads: int | None = Field(None, ge=1)  # CPU engine only; None: every core
    tensor_parallel_size: int = Field(1, ge=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len_tokens: int = Field(2048, ge=8)
    max_num_batched_tokens: int = Field(16384, ge=8)
    max_num_seqs: int = Field(256, ge=1)
    trust_remote_code: bool = False
    engine: dict[str, Any] = {}
    env: dict[str, str] = {}

    @model_validator(mode="after")
    def _engine_keys(self) -> Pool:
        for key in self.engine:
            if key in OWN_ENGINE_KEYS:
                raise ValueError(f"engine.{key} has a key of its own: {OWN_ENGINE_KEYS[key]}")
        return self


class Translator(Pool):
    max_output_tokens: int = Field(512, ge=1)

    @model_validator(mode="after")
    def _room(self) -> Translator:
        if self.max_output_tokens >= self.max_model_len_tokens:
            raise ValueError(
                f"max_output_tokens {self.max_output_tokens} leaves no room for a prompt in "
                f"max_model_len_tokens {self.max_model_len_tokens}"
            )
        return self

    @property
    def prompt_limit_tokens(self) -> int:
        return self.max_model_len_tokens - self.max_output_tokens


class Models(Part):
    small: Translator
    large: Translator


class Router(Pool):
    kind: Literal["routelmt"] = "routelmt"


class Budget(Part):
    fraction: Fraction
    min_gain: float | None = Field(None, allow_inf_nan=False)


class Guard(Part):
    mode: Annotated[Literal["off"], BeforeValidator(_off_is_a_word)] = "off"


class Prompt(Part):
    template: str = LMT_TEMPLATE

    @model_validator(mode="after")
    def _fields(self) -> Prompt:
        try:
            self.template.format(source_lang="", target_lang="", source="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template knows {{source_lang}}, {{target_lang}}, {{source}}: {error}"
            ) from None
        if "{source}" not in self.template:
            raise ValueError("template must hold {source}")
        return self


class Run(Part):
    """How the passes run. None of it changes the plan."""

    pools: Literal["auto", "sequential", "concurrent"] = "auto"
    part_rows: int = Field(1024, ge=1)  # rows of one engine batch and of one committed part
    retries: int = Field(2, ge=0)
    max_failed_fraction: Fraction = Decimal("0.01")


class JobSpec(Part):
    name: str = Field(min_length=1)
    input: Input
    output: Output
    models: Models
    router: Router
    budget: Budget
    guard: Guard = Guard()
    prompt: Prompt = Prompt()
    run: Run = Run()

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> JobSpec:
        for name in self.input.columns.model_dump().values():
            if name in OUTPUT_NAMES:
                raise ValueError(f"input column {name!r} is the name of an output column: rename it")
        return self

    @property
    def prompt_limit_tokens(self) -> int:
        """Longest prompt that the router reads whole and that leaves both models their output."""
        return min(
            self.router.max_model_len_tokens,
            self.models.small.prompt_limit_tokens,
            self.models.large.prompt_limit_tokens,
        )

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def near(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
