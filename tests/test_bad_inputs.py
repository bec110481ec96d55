"""What operators get wrong, as one table: the input, the exit code, and words that the answer must have.

Commands run in this process, most of them as dry runs, and the engine is made up. No case may end in a
traceback. The names of the cases that a review of the project found badly answered begin with `review:`.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from routelmt_batch.job import flow
from routelmt_batch.job.clean import clean
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.store.folder import Folder
from tests import fake_engine as made_up
from tests.conftest import COLUMNS, MODELS, write_shard
from tests.fake_engine import FakeEngine

NINES = "0." + "9" * 40
NOT_UTF8_NAME = os.fsdecode(b"x\xff")
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())


@dataclass(frozen=True)
class Case:
    """`given` prepares the folder, in which `corpus`, `job.yaml` and, if it is `finished`, `out` are. `{folder}`
    stands for it in arguments and words. `never` must not be in the answer."""

    name: str
    code: int
    words: tuple[str, ...]
    arguments: tuple[str, ...]
    given: Callable[[Path], Any] = lambda folder: None
    finished: bool = False
    never: tuple[str, ...] = ()


def dry(
    name: str, code: int, words: Any, *options: str, given: Any = lambda folder: None, **other: Any
) -> Case:
    """A dry run of `job.yaml`."""
    return Case(name, code, _all(words), ("run", "{folder}/job.yaml", "--dry-run", *options), given, **other)


def run(
    name: str, code: int, words: Any, *options: str, given: Any = lambda folder: None, **other: Any
) -> Case:
    return Case(name, code, _all(words), ("run", "{folder}/job.yaml", *options), given, **other)


def command(
    name: str, code: int, words: Any, *arguments: str, given: Any = lambda folder: None, **other: Any
) -> Case:
    return Case(name, code, _all(words), arguments, given, **other)


def setting(text: str, *words: str, name: str = "") -> Case:
    """A dry run with `--set`, of a value that is refused."""
    return dry(name or f"--set {text}", 2, words, "--set", text)


def spec(name: str, text: str | bytes, *words: str) -> Case:
    """A dry run of another spec file."""
    return dry(name, 2, words, given=lambda folder: _write(folder / "job.yaml", text))


def _all(words: Any) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def shard(name: str, texts: list[str | None] | None = None, **columns: Any) -> Callable[[Path], Any]:
    """A further shard in the corpus."""
    return lambda folder: write_shard(folder / "corpus" / name, texts or ["A cat."], **columns)


def only(name: str, texts: list[str | None] | None = None, **columns: Any) -> Callable[[Path], Any]:
    """A corpus of one shard."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder / "corpus")
        shard(name, texts, **columns)(folder)

    return make


def codes(*sources: str | None) -> Callable[[Path], Any]:
    """A corpus with these language codes."""
    return only("a.parquet", ["A cat."] * len(sources), **{"from": pa.array(sources, pa.string())})


def content(name: str, data: bytes) -> Callable[[Path], Any]:
    """A file in the corpus."""
    return lambda folder: _write(folder / "corpus" / name, data)


def link(name: str, to: str) -> Callable[[Path], Any]:
    """A link in the corpus; `to` is relative to the folder."""
    return lambda folder: (folder / "corpus" / name).symlink_to(folder / to)


def elsewhere(folder: Path) -> None:
    """A folder of shards outside the corpus, and a link to it."""
    write_shard(folder / "elsewhere" / "e.parquet", ["One.", "Two."])
    link("linked", "elsewhere")(folder)


def renamed_column(folder: Path) -> None:
    """A shard with a column whose name is not UTF-8: the bytes of an ordinary name are replaced."""
    path = write_shard(folder / "corpus" / "b.parquet", ["A cat."], odd_name=pa.array([1]))
    table = pq.read_table(path).replace_schema_metadata(None)
    pq.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"odd_name", b"odd_\xff\xfe\xfd\xfc"))


def same_names(folder: Path) -> None:
    table = pa.table([["A cat."], ["en"], ["de"], [1], [2]], ["text", "from", "to", "id", "id"])
    pq.write_table(table, folder / "corpus" / "b.parquet")


def kinds_of_strings(folder: Path) -> None:
    """Five shards of the same four texts, each with another type."""
    texts = ["A cat.", "A dog.", "A cat.", None]
    only("a.parquet", texts)(folder)
    for name, column in {
        "b": pa.array(texts, pa.large_string()),
        "c": pa.array(texts).dictionary_encode(),
        "d": pa.array(texts, pa.string_view()),
        "e": pa.array([None] * 4, pa.null()),
    }.items():
        shard(f"{name}.parquet", texts, text=column)(folder)


def without_rows(folder: Path) -> None:
    shutil.rmtree(folder / "corpus")
    write_shard(folder / "corpus" / "a.parquet", [])


def delta(folder: Path) -> None:
    _write(folder / "corpus" / "_delta_log" / "00000000000000000000.json", "{}")


def iceberg(folder: Path) -> None:
    shard("data/part.parquet")(folder)
    _write(folder / "corpus" / "metadata" / "v1.metadata.json", "{}")


def mark(name: str, value: str = "") -> Callable[[Path], Any]:
    """What the fixture `world` makes up: a disk's free bytes, a folder that cannot be listed, texts cut off."""
    return lambda folder: _write(folder / name, value)


