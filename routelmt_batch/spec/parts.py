"""The parts that specs share: input, output, pools, router, budget, prompt, and how the passes run."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from decimal import Decimal
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from routelmt_batch.kinds import KINDS, ORACLES, SMALL_MODEL
from routelmt_batch.languages import is_direction
from routelmt_batch.patience import Patience, seconds
from routelmt_batch.prompts import LMT_TEMPLATE
from routelmt_batch.spec.text import dump
from routelmt_batch.spec.values import (
    NOT_HERE,
    Amount,
    Duration,
    Fraction,
    Language,
    OutputUri,
    Source,
    Threshold,
    Unit,
    Uri,
    Uris,
    amount_of,
    secrets,
)

# Engine arguments that have their own key in the spec, or that a pass sets.
OWN_ENGINE_KEYS = {
    "model": "source",
    "revision": "source: OWNER/NAME@REVISION",
    "runner": "(set by the pass)",
    "dtype": "dtype",
    "max_model_len": "max_model_len_tokens",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel_size",
    "trust_remote_code": "trust_remote_code",
}


NAMES_ALONE = "names alone"  # the context in which a spec is dumped without values of variables


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SpecFile(Part):
    """The content of one spec file."""

    command: ClassVar[str]  # the command that reads it, and its name for `init --kind`

    @classmethod
    def starter(cls) -> str:
        """How to get a spec to start from, for messages."""
        return f"`routelmt-batch init --kind {cls.command}` writes one"

    def dump(self) -> str:
        """The spec as YAML, to be written. Of variables it has the names alone: a value may be a secret."""
        return dump(self.model_dump(mode="json", context=NAMES_ALONE))


class Columns(Part):
    """Names of the input columns that the job reads. All other columns are copied to the output."""

    source: str = Field("source", description="Column with the text to translate. It must hold strings.")
    source_lang: str = Field("source_lang", description="Column with the language of the text.")
    target_lang: str = Field("target_lang", description="Column with the language to translate into.")
    reference: str | None = Field(
        None,
        description="Column with a human translation, or with a list of several. Only a metric that needs "
        "references reads it.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Columns:
        names = [self.source, self.source_lang, self.target_lang]
        if len(set(names)) < len(names):
            raise ValueError(f"source, source_lang and target_lang must be three columns: {names}")
        if self.reference in names:
            raise ValueError(
                f"reference {self.reference!r} is the column of the text or of a language: name the column "
                "with human translations"
            )
        return self


class Texts(Part):
    """Where rows have their text and languages: in columns, or one language for all rows."""

    columns: Columns = Columns()
    source_lang: Language | None = Field(
        None,
        description="Source language of every row, such as `en`. Replaces the column. One of LMT's 60 codes; "
        "other spellings, such as `EN`, `en-US`, `eng` or `zho_Hans`, are read as the code that they mean.",
    )
    target_lang: Language | None = Field(
        None, description="Target language of every row, such as `de`. Replaces the column."
    )


class Input(Texts):
    """The corpus: Parquet shards, and where they hold text and languages."""

    uri: Uris = Field(
        title="path or URI, or list of them",
        description="Folder (searched with its subfolders), glob, or one Parquet file; or a list of these. "
        "A dataset on the Hugging Face hub is `hf://datasets/OWNER/NAME[@REVISION][/PATH]`; a job reads the "
        "commit that the revision is when the job begins. "
        "With a list, shard names begin with their place in it: `0/...`, `1/...`. "
        "A relative path starts at the spec's folder.",
    )

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def texts(self) -> Texts:
        return Texts(columns=self.columns, source_lang=self.source_lang, target_lang=self.target_lang)


class Corpus(Input):
    """The corpus of a job."""

    fold: Literal["exact", "off"] = Field(
        "exact",
        description="`exact`: rows with the same text and languages are one call: scored once, translated "
        "once, and written to each of them. The budget counts calls, and a call is worth its gain once for "
        "each of its rows. `off`: each row is a call.",
    )


class Output(Part):
    """Where the results go."""

    uri: OutputUri = Field(
        description="Output folder. A relative path starts at the folder where you run the command. "
        "`--output` replaces it."
    )
    compression: Literal["zstd", "snappy", "gzip", "none"] = Field(
        "zstd", description="Compression of the shards in `data/`."
    )


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
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    if not isinstance(value, dict | Replicas):
        raise ValueError("give a whole number, or {min: 1, max: 4}")
    return value


class Pool(Part):
    """One model and the engines that serve it. Sizes are per engine."""

    source: Source = Field(
        description="Model folder, on a disk that every node can read or in an object store, or Hugging Face "
        "name, `OWNER/NAME[@REVISION]`. A job loads one commit of it. A node fetches a model from a store "
        "once, into its cache."
    )
    replicas: Annotated[Replicas, BeforeValidator(_as_replicas)] = Field(
        Replicas(min=1, max=1),
        title="whole number, or `{min, max}`",
        description="Number of engines. With `{min: 1, max: 4}` the pool starts with `min` engines and grows "
        "to `max` while there is work and room.",
    )
    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs of one engine, all on one node. Default: `tensor_parallel_size` (1 if there is no "
        "such key) if the machines have GPUs, else 0.",
    )
    cpus: float = Field(1, gt=0, allow_inf_nan=False, description="CPUs that Ray reserves for one engine.")
    threads: int | None = Field(None, ge=1, description="Threads of one engine on CPUs. Default: every core.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Number format of weights and computation. `auto` is bfloat16 if every node of the pool "
        "computes in it, else float32. A job keeps the format that it started with.",
    )
    max_model_len_tokens: int = Field(
        2048,
        ge=8,
        description="Longest sequence of one row: prompt and translation together. A router reads the prompt "
        "only. A row that does not fit is skipped as `too_long`.",
    )
    max_num_batched_tokens: int = Field(16384, ge=8, description="Most tokens in one forward pass.")
    max_num_seqs: int = Field(256, ge=1, description="Most rows in one forward pass.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for models that you trust."
    )
    allow_pickle: bool = Field(
        False,
        description="Load weights that are pickles (`.bin`, `.ckpt`, `.pt`), which can run code. Only for "
        "models that you trust. Without it, those on the hub are refused, and others loaded with a warning.",
    )
    env: dict[str, str | None] = Field(
        default={},
        description="Environment variables of the engines, such as `VLLM_CACHE_ROOT`. A name without a value "
        "has the value of the command's own environment. Values are written nowhere, and not submitted.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, value: object) -> object:
        for key in ("env", "engine"):
            given = value.get(key) if isinstance(value, dict) else None
            if isinstance(given, dict) and (found := secrets(map(str, given))):
                raise ValueError(f"{key}: {', '.join(found)}: {NOT_HERE}")
        return value

    @field_validator("env")
    @classmethod
    def _can_be_set(cls, env: dict[str, str | None]) -> dict[str, str | None]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in f"{name}{value}":
                raise ValueError(f"{name!r}: a variable has a name without =, and no NUL character")
        return env

    @field_serializer("env")
    def _env(self, env: dict[str, str | None], info: FieldSerializationInfo) -> dict[str, str | None]:
        return dict.fromkeys(env) if info.context == NAMES_ALONE else env

    @property
    def variables(self) -> dict[str, str]:
        """`env`, with the values that the environment has; a name that it does not have is left out."""
        known = {name: os.environ.get(name) if value is None else value for name, value in self.env.items()}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def gpus_of_model(self) -> int:
        """GPUs that one engine's model is split over, where there are GPUs."""
        return 1


