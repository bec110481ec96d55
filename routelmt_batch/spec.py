"""The job spec: frozen pydantic models, read from YAML. It knows no engine and opens no corpus."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from routelmt_batch.kinds import KINDS, SMALL_MODEL
from routelmt_batch.prompts import LANGUAGES, LMT_TEMPLATE
from routelmt_batch.rows import LABEL_NAMES, OUTPUT_NAMES
from routelmt_batch.values import Fraction, GuardMode, Language, Threshold, Uri

COMET = "comet:"
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


class Metric(Pool):
    """What quality is measured with: `chrf`, or `comet:<folder, .ckpt file or hub name>`.

    A forward pass of COMET takes `max_num_seqs` rows at most, and no more than `max_num_batched_tokens`
    hold were every text as long as COMET reads.
    """

    source: str = "chrf"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "float32"  # as COMET runs by itself

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: object) -> object:
        given = {"source": value} if isinstance(value, str) else value
        if isinstance(given, dict) and given.get("source", "chrf") == "chrf":
            given = {"gpus": 0, **given}  # it would hold one and leave it idle
        return given

    @model_validator(mode="after")
    def _known_metric(self) -> Metric:
        if self.source != "chrf" and not self.source.startswith(COMET):
            raise ValueError(f"unknown metric {self.source!r}: use chrf, or comet:<folder or hub name>")
        if max(self.gpus or 0, self.tensor_parallel_size) > 1:
            raise ValueError("a metric runs on one GPU at most: set replicas, not gpus")
        return self

    @property
    def checkpoint(self) -> str:
        """What follows `comet:`."""
        return self.source.removeprefix(COMET)


def _for_quality(value: object) -> object:
    return {"kind": "routelmt-q", **value} if isinstance(value, dict) else value


class Guard(Part):
    """Which calls to the large model are saved or moved (paper, section on severe losses). Qualities
    are on the metric's x100 scale."""

    mode: GuardMode = "off"
    # The rows that the mode looks at: this many times the planned ones, by gain.
    candidates: float = Field(2.0, ge=1, allow_inf_nan=False)
    keep_small_above: float | None = Field(None, allow_inf_nan=False)
    verify: bool = False
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    escalate_fraction: Fraction = Decimal(0)
    escalate_below: float | None = Field(None, allow_inf_nan=False)
    router: Annotated[Router | None, BeforeValidator(_for_quality)] = None

    @property
    def hypotheses(self) -> bool:
        """Whether the small model translates the rows of the large one, too."""
        return self.mode == "hypothesis" or self.verify

    @property
    def measures(self) -> bool:
        """Whether it needs a metric."""
        return self.hypotheses or self.escalate_below is not None

    @model_validator(mode="after")
    def _whole(self) -> Guard:
        on = self.mode != "off"
        for wanted, by, key in (
            (on, f"mode: {self.mode}", "keep_small_above"),
            (self.mode == "predicted", "mode: predicted", "router"),
        ):
            if wanted and getattr(self, key) is None:
                raise ValueError(f"{by} needs {key}")
        if self.router is not None and self.router.kind != "routelmt-q":
            raise ValueError(
                f"router.kind {self.router.kind}: the guard's router predicts quality: routelmt-q"
            )
        if self.escalate_below is not None and not self.escalate_fraction:
            raise ValueError("escalate_below needs escalate_fraction: the places that it may give")
        return self


class Audit(Part):
    """A sample that both models translate and the metric scores, to hold predicted gains against
    realised ones. Its calls to the large model are its own cost, beside the budget."""

    fraction: Fraction = Decimal(0)
    min_rows: int = Field(200, ge=1)
    max_rows: int = Field(20_000, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _bounds(self) -> Audit:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is more than max_rows {self.max_rows}")
        return self


class Checks(Part):
    """Bounds beyond which a translation is doubtful. Lengths are in characters; a letter of Chinese,
    Japanese or Korean counts as two letters."""

    enabled: bool = True
    replicas: int = Field(1, ge=1)  # actors of one CPU
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


class PassSpec(SpecFile):
    """What every pass over a corpus needs."""

    # Names that shards' columns must not have.
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

    @property
    def also(self) -> tuple[str, ...]:
        """Columns beside text and languages that shards must have, by their key."""
        return ()

    def without_references(self) -> Self:
        """The same with a metric that reads no reference; a column of them is one like any other."""
        columns = self.input.columns.model_copy(update={"reference": None})
        return self.model_copy(update={"input": self.input.model_copy(update={"columns": columns})})

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class JobSpec(PassSpec):
    command = "run"
    added: ClassVar[tuple[str, ...]] = OUTPUT_NAMES

    models: Models
    router: Router
    budget: Budget
    checks: Checks = Checks()
    guard: Guard = Guard()
    audit: Audit = Audit()
    metric: Metric | None = None  # of guard and audit
    page: Page = Page()

    @property
    def measures(self) -> bool:
        return self.guard.measures or self.audit.fraction > 0

    @model_validator(mode="after")
    def _metric_where_one_is_needed(self) -> JobSpec:
        if self.measures and self.metric is None:
            by = "guard" if self.guard.measures else "audit"
            raise ValueError(f"{by} needs a metric: give metric: chrf, or comet:<folder or hub name>")
        return self

    @model_validator(mode="after")
    def _escalation_has_a_reason(self) -> JobSpec:
        guard = self.guard
        if guard.escalate_fraction and not self.checks.enabled and guard.escalate_below is None:
            raise ValueError("guard.escalate_fraction needs checks, or escalate_below and a metric")
        return self

    @model_validator(mode="after")
    def _places_to_hold_back(self) -> JobSpec:
        held, budget = self.guard.escalate_fraction, self.budget
        if held and budget.threshold is not None and budget.cap is None:
            raise ValueError(
                "guard.escalate_fraction holds back places: a budget.threshold needs a cap for it"
            )
        most = budget.fraction if budget.cap is None else budget.cap
        if held > most:
            raise ValueError(f"guard.escalate_fraction {held}: more than the budget, {most}")
        return self

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.measures and self.input.columns.reference else ()

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


class MeasureSpec(PassSpec):
    """A metric over the translations that tables hold."""

    metric: Metric

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.input.columns.reference else ()


class LabelSpec(PassSpec):
    command = "label"
    added: ClassVar[tuple[str, ...]] = LABEL_NAMES

    models: Models
    metric: Metric = Metric()

    @model_validator(mode="before")
    @classmethod
    def _reference_by_default(cls, value: Any) -> Any:
        """Labels need references: the column is `reference` unless named."""
        if isinstance(value, dict) and isinstance(given := value.get("input"), dict):
            columns = given.get("columns") or {}
            if isinstance(columns, dict) and columns.get("reference") is None:
                columns = {**columns, "reference": "reference"}
            value = {**value, "input": {**given, "columns": columns}}
        return value

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.input.columns.reference else ()


def near(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