def torn(where: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """A file of the finished job, changed."""

    def damage(folder: Path) -> None:
        found = sorted((folder / "out").glob(where))
        assert found, where
        found[-1].write_bytes(change(found[-1].read_bytes()))

    return damage


def both(*steps: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [step(folder) for step in steps]


SPEC_VALUES = [
    setting("budgt.fraction=0.3", "budgt: unknown key; did you mean 'budget'?"),
    setting("budget.fractoin=0.3", "budget.fractoin: unknown key; did you mean 'fraction'?"),
    setting("models.huge.source=x", "models.huge: unknown key", "known here: small, large"),
    setting("run.max_skiped_fraction=0.3", "did you mean 'max_skipped_fraction'?"),
    setting("budget.fraction=1.5", "1.5: Input should be less than or equal to 1"),
    setting("budget.fraction=-0.1", "greater than or equal to 0"),
    setting("budget.fraction=nan", "budget.fraction"),
    setting("budget.fraction=.inf", "budget.fraction"),
    setting("budget.fraction=third", "give a number between 0 and 1"),
    setting("budget.fraction=true", "give a number between 0 and 1"),
    setting("budget.fraction=", "budget.fraction"),
    setting("budget.cap=0.2", "cap needs threshold"),
    setting("budget={fraction: 0.1, min_gain: 1, threshold: 2}", "give only one"),
    setting("budget.min_gain=.nan", "budget.min_gain"),
    setting("budget.threshold=high", "give a finite score, or `calibrated`"),
    setting("budget={fraction: 0.123, threshold: calibrated}", "has no threshold for fraction 0.123"),
    setting("input.source_lang=zho_Hant", "'zho_Hant': not one of LMT's 60 codes; did you mean 'zh'?"),
    setting("input.source_lang=english", "did you mean 'en'?"),
    setting("input.target_lang=jp", "did you mean 'ja'?"),
    setting("input.target_lang=sr", "'sr': not one of LMT's 60 codes"),
    setting("input.target_lang=12", "input.target_lang"),
    setting("input.target_lang=''", "not one of LMT's 60 codes"),
    setting("input.columns.source=reason", "'reason' is the name of an output column"),
    setting("input.columns.source=to", "must be three columns"),
    setting("input.columns.reference=text", "reference 'text' is the column of the text or of a language"),
    setting("input.columns.reference=to", "reference 'to' is the column of the text or of a language"),
    setting("input.columns.sorce=text", "did you mean 'source'?"),
    setting("input.uri=[]", "input.uri"),
    setting("input.uri=", "input.uri"),
    setting("input.uri={a: b}", "input.uri"),
    setting("input.uri=s3://key:secret@bucket/in", "credentials are taken from the environment"),
    setting("input.uri=s3:///in", "give s3://BUCKET/KEY"),
    setting("input.uri=s3:/bucket/in", "a URI has two slashes: s3://bucket/in"),
    setting("input.uri=s3://bucket/in//x", "a key with an empty name"),
    setting("input.uri=s3://bucket/in?X-Amz-Signature=1", "a URI has no query"),
    setting("input.uri=https://host/a.parquet", "give a path, or a URI that begins with file://"),
    setting("input.uri=hf://a/b", "is a model, and only datasets are read"),
    setting("output.uri=s4://bucket/out", "give a path, or a URI that begins with file://, s3://"),
    setting("output.uri=hf://datasets/a/b", "hf:// is read only: give a path"),
    setting("output.uri=[a, b]", "output.uri"),
    setting("output.compression=lz5", "output.compression"),
    setting("models.small.max_output_tokens=256", "leaves no room for a prompt"),
    setting("models.small.max_output_tokens=0", "greater than or equal to 1"),
    setting("models.small.max_model_len_tokens=4", "greater than or equal to 8"),
    setting("models.small.max_model_len_tokens=1000000", "tokens at most; give no more"),
    setting("models.small.dtype=int8", "models.small.dtype: 'int8'"),
    setting("models.small.replicas=0", "models.small.replicas"),
    setting("models.small.replicas={min: 3, max: 2}", "min 3 is more than max 2"),
    setting("models.small.replicas=many", "models.small.replicas"),
    setting("models.small.gpus=-1", "models.small.gpus"),
    setting("models.small.cpus=0", "models.small.cpus"),
    setting("models.small.threads=0", "models.small.threads"),
    setting("models.small.tensor_parallel_size=0", "models.small.tensor_parallel_size"),
    setting("models.small.max_num_seqs=0", "models.small.max_num_seqs"),
    setting("models.small.env.HF_TOKEN=abc", "credentials do not belong in a spec"),
    setting("models.small.engine.hf_token=abc", "credentials do not belong in a spec"),
    setting("models.small.engine.max_num_seqs=4", "engine.max_num_seqs has its own key"),
    setting("models.small.source=", "models.small.source"),
    setting("models.small.source=models/nowhere", "models.small.source", "models/nowhere"),
    setting("models.small.source={folder}", "models.small"),
    setting("models.small.source=s3://", "give s3://BUCKET/KEY"),
    setting("models.large.engine=fast", "models.large.engine"),
    setting("router.kind=lenght", "kind 'lenght': unknown", "did you mean 'length'?"),
    setting("router.kind=oracle-gain", "kind 'oracle-gain': needs references: for evaluation only"),
    setting("router.source={folder}/corpus", "router"),
    setting("models.small.source={models}/large", "router"),
    setting("guard.mode=hypothesis", "hypothesis needs keep_small_above"),
    setting("guard.mode=sometimes", "guard.mode"),
    setting("guard.escalate_fraction=0.9", "escalate_fraction 0.9 is more than the budget 0.3"),
    setting("audit.fraction=0.1", "audit needs a metric"),
    setting("metric=bleu", "metric"),
    setting("checks.length_ratios={en_de: [1, 2]}", "is not a direction in LMT's codes"),
    setting("checks.length_ratios={en-de: [2, 1]}", "is not 0 <= low < high"),
    setting("prompt.template=Translate {text}", "template may use {source_lang}, {target_lang} and {source}"),
    setting("prompt.template=Translate!", "template must contain {source}"),
    setting("prompt.template='{source'", "template may use"),
    setting("run.part_rows=0", "run.part_rows"),
    setting("run.retries=-1", "run.retries"),
    setting("run.pools=parallel", "run.pools"),
    setting("run.max_skipped_fraction=2", "run.max_skipped_fraction: 2"),
    setting("run.max_failed_fraction=-1", "run.max_failed_fraction"),
    setting("page.rows=5000", "page.rows"),
    setting("name=", "name"),
    setting("name", "give key=value"),
    setting("name.x=1", "holds a value, not keys"),
    setting("name=[1", "the value is not YAML"),
    setting("models.large.engine.swap_space=4", "models.large.engine.swap_space: vLLM has no such argument"),
    setting("models.small.engine.enforce_eagre=true", "did you mean 'enforce_eager'?"),
    setting("models.small.engine.enforce_eager=often", "'often': vLLM takes a value of type bool"),
    setting("models.small.engine.gpu_memory_utilization=most", "vLLM takes a value of type float"),
    setting("models.small.engine.kv_cache_memory_bytes=1.5", "vLLM takes a value of type int or None"),
    setting("models.large.engine.nonsense=1", "models.large.engine.nonsense: vLLM has no such argument", name="review: an engine key of large"),
    setting("models.small.engine.nonsense=1", "models.small.engine.nonsense: vLLM has no such argument", name="review: an engine key of small"),
    setting("output.uri=~nosuchuser/out", "~nosuchuser/out: there is no user 'nosuchuser' here", name="review: ~ in output"),
    setting("input.uri=~nosuchuser/in", "there is no user 'nosuchuser' here", name="review: ~ in input"),
    setting("models.small.source=~nosuchuser/model", "there is no user 'nosuchuser' here", name="review: ~ in a model"),
    setting("router.source=~nosuchuser/model", "there is no user 'nosuchuser' here"),
    setting('output.uri="a\\0b"', "a path has no NUL character", name="review: NUL in output"),
    setting('input.uri="a\\0b"', "a path has no NUL character", name="review: NUL in input"),
    setting('models.large.source="a\\0b"', "a path has no NUL character", name="review: NUL in a model"),
    setting("prompt.template='{source} {source.x}'", "template may use {source_lang}, {target_lang} and {source}, and not {source.x}"),
    setting("prompt.template='{source} {source[a]}'", "and not {source[a]}; write other braces twice: {{ and }}"),
    setting("prompt.template='{source:>99999999999} {source}'", "and not {source:>99999999999}"),
    setting("prompt.template='{source} {source!z}'", "and not {source!z}"),
    setting("metric={source: chrf, sorce: x}", "metric.sorce: unknown key; did you mean 'source'?"),
    setting("guard.router.sorce=x", "guard.router.sorce: unknown key; did you mean 'source'?"),
    setting("models.small.env={'A=B': c}", "'A=B': a variable has a name without =, and no NUL character"),
    setting("models.small.env={'': c}", "'': a variable has a name without ="),
    setting('models.small.env={A: "a\\0b"}', "'A': a variable has a name without =, and no NUL character"),
    setting("models.small.env.X=1", "models.small.env.X: give a text; a number needs quotes"),
    setting("models.small.env=[A]", "models.small.env: give a mapping of names to values"),
    setting("models.small.cpus=.inf", "models.small.cpus: inf: Input should be a finite number"),
    setting("models.small.replicas=true", "give a whole number, or {min: 1, max: 4}"),
    setting("models.small.replicas=1.5", "give a whole number, or {min: 1, max: 4}"),
    setting("models.small.replicas={min: 1, mx: 2}", "did you mean 'max'?"),
    setting("budget=0.3", "budget: 0.3: give a mapping of these keys: fraction, amount, unit"),
    setting("name=12", "name: 12: give a text; a number needs quotes"),
    setting("run.part_rows=many", "run.part_rows: 'many'"),
    setting("input.fold=false", "input.fold: False: Input should be 'exact' or 'off'"),
    setting("input.fold=Exact", "Input should be 'exact' or 'off'"),
    setting("input.foldd=off", "did you mean 'fold'?"),
    dry("a value of storage is not shown", 2, "storage.aws_allow_http", "--set", "storage.aws_allow_http=perhaps", never=("perhaps",)),
    setting("storage.aws_endpoint_url=minio", "give a URL that begins with https:// or http://"),
    setting("checks.length_ratios={en-de: [.nan, 1]}", "is not 0 <= low < high"),
    setting("audit={fraction: 0.5, min_rows: 5, max_rows: 2}", "min_rows 5 is more than max_rows 2"),
    setting("models.large.engine.enforce_eager=", "None: vLLM takes a value of type bool"),
    setting("output.uri=''", "output.uri: '': an empty path: give one, or . for this folder"),
    setting("input.uri=' '", "input.uri: ' ': an empty path"),
    setting("input.uri=['{folder}/corpus', '']", "an empty path"),
]  # fmt: skip

SPEC_FILES = [
    command("no spec file", 2, "no such spec file; `routelmt-batch init --kind run` writes one", "run", "{folder}/no.yaml"),
    command("a folder as the spec", 2, "cannot be read", "run", "{folder}"),
    command("a spec in a store", 2, "a spec file is on a disk", "run", "s3://bucket/job.yaml"),
    spec("an empty spec", "", "a spec is a mapping of keys"),
    spec("a list as the spec", "- a\n- b\n", "a spec is a mapping of keys"),
    spec("a word as the spec", "job", "a spec is a mapping of keys"),
    spec("binary", b"\x00\x01\x02\xff", "cannot be read"),
    spec("not UTF-8", "name: é".encode("latin-1"), "cannot be read"),
    spec("a tab", "name:\n\tx: 1\n", "not valid YAML: line 2"),
    spec("a bracket that is not closed", "name: [1, 2\n", "not valid YAML"),
    spec("a key twice", "name: a\nname: b\n", 'the key "name" is given twice'),
    spec("two documents", "name: a\n---\nname: b\n", "not valid YAML"),
    spec("an unknown alias", "name: *other\n", "not valid YAML"),
    spec("a mapping as a key", "? {a: b}\n: c\n", "the spec is not valid"),
    spec("numbers as keys", "1: 2\n", "Keys should be strings"),
    spec("no keys but the name", "name: a\n", "input: required, but missing", "budget: required, but missing"),
    spec("JSON of another program", '{"jobs": [1]}', "jobs: unknown key"),
    spec("a list where keys should be", "name: a\nmodels: [small, large]\n", "models"),
    spec("review: deep YAML", "[" * 500 + "]" * 500, "nested too deeply"),
    spec("deep mappings", "".join(f"{' ' * i}a:\n" for i in range(400)) + " " * 400 + "b\n", "nested too deeply"),
]  # fmt: skip

OPTIONS = [
    dry("--budget in words", 2, "--budget half: not valid", "--budget", "half"),
    dry("--budget over one", 2, "--budget 2: not valid", "--budget", "2"),
    dry("--limit 0", 2, "--limit", "--limit", "0"),
    dry("--limit in words", 2, "--limit", "--limit", "all"),
    dry("--cap alone", 2, "cap needs threshold", "--cap", "0.1"),
    dry("--threshold in words", 2, "--threshold", "--threshold", "high"),
    dry("--time-limit without a unit", 2, "give hours, minutes or seconds", "--time-limit", "90"),
    dry("--log-format xml", 2, "--log-format", "--log-format", "xml"),
    dry("--metrics-port", 2, "--metrics-port", "--metrics-port", "70000"),
    dry("--shards of none", 2, "--shards z*: matches none of 2 shards", "--shards", "z*"),
    dry("--against nowhere", 2, "no finished job there", "--fail-if", "ks>0.2", "--against", "{folder}/no"),
    dry("--against without drift", 2, "needs --fail-if", "--fail-if", "failed>0.2", "--against", "{folder}/out", finished=True),
    dry("--fail-if without a number", 2, "give NAME>NUMBER in quotes", "--fail-if", "skipped"),
    dry("--fail-if with another sign", 2, "give NAME>NUMBER", "--fail-if", "empty>=0.1"),
    dry("--fail-if misspelt", 2, "no condition 'skiped'; did you mean 'skipped'?", "--fail-if", "skiped>0.1"),
    dry("--fail-if of more than all", 2, "truncated is never more than 1", "--fail-if", "truncated>1"),
    dry("--fail-if of one language", 2, "'en' is not a direction", "--fail-if", "skipped[en]>0.1"),
    dry("--fail-if of an unknown language", 2, "'en-xx' is not a direction", "--fail-if", "skipped[en-xx]>0.1"),
    dry("--fail-if of no direction", 2, "'' is not a direction", "--fail-if", "fallback[]>0.1"),
    dry("--fail-if with an open bracket", 2, "give NAME>NUMBER", "--fail-if", "skipped[en-de>0.1"),
    dry("--fail-if of drift by direction", 2, "psi is not known by direction", "--fail-if", "psi[en-de]>0.1"),
    dry("--fail-if of checks that are off", 2, "the job makes no checks", "--fail-if", "doubtful>0.1", "--set", "checks.enabled=false"),
    dry("--fail-if of places without a budget", 2, "a budget of 0 has no places", "--fail-if", "unused_budget>0.1", "--budget", "0"),
    dry("an unknown option", 2, "No such option: --dry", "--dry"),
    dry("an option without its value", 2, "--budget", "--budget"),
    command("an unknown command", 2, "No such command 'rum'", "rum"),
    command("run without a spec", 2, "Missing argument 'SPEC'", "run"),
    command("--rates of no file", 2, "no.yaml", "plan", "{folder}/job.yaml", "--rates", "{folder}/no.yaml"),
    command("report of nothing", 2, "no job there", "report", "{folder}/no"),
    command("report of the corpus", 2, "no job there", "report", "{folder}/corpus"),
    command("report of another scheme", 2, "give a path, or a URI", "report", "ftp://host/out"),
    command("report --html of nothing", 2, "no finished job there", "report", "{folder}/no", "--html"),
    command("report --rows alone", 2, "needs --html", "report", "{folder}/no", "--rows", "3"),
    command("report --against nothing", 2, "--against {folder}/no: no finished job there", "report", "{folder}/out", "--against", "{folder}/no", finished=True),
    command("clean of nothing", 2, "{folder}/no", "clean", "{folder}/no"),
    command("clean of the corpus", 2, "{folder}/corpus", "clean", "{folder}/corpus"),
    command("verify of nothing", 2, "no job there", "verify", "{folder}/no"),
    command("init over a file", 2, "already exists; give another name", "init", "{folder}/job.yaml"),
    command("init of another kind", 2, "--kind", "init", "--kind", "plan"),
    command("a job's spec for label", 2, "unknown key", "label", "{folder}/job.yaml"),
    dry("--budget in percent", 2, "'30%': give a number between 0 and 1", "--budget", "30%"),
    dry("--budget with a comma", 2, "'0,3': give a number between 0 and 1", "--budget", "0,3"),
    dry("an empty --output", 2, "output.uri: '': an empty path: give one, or . for this folder", "--output", ""),
    dry("an empty --against", 2, "an empty path", "--fail-if", "psi>0.2", "--against", ""),
    dry("--metrics-port of no host's name", 0, ("--metrics-port a..b:0: cannot listen there", "1 shard"), "--metrics-port", "a..b:0", "--shards", "b*"),
    dry("--metrics-port of a host alone", 2, "--metrics-port localhost: give a port", "--metrics-port", "localhost"),
    dry("--fail-if of a number without end", 2, "give NAME>NUMBER", "--fail-if", "psi>1e999999999"),
    dry("--fail-if in percent", 2, "give NAME>NUMBER", "--fail-if", "failed>1%"),
    dry("--time-limit 0s", 2, "--time-limit 0s: give hours, minutes or seconds", "--time-limit", "0s"),
    dry("--address of a dashboard", 2, ("--address http://head:8265: is a URL", "HEAD:6379"), "--address", "http://head:8265"),
    dry("--address of a Ray client", 2, "--address ray://127.0.0.1:1: is a URL", "--address", "ray://127.0.0.1:1"),
    dry("--address where nothing answers", 2, "nothing answers there", "--address", "127.0.0.1:1"),
    dry("an option that is not UTF-8", 2, "the argument is not UTF-8", "--output", "{folder}/" + NOT_UTF8_NAME),
    command("an output that is not UTF-8", 2, "the argument is not UTF-8", "verify", "{folder}/" + NOT_UTF8_NAME),
    command("report of a file", 2, "a part of this path is a file, not a folder", "report", "{folder}/job.yaml"),
    command("clean of a file", 2, "a part of this path is a file, not a folder", "clean", "{folder}/job.yaml"),
    command("report of an empty path", 2, "an empty path", "report", ""),
    command("clean of an empty path", 2, "an empty path", "clean", ""),
    command("an empty --rates", 2, "an empty path", "plan", "{folder}/job.yaml", "--rates", ""),
    command("--rates of a job's spec", 2, "router.gpus: required, but missing", "plan", "{folder}/job.yaml", "--rates", "{folder}/job.yaml"),
    command("init in no folder", 2, "job.yaml: cannot be written (No such file or directory); give a name in a folder", "init", "{folder}/no/job.yaml"),
    command("init below a file", 2, "cannot be written (Not a directory)", "init", "{folder}/job.yaml/x"),
    command("init of a name too long", 2, "cannot be written (File name too long)", "init", "{folder}/" + "x" * 300),
    command("evaluate with too many resamples", 2, "--resamples", "evaluate", "{folder}/corpus", "--out", "{folder}/e", "--resamples", "9" * 20),
    command("calibrate for too many rows", 2, "--traffic-rows", "calibrate", "{models}/router", "{folder}/corpus", "--traffic-rows", "9" * 20),
    command("evaluate of a job's rows", 2, "no column 'quality_small'", "evaluate", "{folder}/out/data", "--out", "{folder}/e", finished=True),
    command("review: nines round up", 0, "at most 70 calls to large", "run", "{folder}/job.yaml", "--dry-run", "--budget", NINES),
]  # fmt: skip

INPUTS = [
    dry("no such folder", 2, "no such folder or file; did you mean 'corpus'?", "--set", "input.uri={folder}/corpos"),
    dry("an empty folder", 2, "no Parquet shards there", given=lambda folder: [shutil.rmtree(folder / "corpus"), (folder / "corpus").mkdir()]),
    dry("a glob of nothing", 2, "no Parquet shards there", "--set", "input.uri={folder}/corpus/*.csv"),
    dry("a folder named like a shard", 2, "no Parquet shards there", "--set", "input.uri={folder}/x.parquet", given=lambda folder: (folder / "x.parquet").mkdir()),
    dry("only hidden shards", 2, "no Parquet shards there", given=only("_a.parquet")),
    dry("a text file named like a shard", 0, "c.parquet cannot be read and is left out: ", given=content("c.parquet", b"text")),
    dry("a shard of no bytes", 0, "c.parquet cannot be read and is left out: ", given=content("c.parquet", b"")),
    dry("only a shard of no bytes", 2, ("none of 1 shards can be read", "Repair or replace them"), given=both(only("c.parquet"), content("c.parquet", b""))),
    dry("half a shard", 0, "c.parquet cannot be read and is left out: ", given=both(shard("c.parquet"), lambda folder: os.truncate(folder / "corpus/c.parquet", 400))),
    dry("text that is not UTF-8", 0, "c.parquet cannot be read and is left out: ", given=shard("c.parquet", text=NOT_UTF8)),
    dry("no column of texts", 2, ("no column 'text' (input.columns.source)", "it has from, to"), given=lambda folder: pq.write_table(pa.table({"from": ["en"], "to": ["de"]}), folder / "corpus/c.parquet")),
    dry("a misspelt column", 2, "no column 'txt' (input.columns.source); did you mean 'text'?", "--set", "input.columns.source=txt"),
    dry("no column of languages", 2, "give a constant as input.source_lang", "--set", "input.columns.source_lang=language"),
    dry("numbers as texts", 2, "column 'text' (input.columns.source) is int64, not string", given=shard("c.parquet", text=pa.array([1]))),
    dry("lists as languages", 2, "column 'to' (input.columns.target_lang) is list", given=shard("c.parquet", to=pa.array([["de"]]))),
    dry("bytes as texts", 2, "is binary, not string", given=shard("c.parquet", text=pa.array([b"A cat."]))),
    dry("a column of ours", 2, "has a column 'status', which is the name of an output column", given=shard("c.parquet", status=pa.array(["x"]))),
    dry("columns of the same name", 2, "has columns with the same name", given=same_names),
    dry("a name that is not UTF-8", 2, "the file's name is not UTF-8: rename it", given=lambda folder: shutil.copy(folder / "corpus/a.parquet", os.fsencode(folder / "corpus") + b"/\xff.parquet")),
    dry("review: a column name that is not UTF-8", 0, "b.parquet cannot be read and is left out: the name of a column is not UTF-8", given=renamed_column),
    dry("review: a linked folder", 0, "73 rows in 3 shards", given=elsewhere),
    dry("review: a link to nowhere", 0, "gone.parquet cannot be read and is left out: ", given=link("gone.parquet", "nowhere")),
    run("a link to nowhere, in a run", 3, "could not be read", given=link("gone.parquet", "nowhere")),
    dry("a link in a circle", 2, ("/corpus/sub/again cannot be read (it is a link to a folder above it)", "Change its permissions or the link"), given=lambda folder: [(folder / "corpus/sub").mkdir(), link("sub/again", "corpus")(folder)]),
    dry("a link to nowhere that may have been a folder", 2, "/corpus/gone cannot be read (it is a link that leads nowhere)", given=link("gone", "nowhere")),
    dry("a link to itself", 0, "self.parquet cannot be read and is left out: ", given=link("self.parquet", "corpus/self.parquet")),
    dry("a link to a pipe", 0, "p.parquet cannot be read and is left out: not a file, but a pipe or a device", given=both(lambda folder: os.mkfifo(folder / "pipe"), link("p.parquet", "pipe"))),
    dry("a link to a device", 0, "p.parquet cannot be read and is left out: not a file, but a pipe or a device", given=link("p.parquet", "/dev/zero")),
    dry("languages as names of folders", 2, ("no column 'lang'", "give a constant as input.source_lang"), "--set", "input.columns.source_lang=lang", given=only("lang=en/a.parquet")),
    dry("CSV", 2, "none of 1 shards can be read", "--set", "input.uri={folder}/corpus/c.csv", given=content("c.csv", b"text,from,to\nA,en,de\n")),
    dry("a variable that no shell has filled in", 2, "$HOME/corpus: no such folder or file", "--set", "input.uri=$HOME/corpus"),
    run("texts of all kinds of strings", 0, "12 ok, 8 skipped", "--set", "run.max_skipped_fraction=1", given=kinds_of_strings),
    run("a shard without rows", 0, "0 in 1 shard", given=without_rows),
    run("a condition on no rows", 4, "failed>0.1: cannot be evaluated", "--fail-if", "failed>0.1", given=without_rows),
    run("the same text everywhere", 0, ("499 rows have the output of another row's call", "500 ok"), given=only("a.parquet", ["same"] * 500)),
    dry("a link to a shard of the corpus", 2, ("is the same file as", "would be translated twice"), given=link("last.parquet", "corpus/a.parquet")),
    dry("review: a folder that cannot be listed", 2, "/corpus/closed cannot be read (Permission denied), so its shards are not known", given=both(lambda folder: (folder / "corpus/closed").mkdir(), mark("closed"))),
    dry("review: one input twice", 2, ("1/a.parquet: is the same file as 0/a.parquet", "Give each input once"), "--set", "input.uri=[{folder}/corpus, {folder}/corpus]"),
    dry("an input in another", 2, "is the same file as", "--set", "input.uri=[{folder}/corpus, {folder}/corpus/a.parquet]"),
    dry("an input by a link", 2, "is the same file as", "--set", "input.uri=[{folder}/corpus, {folder}/alias]", given=lambda folder: (folder / "alias").symlink_to(folder / "corpus")),
    dry("review: a glob below [x]", 0, "1 row in 1 shard", "--set", "input.uri={folder}/[x]/*.parquet", given=lambda folder: write_shard(folder / "[x]" / "a.parquet", ["A cat."])),
    dry("a folder named [x]", 0, "1 row in 1 shard", "--set", "input.uri={folder}/[x]", given=lambda folder: write_shard(folder / "[x]" / "a.parquet", ["A cat."])),
    dry("a folder named a*b", 0, "1 row in 1 shard", "--set", "input.uri={folder}/a*b", given=lambda folder: [write_shard(folder / name / "a.parquet", ["A cat."]) for name in ("a*b", "a1b")]),
    dry("review: a Delta table", 2, ("belongs to a table of Delta", "DeltaTable(TABLE).to_pyarrow_dataset()"), given=delta),
    dry("a glob in a Delta table", 2, "belongs to a table of Delta", "--set", "input.uri={folder}/corpus/*.parquet", given=delta),
    dry("a partition of a Delta table", 2, "{folder}/corpus belongs to a table of Delta", "--set", "input.uri={folder}/corpus/day=1", given=both(delta, shard("day=1/p.parquet"))),
    dry("an Iceberg table", 2, ("belongs to a table of Iceberg", "pyiceberg"), given=iceberg),
    dry("the data of an Iceberg table", 2, "a table of Iceberg", "--set", "input.uri={folder}/corpus/data", given=iceberg),
    dry("review: names too long for drafts", 2, ("rename it to 203 bytes or fewer",), given=shard("n" * 197 + ".parquet")),
    dry("the longest name that fits", 0, "72 rows in 3 shards", given=shard("n" * 195 + ".parquet")),
    dry("a path too long", 2, "has more than 3840 bytes. Give a shorter path", "--output", "{folder}" + f"/{'o' * 200}" * 21),
    dry("paths too long below the output", 2, ".parquet: its path in the output would have", "--output", "{folder}" + f"/{'o' * 99}" * 36, given=shard(f"{'n' * 200}/{'n' * 195}.parquet")),
    dry("review: a shard named job", 2, "its report would be reports/job.json", "--set", "input.uri={folder}/corpus/*", given=shard("job")),
    dry("a shard and a folder of its report's name", 2, "would have the name of a folder with other shards", "--set", "input.uri={folder}/corpus/**", given=both(shard("x"), shard("x.json/y.parquet"))),
    dry("review: EN", 0, ("'EN' 40 times, read as en", "40 rows in 1 shard"), given=codes(*["EN"] * 40)),
    dry("codes of other standards", 0, ("read as zh", "read as en"), "--set", "input.columns.target_lang=also", given=only("a.parquet", ["A cat."] * 4, **{"from": pa.array(["en-US", "eng", "EN", "en"]), "also": pa.array(["zh_CN", "zho_Hans", "zh-Hans", "chi"])})),
    dry("unknown codes", 2, ("30 of 40 rows have a language code that is not among LMT's 60", "'tlh' 20 times", "'jp' 10 times (nearest: 'ja')", "run.max_skipped_fraction 0.5"), given=codes(*["tlh"] * 20, *["jp"] * 10, *["en"] * 10)),
    dry("a few unknown codes", 0, ("10 of 40 rows will be skipped: unknown language codes: 'zh-TW' 10 times (nearest: 'zh')",), given=codes(*["zh-TW"] * 10, *["en"] * 30)),
    dry("as many unknown codes as are allowed", 0, "20 of 40 rows will be skipped", given=codes(*["xx"] * 20, *["en"] * 20)),
    dry("no codes", 2, "no code 3 times", given=codes(None, "", " ")),
    dry("texts as codes", 2, "text that is no code 71 times", "--set", "input.columns={source: from, source_lang: text, target_lang: to}", never=("number", "I saw")),
    run("review: unknown codes, in a run", 2, "more than run.max_skipped_fraction 0.5 allows", given=codes("tlh", "tlh", "en"), never=("_SUCCESS",)),
    run("review: EN, in a run", 0, "3 EN", given=codes("EN", "EN", "EN")),
    run("mostly empty texts", 2, ("3 of 4 rows are skipped", "2 empty, 1 null", "raise run.max_skipped_fraction"), given=only("a.parquet", ["", " ", None, "A cat."])),
    run("mostly long texts", 2, ("2 of 3 rows are skipped", "2 too_long"), given=only("a.parquet", ["far too long " * 300] * 2 + ["A cat."])),
    run("empty texts that are allowed", 0, "3 skipped", "--set", "run.max_skipped_fraction=0.75", given=only("a.parquet", ["", " ", None, "A cat."])),
    run("skipped rows of one direction", 4, "--fail-if skipped[en-de]>0.2: it is 0.25", "--fail-if", "skipped[en-de]>0.2", given=only("a.parquet", ["", "A.", "B.", "C."])),
    run("a direction that no row has", 4, "no row is of the direction en-zh", "--fail-if", "skipped[en-zh]>0.2"),
    run("review: all truncated", 4, "--fail-if truncated>0.5: it is ", "--fail-if", "truncated>0.5", given=mark("truncated")),
    command("plan of unknown codes", 2, "run.max_skipped_fraction 0.5", "plan", "{folder}/job.yaml", given=codes("tlh", "tlh", "en")),
]  # fmt: skip

OUTPUTS = [
    dry("the output is a file", 2, "is a file; give a folder", "--output", "{folder}/job.yaml"),
    dry("the output is not empty", 2, "not empty, and not a job's folder", "--output", "{folder}/full", given=lambda folder: _write(folder / "full/x", "x")),
    dry("the output cannot be written", 2, "cannot write to", "--output", "/proc/self/out"),
    dry("the output below a file", 2, "cannot write to {folder}/job.yaml (Not a directory)", "--output", "{folder}/job.yaml/out"),
    dry("the output is a link to nowhere", 2, "{folder}/out is a link that leads nowhere. Make the folder", given=lambda folder: (folder / "out").symlink_to(folder / "no")),
    dry("the output below a link to nowhere", 2, "{folder}/disk is a link that leads nowhere", "--output", "{folder}/disk/out", given=lambda folder: (folder / "disk").symlink_to(folder / "no")),
    dry("the output is a link to itself", 2, "{folder}/out is a link that leads nowhere", given=lambda folder: (folder / "out").symlink_to(folder / "out")),
    dry("a name too long in the output's path", 2, "has a name of more than 255 bytes", "--output", "{folder}/" + "x" * 300),
    dry("a file in the place of _job", 2, "_job is a file there", given=lambda folder: _write(folder / "out/_job", "x")),
    dry("a file in the place of data", 2, "data is a file there", given=lambda folder: [(folder / "out/_job").mkdir(parents=True), _write(folder / "out/data", "x")]),
    run("another fold for a finished job", 2, "input.fold: was 'exact', is 'off'", "--set", "input.fold=off", finished=True),
    run("another limit for a finished job", 2, "with the same --limit and --shards", "--limit", "5", finished=True),
    run("a finished job that was moved", 0, "nothing to do", "--output", "{folder}/moved", given=lambda folder: shutil.move(folder / "out", folder / "moved"), finished=True),
    run("files of a file browser", 0, "nothing to do", given=lambda folder: [_write(folder / "out" / place / ".DS_Store", "x") for place in ("data", "_job/log")], finished=True),
    command("plan after clean", 2, "`clean` removed its scores", "plan", "{folder}/job.yaml", given=lambda folder: clean(Folder.at(str(folder / "out")), Bars.none()), finished=True),
    command("verify of a segment with a far number", 1, "is missing, as are the 9,999,999,9", "verify", "{folder}/out", given=lambda folder: _write(folder / "out/_job/log/9999999999.jsonl", "x"), finished=True),
    dry("the output in the input", 2, "lies inside input.uri", "--output", "{folder}/corpus/out"),
    dry("the output is the input", 2, "lies inside input.uri", "--output", "{folder}/corpus"),
    dry("the output in the input by a link", 2, "lies inside input.uri", "--output", "{folder}/alias/out", given=lambda folder: (folder / "alias").symlink_to(folder / "corpus")),
    dry("the input in the output", 2, "lies inside it, among the files that a job writes", "--output", "{folder}"),
    dry("review: the output in a glob of the input", 2, "would be taken for input", "--output", "{folder}/corpus/out", "--set", "input.uri={folder}/corpus/**/*.parquet"),
    dry("the output beside what a glob takes", 0, "new", "--output", "{folder}/corpus/out", "--set", "input.uri={folder}/corpus/*.parquet"),
    dry("another budget for a finished job", 2, "frozen at", "--budget", "0.9", finished=True),
    dry("a disk that is nearly full", 1, ("GB are free on its disk", "Free space, or give an output on another disk"), given=mark("free", "100")),
    dry("a disk that may not suffice", 0, "this may not be enough", given=lambda folder: mark("free", str(sum(path.stat().st_size for path in folder.glob("corpus/*")) - 1))(folder)),
    run("a corpus that changed", 2, ("the input is not what this job began with", "a.parquet: changed"), finished=True, given=shard("a.parquet", ["Another."] * 70)),
    run("a shard that is gone", 2, "b.parquet: now missing or unreadable", finished=True, given=lambda folder: (folder / "corpus/b.parquet").unlink()),
    run("a new shard", 2, "c.parquet: not there before", finished=True, given=shard("c.parquet")),
    run("review: no manifest", 2, ("manifest.json: is missing, although work was committed under it",), finished=True, given=lambda folder: (folder / "out/_job/manifest.json").unlink()),
    run("review: an empty manifest", 2, "manifest.json: empty or damaged", finished=True, given=torn("_job/manifest.json", lambda data: b"")),
    run("review: an empty _SUCCESS", 2, "_SUCCESS: empty or damaged", finished=True, given=torn("_SUCCESS", lambda data: b"")),
    run("a manifest that is a list", 2, "manifest.json: empty or damaged", finished=True, given=torn("_job/manifest.json", lambda data: b"[]")),
    run("review: a torn line in the log", 2, "log", finished=True, given=torn("_job/log/**/*", lambda data: data[: len(data) // 2])),
    run("review: a blank line in the log", 2, "log", finished=True, given=torn("_job/log/**/*", lambda data: b"\n" + data)),
    command("report of a damaged report", 2, "job.json", "report", "{folder}/out", finished=True, given=torn("reports/job.json", lambda data: b"{")),
    command("verify finds a lost output shard", 1, "data/a.parquet", "verify", "{folder}/out", finished=True, given=lambda folder: (folder / "out/data/a.parquet").unlink()),
]  # fmt: skip

CASES = [*SPEC_VALUES, *SPEC_FILES, *OPTIONS, *INPUTS, *OUTPUTS]


def write_job(folder: Path) -> None:
    """A corpus of two shards, 71 rows, and a spec for the demo's models."""
    write_shard(folder / "corpus" / "a.parquet", [f"I saw number {i}." for i in range(70)])
    write_shard(folder / "corpus" / "b.parquet", ["Only this."])
    pool = {"max_model_len_tokens": 256}
    models = {
        name: {"source": str(MODELS / name), "max_output_tokens": 64, **pool} for name in ("small", "large")
    }
    value = {
        "name": "test",
        "input": {"uri": str(folder / "corpus"), "columns": dict(COLUMNS)},
        "output": {"uri": str(folder / "out")},
        "models": models,
        "router": {"source": str(MODELS / "router"), **pool},
        "budget": {"fraction": 0.3},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(value))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job. A shard's time of change is in its manifest, so copies are read again."""
    folder = tmp_path_factory.mktemp("finished")
    write_job(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "_draw_page", lambda workspace, bars: None)
        engine = FakeEngine(folder / "sent.log")
        flow.run(load(folder / "job.yaml"), flow.Options(), Bars.none(), engine.opened)
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes up what a case marked; see mark."""
    usage, scandir = shutil.disk_usage, os.scandir

    def listed(path: Any = ".") -> Any:
        if str(path).endswith("/corpus/closed"):  # root may list any folder
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def prepare() -> None:
        if (tmp_path / "free").exists():
            free = int((tmp_path / "free").read_text())
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
        if (tmp_path / "closed").exists():
            monkeypatch.setattr(os, "scandir", listed)
        if (tmp_path / "truncated").exists():
            monkeypatch.setattr(made_up, "TRUNCATED", True)

    return prepare


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_bad_input_is_answered_in_words(
    case, tmp_path, finished, routelmt, world, monkeypatch, fake_engine, no_page
):
    write_job(tmp_path)
    if case.finished:
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
        text = (tmp_path / "job.yaml").read_text().replace(str(finished), str(tmp_path))
        (tmp_path / "job.yaml").write_text(text)
    case.given(tmp_path)
    world()
    monkeypatch.setattr(flow, "ray_engine", lambda folder, options: fake_engine.opened(folder))
    names = {"folder": str(tmp_path), "models": str(MODELS)}
    answer = routelmt(*(_filled(argument, names) for argument in case.arguments), cwd=tmp_path)
    said = answer.stdout + answer.stderr
    assert "Traceback" not in said, said
    assert answer.returncode == case.code, said
    for word in case.words:
        assert _filled(word, names) in said
    for word in case.never:
        assert word not in said


def _filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def test_the_table_has_each_case_once():
    names = Counter(case.name for case in CASES)
    assert len(CASES) >= 300 and max(names.values()) == 1, names.most_common(3)