class Translator(Pool):
    """A translation model and its pool of vLLM engines. Sizes are per engine."""

    max_output_tokens: int = Field(
        512,
        ge=1,
        description="Longest translation. A prompt may have `max_model_len_tokens` minus this many tokens.",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs of one node that share one engine, for a model too large for one GPU."
    )
    engine: dict[str, Any] = Field(
        default={},
        description="Any other argument of vLLM, such as `{gpu_memory_utilization: 0.9}`.",
    )

    @property
    def gpus_of_model(self) -> int:
        return self.tensor_parallel_size

    @model_validator(mode="after")
    def _engine_keys(self) -> Translator:
        for key in self.engine:
            if key in OWN_ENGINE_KEYS:
                raise ValueError(f"engine.{key} has its own key: {OWN_ENGINE_KEYS[key]}")
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
    """The two translation models."""

    small: Translator
    large: Translator

    @property
    def prompt_limit_tokens(self) -> int:
        """Longest prompt that leaves room for the output of both models."""
        return min(self.small.prompt_limit_tokens, self.large.prompt_limit_tokens)


def _sources() -> str:
    """What each kind of router reads."""
    kinds = {
        source: [f"`{kind}`" for kind, read in KINDS.items() if read is source] for source in KINDS.values()
    }
    return "; ".join(
        f"{source.words if source else 'nothing'} ({', '.join(names)})" for source, names in kinds.items()
    )


