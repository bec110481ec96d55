"""Shared pieces of the tests: the demo's and COMET's models, small corpora, specs, one Ray session."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# With torch and transformers in memory each search for garbage is long, and takes a tenth of the tests' time.
gc.set_threshold(50_000, 20, 50)

REPOSITORY = Path(__file__).parent.parent
DEMO = REPOSITORY / "jobs" / "demo"
MODELS = DEMO / "models"

CORES = sorted(os.sched_getaffinity(0))
COLUMNS = {"source": "text", "source_lang": "from", "target_lang": "to"}


def pytest_configure(config: pytest.Config) -> None:
    """One core for each of pytest-xdist's processes: engines side by side on all cores slow each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        os.sched_setaffinity(0, {CORES[int(worker.removeprefix("gw")) % len(CORES)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: at the end it would leave the other cores idle."""
    items.sort(key=lambda item: item.path.name != "test_nodes.py")


def sampled(cases: Iterable[Any], every: int, first: int = 0) -> list[Any]:
    """One in `every` cases for each run of the tests; `make chaos` runs the others, too."""
    return [
        case
        if index % every == first
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.chaos)
        for index, case in enumerate(cases)
    ]


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Lets one test's processes run on all cores, not only on the core of pytest's own process."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, own)


def write_shard(path: Path, texts: list[str | None], row_group_size: int = 1000, **columns: Any) -> Path:
    """A shard of the given texts, English to German unless said otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "from": pa.array(["en"] * len(texts), pa.string()),
            "to": pa.array(["de"] * len(texts), pa.string()),
            "id": pa.array(range(len(texts)), pa.int64()),
        }
    )
    for name, values in columns.items():
        place = table.column_names.index(name) if name in table.column_names else table.num_columns
        if place < table.num_columns:
            table = table.remove_column(place)
        table = table.add_column(place, name, values)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards: several row groups, one row, none, one in a subfolder; some rows not translatable."""
    root = tmp_path / "corpus"
    words = ["cat", "dog", "house", "tree", "river", "bread"]
    many = [f"I saw a {words[i % 6]} near {words[i % 5]} number {i}." for i in range(50)]
    many[3], many[4], many[5] = None, "", " \t"
    many[6] = "far too long " * 200
    many[8] = many[7]
    write_shard(root / "a.parquet", many, row_group_size=17)
    write_shard(root / "b-one.parquet", ["Only this."])
    write_shard(root / "c-none.parquet", [])
    write_shard(
        root / "sub" / "d.parquet",
        [f"Sub {i}." for i in range(20)],
        to=pa.array(["de"] * 18 + ["xx", None]),
    )
    return root


def with_references(corpus: Path) -> str:
    """Add a column of references to every shard: its texts. Returns the column's name."""
    for path in corpus.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("human", table["text"]), path)
    return "human"


@pytest.fixture
def make_spec(tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    """Writes a spec over the corpus and the demo models; keyword arguments set dotted keys."""

    def write(**settings: Any) -> Path:
        pool = {"max_model_len_tokens": 256}
        engine = {"kv_cache_memory_bytes": 64 << 20}
        spec: dict[str, Any] = {
            "name": "test",
            # Texts of most tests repeat, and their rows are counted one by one; tests/stages/test_fold.py folds.
            "input": {"uri": str(corpus), "columns": dict(COLUMNS), "fold": "off"},
            "output": {"uri": str(tmp_path / "out")},
            "models": {
                name: {"source": str(MODELS / name), "max_output_tokens": 64, "engine": engine, **pool}
                for name in ("small", "large")
            },
            "router": {"source": str(MODELS / "router"), **pool},
            "budget": {"fraction": 0.3},
            "run": {"part_rows": 8},
        }
        for dotted, value in settings.items():
            *parents, last = dotted.split("__")
            place = spec
            for name in parents:
                place = place.setdefault(name, {})
            place[last] = value
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hugging Face hub, and an empty cache for what is downloaded from it."""
    from tests.files.hub_server import hub_server

    with hub_server() as running:
        running.use(monkeypatch, tmp_path / "hub-cache")
        yield running


@pytest.fixture
def fake_engine(tmp_path: Path) -> Any:
    from tests.fake_engine import FakeEngine

    return FakeEngine(tmp_path / "sent.log")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of tests that are not about the audit page: its charts take half of such a job's time."""
    from routelmt_batch.job import flow

    monkeypatch.setattr(flow, "_draw_page", lambda workspace, bars: None)


@pytest.fixture
def commands_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process: their signal handlers are no other test's, what they print can be read."""
    from routelmt_batch import interrupts
    from routelmt_batch.progress import SafeConsole

    monkeypatch.setattr(interrupts, "stop_on_signals", lambda: None)
    for module in ("cli.main", "cli.ending", "cli.submission"):
        monkeypatch.setattr(f"routelmt_batch.{module}.stderr_console", lambda: SafeConsole(stderr=True))


@pytest.fixture
def invoke(
    fake_engine: Any, no_page: None, commands_here: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A command in this process, on a made-up engine."""
    from typer.testing import CliRunner

    from routelmt_batch.cli.main import app
    from routelmt_batch.job import flow

    monkeypatch.setattr(flow, "ray_engine", lambda folder, options: fake_engine.opened(folder))
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def routelmt(
    commands_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A whole command, errors and exit code included, in this process: there imports cost no time."""
    from routelmt_batch.cli.main import main

    def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["routelmt-batch", *arguments])
            if cwd:
                patch.chdir(cwd)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code or 0
        return subprocess.CompletedProcess(arguments, int(code), *capsys.readouterr())

    return run


def in_quality(script: str, *arguments: str, given: object = None) -> Any:
    """What a script of tests/comet answers, run by the quality environment's Python."""
    from routelmt_batch.engines import quality

    command = [quality.check().python, "-W", "ignore", REPOSITORY / "tests" / "comet" / script, *arguments]
    answer = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout.splitlines()[-1]) if answer.stdout.strip() else None


def comets(folder: Path, samples: list[dict[str, str]]) -> Any:
    """unbabel-comet's own `scores` of some samples, and which it `cut`."""
    return in_quality("predict.py", given={str(folder): samples})[str(folder)]


@pytest.fixture(scope="session")
def comet_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real checkpoints by name; see tests/comet/make.py."""
    folder = tmp_path_factory.mktemp("comet")
    in_quality("make.py", str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need engines; jobs join it and leave it running."""
    from routelmt_batch.engines.session import Session

    session = Session(Path(os.environ.get("TMPDIR", "/tmp")), verbose=True)
    with session:
        session.start()
        yield
