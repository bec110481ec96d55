"""The parts that specs share: input, output, pools, router, budget, prompt, and how the passes run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from routelmt_batch.prompts import LANGUAGES, LMT_TEMPLATE
from routelmt_batch.spec.kinds import KINDS, SMALL_MODEL
from routelmt_batch.spec.values import Fraction, Language, Threshold, Uri

# Engine arguments that have a key of their own in the spec, or that the passes depend on.
OWN_ENGINE_KEYS = {
    "model": "source",
    "runner": "(set by the pass)",
    "dtype": "dtype",
    "max_model_len": "max_model_len_tokens",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel_size",
    "trust_remote_code": "trust_remote_code",
}


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SpecFile(Part):
    """What a file holds, whole."""

    command: ClassVar[str]  # that reads it; `init --kind` writes one

    @classmethod
    def starter(cls) -> str:
        """What writes one to start from."""
        return f"`routelmt-batch init --kind {cls.command}` writes one"


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


class Texts(Part):
    """Where rows have their text and languages: in columns, or one language for all rows."""

    columns: Columns = Columns()
    source_lang: Language | None = None
    target_lang: Language | None = None

    @model_validator(mode="after")
    def _known_languages(self) -> Self:
        for key in ("source_lang", "target_lang"):
            code = getattr(self, key)
            if code is not None and code not in LANGUAGES:
                raise ValueError(f"{key} {code!r} is not one of LMT's 60 codes{near(code, LANGUAGES)}")
        return self


class Input(Texts):
    """`uri` is a folder, a glob or a file, or a list of these: then shards are named by their place
    in the list, `0/...`, `1/...`."""

    uri: Uri | Annotated[tuple[Uri, ...], Field(min_length=1)]

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def texts(self) -> Texts:
        return Texts(columns=self.columns, source_lang=self.source_lang, target_lang=self.target_lang)


class Output(Part):
    uri: Uri
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"


class Replicas(Part):
    """How many engines a pool has: it starts with `min` and grows to `max` while there is work and room."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _as_replicas(value: object) -> object:
    return {"min": value, "max": value} if isinstance(value, int) else value


class Pool(Part):
    """One model and the engines that serve it. Sizes are per engine."""

    source: str
    # A number, or `{min: 1, max: 4}`.
    replicas: Annotated[Replicas, BeforeValidator(_as_replicas)] = Replicas(min=1, max=1)
    gpus: int | None = Field(None, ge=0)  # None: as many as the model is split over, if there are GPUs
    cpus: float = Field(1, gt=0)  # Ray CPUs reserved
    threads: int | None = Field(None, ge=1)  # CPU engine only; None: every core
    # auto: bfloat16 where the pool's nodes compute in it, else float32.
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len_tokens: int = Field(2048, ge=8)
    max_num_batched_tokens: int = Field(16384, ge=8)  # of one forward pass
    max_num_seqs: int = Field(256, ge=1)  # rows of one forward pass
    trust_remote_code: bool = False
    env: dict[str, str] = {}

    @property
    def gpus_of_model(self) -> int:
        """GPUs that one engine's model is split over, where there are GPUs."""
        return 1


class Translator(Pool):
    """A pool of vLLM engines; `engine` takes any other argument of vLLM's."""

    max_output_tokens: int = Field(512, ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    engine: dict[str, Any] = {}

    @property
    def gpus_of_model(self) -> int:
        return self.tensor_parallel_size

    @model_validator(mode="after")
    def _engine_keys(self) -> Translator:
        for key in self.engine:
            if key in OWN_ENGINE_KEYS:
                raise ValueError(f"engine.{key} has a key of its own: {OWN_ENGINE_KEYS[key]}")
        return self

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
    """`source` is a router folder, a model, a corpus or a COMET checkpoint, as the kind wants it."""

    kind: str = "routelmt"
    source: str = ""
    seed: int = 0  # of `random`

    @model_validator(mode="after")
    def _known_kind(self) -> Router:
        served = [name for name, kind in KINDS.items() if not kind.needs_reference]
        if self.kind not in served:
            why = "needs references: for evaluation only" if self.kind in KINDS else "unknown"
            raise ValueError(
                f"kind {self.kind!r}: {why}; known here: {', '.join(served)}{near(self.kind, served)}"
            )
        if not self.source and KINDS[self.kind].source not in ("", SMALL_MODEL):
            raise ValueError(f"kind {self.kind} needs a source: {KINDS[self.kind].source}")
        return self


class Budget(Part):
    fraction: Fraction
    min_gain: float | None = Field(None, allow_inf_nan=False)
    # Rows that score at least this go to the large model, whatever their number, up to the cap.
    threshold: Threshold = None
    cap: Fraction | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Budget:
        if self.cap is not None and self.threshold is None:
            raise ValueError("cap goes with threshold; without one, fraction is the cap")
        if self.min_gain is not None and self.threshold is not None:
            raise ValueError("min_gain and threshold are both a lowest score: give one")
        return self


class Page(Part):
    """How much corpus text the audit page shows: `rows` of each kind (most gained, nearest to the cut,
    failed) of at most `shards` shards; 0 keeps text out of the page."""

    rows: int = Field(10, ge=0, le=1000)
    shards: int = Field(50, ge=0, le=1000)


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


def near(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