class Router(Pool):
    """The router, which scores each row before anything is translated, and its pool of engines."""

    kind: str = Field(
        "routelmt",
        description=f"Kind of router: {', '.join(f'`{kind}`' for kind in KINDS)}.",
    )
    source: Source = Field(
        "",
        description=f"What the kind reads: {_sources()}. Default: the small model, for kinds that read one.",
    )
    seed: int = Field(0, description="Seed of the kind `random`.")

    @model_validator(mode="after")
    def _known_kind(self) -> Router:
        if self.kind not in KINDS:
            why = "needs references: for evaluation only" if self.kind in ORACLES else "unknown"
            raise ValueError(
                f"kind {self.kind!r}: {why}; known here: {', '.join(KINDS)}{near(self.kind, KINDS)}"
            )
        wanted = KINDS[self.kind]
        if not self.source and wanted and wanted is not SMALL_MODEL:
            raise ValueError(f"kind {self.kind} needs a source: {wanted.words}")
        return self


class Share(Part):
    """Smallest and largest share of a direction's calls."""

    min: Fraction = Decimal(0)
    max: Fraction = Decimal(1)

    @model_validator(mode="after")
    def _in_order(self) -> Share:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class Budget(Part):
    """How many calls go to the large model. A call for several rows is worth the sum of their gains."""

    fraction: Fraction | None = Field(
        None,
        description="Largest share of the calls that goes to the large model (rows with the same text are "
        "one call); with another `unit`, of what all calls would cost. `--budget 0.3` replaces it, and "
        "`amount`. Default: required without `amount`.",
    )
    amount: Amount | None = Field(
        None,
        description="Instead of `fraction`: the most calls, tokens, time or money for the large model: "
        "`200000calls`, `5000000tokens`, `3h`, `35usd`. `--budget 35usd` replaces it, and `fraction`.",
    )
    unit: Unit | None = Field(
        None,
        description="What the budget counts. With `tokens`, `seconds` or `cost`, a row costs its prompt "
        "tokens and the output tokens that the large model is expected to write, and rows with the highest "
        "gain per cost come first. Default: the unit of `amount`, else `calls`.",
    )
    rates: Uri | None = Field(
        None,
        description="File of rates, as `report OUTPUT --rates` writes it. `seconds` and `cost` need it: the "
        "large model's `tokens_per_second_per_gpu`, `gpus` and `price_per_gpu_hour`. `plan` shows hours and "
        "cost by it. `--rates` replaces it; there, a relative path starts at the folder where you "
        "run the command.",
    )
    fitted_on: Uri | None = Field(
        None,
        description="Output of a finished job or of labels. Its large model's translations tell how many "
        "output tokens to expect, by direction. Without it: as many as the prompt has.",
    )
    directions: dict[str, Share] = Field(
        default_factory=dict,
        title="mapping of direction to `{min, max}`",
        description="Smallest and largest share of a direction's calls that goes to the large model, such as "
        "`{en-zh: {min: 0.1, max: 0.5}}`. Both are met exactly.",
    )
    min_gain: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Lowest predicted gain of a call that goes to the large model. Places without such a "
        "call stay empty. Only for routers that predict gains.",
    )
    min_gain_per_cost: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Lowest predicted gain per token, second or unit of money, by `unit`, of a call that "
        "goes to the large model. The rest of the budget is not spent. Only for routers that predict gains.",
    )
    threshold: Threshold = Field(
        None,
        description="Send every call worth at least this to the large model, however many there are. "
        "`calibrated` takes the router's stored threshold for `fraction`.",
    )
    cap: Fraction | None = Field(
        None, description="With `threshold`: largest share of the calls that goes to the large model."
    )

    @model_validator(mode="after")
    def _one_size(self) -> Budget:
        if (self.fraction is None) == (self.amount is None):
            raise ValueError(
                "give either budget.fraction, such as 0.3, or budget.amount, such as 200000calls"
            )
        if self.amount is not None:
            number, unit = amount_of(self.amount)
            if self.unit not in (None, unit):
                raise ValueError(f"amount {self.amount} is in {unit}, unit is {self.unit}: leave unit out")
            if unit == "calls" and number % 1:
                raise ValueError(f"amount {self.amount}: give a whole number of calls")
        return self

    @model_validator(mode="after")
    def _unit_fits(self) -> Budget:
        if self.measure == "calls":
            if self.min_gain_per_cost is not None:
                raise ValueError(
                    "min_gain_per_cost needs unit tokens, seconds or cost; give min_gain for calls"
                )
            return self
        if self.min_gain is not None:
            raise ValueError(
                f"min_gain is for unit calls; give min_gain_per_cost, because unit {self.measure} ranks by it"
            )
        return self

    @model_validator(mode="after")
    def _directions(self) -> Budget:
        for name in self.directions:
            if not is_direction(name):
                raise ValueError(f"directions: {name!r} is not a direction in LMT's codes, such as en-zh")
        return self

    @model_validator(mode="after")
    def _threshold_alone(self) -> Budget:
        for key, given in (
            (f"unit {self.measure}", self.measure != "calls"),
            ("amount", self.amount is not None),
            ("directions", bool(self.directions)),
        ):
            if given and self.threshold is not None:
                raise ValueError(f"{key} and threshold are two rules: give only one")
        return self

    @model_validator(mode="after")
    def _one_rule(self) -> Budget:
        if self.cap is not None and self.threshold is None:
            raise ValueError("cap needs threshold; without a threshold, fraction is the cap")
        if self.min_gain is not None and self.threshold is not None:
            raise ValueError("min_gain and threshold are both a lowest score: give only one")
        return self

    @property
    def most(self) -> Decimal | None:
        """Largest share of the calls that goes to the large model; None: an amount, or a threshold without a
        cap."""
        return self.fraction if self.threshold is None else self.cap

    @property
    def is_open(self) -> bool:
        """Whether nothing limits the rows: a threshold without a cap."""
        return self.threshold is not None and self.cap is None

    @property
    def measure(self) -> Unit:
        """The unit that the budget counts."""
        return self.unit or ("calls" if self.amount is None else amount_of(self.amount)[1])


