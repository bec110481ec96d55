"""The job spec: frozen pydantic models, read from YAML. It knows no engine and opens no corpus."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from routelmt_batch.prompts import LANGUAGES, LMT_TEMPLATE
from routelmt_batch.routers.kinds import KINDS, SMALL_MODEL
from routelmt_batch.rows import LABEL_NAMES, OUTPUT_NAMES

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
    """`uri` is a folder, a glob or a file, or a list of these: then shards are named by their place
    in the list, `0/...`, `1/...`."""

    uri: Uri | Annotated[tuple[Uri, ...], Field(min_length=1)]
    columns: Columns = Columns()
    source_lang: Language | None = None
    target_lang: Language | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri

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


def _calibrated_or_number(value: object) -> object:
    if isinstance(value, str) and value != "calibrated":
        try:
            return float(value)
        except ValueError as error:
            raise ValueError("give a score, or `calibrated` for the router's own threshold") from error
    return value


class Budget(Part):
    fraction: Fraction
    min_gain: float | None = Field(None, allow_inf_nan=False)
    # Rows that score at least this go to the large model, whatever their number, up to the cap.
    threshold: Annotated[
        Annotated[float, Field(allow_inf_nan=False)] | Literal["calibrated"] | None,
        BeforeValidator(_calibrated_or_number),
    ] = None
    cap: Fraction | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Budget:
        if self.cap is not None and self.threshold is None:
            raise ValueError("cap goes with threshold; without one, fraction is the cap")
        if self.min_gain is not None and self.threshold is not None:
            raise ValueError("min_gain and threshold are both a lowest score: give one")
        return self


class Metric(Pool):
    """What quality is measured with: `chrf`, or `comet:<folder or hub name>`."""

    source: str = "chrf"

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: object) -> object:
        given = {"source": value} if isinstance(value, str) else value
        if isinstance(given, dict) and given.get("source", "chrf") == "chrf":
            given = {"gpus": 0, **given}  # it would hold one and leave it idle
        return given

    @model_validator(mode="after")
    def _known_metric(self) -> Metric:
        if self.source != "chrf" and not self.source.startswith("comet:"):
            raise ValueError(f"unknown metric {self.source!r}: use chrf, or comet:<folder or hub name>")
        return self


class Guard(Part):
    mode: Annotated[Literal["off"], BeforeValidator(_off_is_a_word)] = "off"


class Checks(Part):
    """Bounds beyond which a translation is doubtful. Lengths are in characters; a letter of Chinese,
    Japanese or Korean counts as two letters."""

    copied_min_letters: int = Field(10, ge=1)  # of words without a capital: the rest may be names
    # How much larger the share of repeated 8-grams may be in a translation than in its source.
    repetition_excess: float = Field(0.4, gt=0, le=1)
    # Characters of translation to one of source: from 1/factor to factor times what is usual for the scripts.
    length_factor: float = Field(2.0, gt=1, allow_inf_nan=False)
    length_slack_chars: int = Field(10, ge=0)
    length_ratios: dict[str, tuple[float, float]] = {}  # of a direction: {en-zh: [0.1, 0.8]}
    language_min_letters: int = Field(10, ge=1)  # shorter texts have no language
    min_script_share: float = Field(0.1, ge=0, le=1)  # of letters in the target language's scripts
    min_language_probability: float = Field(0.05, ge=0, le=1)  # of the target language

    @model_validator(mode="after")
    def _directions_and_bounds(self) -> Checks:
        for direction, (low, high) in self.length_ratios.items():
            if not set(direction.split("-")) <= LANGUAGES.keys() or direction.count("-") != 1:
                raise ValueError(
                    f"length_ratios: {direction!r} is no direction such as en-zh, in LMT's codes"
                )
            if not 0 <= low < high:
                raise ValueError(f"length_ratios.{direction}: [{low}, {high}] is not 0 <= low < high")
        return self


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


class PassSpec(Part):
    """What every pass over a corpus needs."""

    # Columns beside text and languages that shards must have, and names that they must not have.
    also: ClassVar[tuple[str, ...]] = ()
    added: ClassVar[tuple[str, ...]] = ()

    name: str = Field(min_length=1)
    input: Input
    output: Output
    prompt: Prompt = Prompt()
    run: Run = Run()

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> Self:
        for name in self.input.columns.model_dump().values():
            if name in self.added:
                raise ValueError(f"input column {name!r} is the name of an output column: rename it")
        return self

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class JobSpec(PassSpec):
    added: ClassVar[tuple[str, ...]] = OUTPUT_NAMES

    models: Models
    router: Router
    budget: Budget
    guard: Guard = Guard()

    @property
    def prompt_limit_tokens(self) -> int:
        """Longest prompt that the router reads whole and that leaves both models their output."""
        limits = [self.models.small.prompt_limit_tokens, self.models.large.prompt_limit_tokens]
        if KINDS[self.router.kind].engine == "vllm":
            limits.append(self.router.max_model_len_tokens)
        return min(limits)


class ScoreSpec(PassSpec):
    """A router over tables, without the models that it routes between."""

    router: Router

    @property
    def prompt_limit_tokens(self) -> int:
        return self.router.max_model_len_tokens


class LabelSpec(PassSpec):
    also: ClassVar[tuple[str, ...]] = ("reference",)
    added: ClassVar[tuple[str, ...]] = LABEL_NAMES

    models: Models
    metric: Metric = Metric()

    @model_validator(mode="before")
    @classmethod
    def _reference_by_default(cls, value: Any) -> Any:
        """Labels need references: the column is `reference` unless named."""
        columns = {"reference": "reference"}
        if isinstance(value, dict) and isinstance(given := value.get("input"), dict):
            columns |= given.get("columns") or {}
            value = {**value, "input": {**given, "columns": columns}}
        return value


def near(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