class Page(Part):
    """How much corpus text the audit page shows."""

    rows: int = Field(
        10,
        ge=0,
        le=1000,
        description="Rows of each kind (highest gain, nearest to the cut, failed) that the page shows of a "
        "shard. 0 keeps corpus text out of the page.",
    )
    shards: int = Field(
        50,
        ge=0,
        le=1000,
        description="Shards whose rows the page shows. Marked shards and shards with failures come first.",
    )


class Prompt(Part):
    """The text that the models and the router read."""

    template: str = Field(
        LMT_TEMPLATE,
        description="Prompt with the fields `{source_lang}`, `{target_lang}` (language names in English) and "
        "`{source}`. The tokenizer's chat template is put around it if there is one. Default: LMT's prompt.",
    )

    @model_validator(mode="after")
    def _fields(self) -> Prompt:
        may = "template may use {source_lang}, {target_lang} and {source}"
        try:
            given = [field[1:] for field in Formatter().parse(self.template) if field[1] is not None]
        except ValueError as error:
            raise ValueError(f"{may}: {error}") from None
        for name, width, conversion in given:
            if name not in ("source_lang", "target_lang", "source") or width or conversion:
                written = f"{name}{f'!{conversion}' if conversion else ''}{f':{width}' if width else ''}"
                raise ValueError(f"{may}, and not {{{written}}}; write other braces twice: {{{{ and }}}}")
        if "{source}" not in self.template:
            raise ValueError("template must contain {source}")
        return self


class Run(Part):
    """How the passes run. These keys do not change the plan."""

    pools: Literal["auto", "sequential", "concurrent"] = Field(
        "auto",
        description="Whether the small and the large model run side by side (`concurrent`), one after the "
        "other (`sequential`), or as there is room (`auto`).",
    )
    part_rows: int = Field(
        16_384,
        ge=1,
        description="The most rows of a committed part. A part is committed after a minute at the latest.",
    )
    retries: int = Field(2, ge=0, description="Further tries of a row after its first failure.")
    max_failed_fraction: Fraction = Field(
        Decimal("0.01"),
        description="Largest share of failed rows. More failed rows end the job with exit code 1.",
    )
    max_skipped_fraction: Fraction = Field(
        Decimal("0.5"),
        description="Largest share of skipped rows. More end the job with exit code 2: before a model "
        "starts, if the language codes alone show it, else before a row is translated.",
    )
    stall_timeout: Duration = Field(
        "30m",
        description="An engine that answers none of its rows for so long is ended, and its rows are tried "
        "again, as after a crash. If no row is committed and nothing else moves for so long, the job ends "
        "with exit code 1.",
    )
    start_timeout: Duration = Field(
        "1h", description="The longest start of an engine. A slower one is ended, and started twice more."
    )

    @property
    def patience(self) -> Patience:
        return Patience(seconds(self.stall_timeout), seconds(self.start_timeout))


def near(word: str, known: Iterable[str]) -> str:
    """A hint for a message that names the known word most like `word`; empty if none is like it."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
