"""The spec: its defaults, its paths, and a message for each rule."""

from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from routelmt_batch.errors import SpecError
from routelmt_batch.learning.training.spec import TrainSpec, load_train_spec
from routelmt_batch.spec import JobSpec, LabelSpec, Replicas
from routelmt_batch.spec.file import kind_of, load, load_label
from routelmt_batch.spec.text import dump, parse
from tests.conftest import DEMO, MODELS, REPOSITORY


def test_the_demo_spec_and_its_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = load(DEMO / "job.yaml")
    assert spec.input.uri == str(DEMO / "input")
    assert spec.models.small.source == str(MODELS / "small")
    assert spec.output.uri == str(tmp_path / "runs/demo"), "the output resolves against the working folder"
    assert spec.budget.fraction == Decimal("0.3")
    assert spec.models.prompt_limit_tokens == 160


def test_the_models_of_guard_and_metric_lie_beside_the_spec_too(make_spec, tmp_path):
    for name in ("quality-router", "comet"):
        (tmp_path / "models" / name).mkdir(parents=True)
    guard = {
        "mode": "predicted",
        "keep_small_above": 60,
        "verify": True,
        "router": {"source": "models/quality-router"},
    }
    spec = load(make_spec(guard=guard, metric="comet:models/comet"))
    assert spec.metric.checkpoint == str(tmp_path / "models/comet")
    assert spec.guard.router.source == str(tmp_path / "models/quality-router")
    assert load(make_spec(metric="comet:Unbabel/XCOMET-XL")).metric.checkpoint == "Unbabel/XCOMET-XL"


def test_hub_names_stay_hub_names(make_spec):
    spec = load(make_spec(), ["models.large.source=NiuTrans/LMT-60-8B"])
    assert spec.models.large.source == "NiuTrans/LMT-60-8B"


def test_a_bare_off_is_a_word(tmp_path, make_spec):
    path = make_spec()
    path.write_text(path.read_text() + "\nguard: {mode: off}\n")
    assert load(path).guard.mode == "off"


def test_faults_are_told_with_their_lines(make_spec):
    path = make_spec(input__target_lang="no")
    lines = path.read_text().splitlines()
    at = {line.strip().split(":")[0]: place for place, line in enumerate(lines, 1)}
    path.write_text(path.read_text().replace("fraction: 0.3", "fraction: 3").replace("part_rows", "part_row"))
    with pytest.raises(SpecError) as error:
        load(path, ["models.small.cpus=-1"])
    told = str(error.value)
    assert f"  line {at['fraction']}: budget.fraction: " in told
    assert f"  line {at['part_rows']}: run.part_row: unknown key; did you mean 'part_rows'?" in told
    assert "  models.small.cpus: -1" in told, "an option has no line"


def test_yaml_is_1_2_where_no_is_a_word():
    assert parse("no: no\nyes: on\n").value == {"no": "no", "yes": "on"}
    text = dump({"target_lang": "no", "off": None, "ü": "ö", "list": [1, 2.5, True]})
    assert parse(text).value == {"target_lang": "no", "off": None, "ü": "ö", "list": [1, 2.5, True]}


def test_a_merged_mapping_is_plain():
    found = parse("base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\n")
    assert found.value["other"] == {"a": 1, "b": 3} and found.line(("other", "a")) == 2


def test_a_key_that_is_given_twice_is_refused(make_spec):
    path = make_spec()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "budget:", "  fraction: 0.9", ""]))
    with pytest.raises(SpecError, match=f'line {len(lines) + 1}: the key "budget" is given twice'):
        load(path)


def test_a_fault_is_the_options_or_the_files(make_spec):
    """Whoever reads it knows what to mend."""
    path = make_spec()
    with pytest.raises(SpecError, match="^--budget 30: not valid\n  budget.fraction: '30': ") as caught:
        load(path, ["run.part_rows=9"], budget_fraction="30")
    assert str(path) not in str(caught.value)
    with pytest.raises(
        SpecError, match="^--set budget.fracton=0.2: not valid\n  budget.fracton: unknown key"
    ):
        load(path, ["budget.fracton=0.2"])
    path.write_text(path.read_text() + "speed: 3\n")
    with pytest.raises(
        SpecError, match=f"^{path}: the spec is not valid\n  budget.fraction: '30'.*\n  line \\d+: speed: "
    ):
        load(path, budget_fraction="30")


def test_norwegian_and_empty_sections(make_spec):
    path = make_spec()
    path.write_text(path.read_text().replace("run:\n  part_rows: 8\n", "run:\n") + "\nguard:\n")
    spec = load(path, ["input.target_lang=no", "run.retries=1"])
    assert (spec.input.target_lang, spec.run.retries) == ("no", 1)


def test_a_free_engine_setting_keeps_its_type(make_spec):
    spec = load(make_spec(), ["models.small.engine.gpu_memory_utilization=0.5"])
    assert spec.models.small.engine["gpu_memory_utilization"] == 0.5


@pytest.mark.parametrize("text", ["0.29", "0", "1", "1e-9", "0.30"])
def test_a_fraction_keeps_its_decimals(make_spec, text):
    assert load(make_spec(), budget_fraction=text).budget.fraction == Decimal(text)
    assert load(make_spec(), [f"budget.fraction={text}"]).budget.fraction == Decimal(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["budgt.fraction=0.3"], "budgt: unknown key; did you mean 'budget'?"),
        (["budget.fractoin=0.3"], "budget.fractoin: unknown key; did you mean 'fraction'?"),
        (["models.large.replica=2"], "models.large.replica: unknown key; did you mean 'replicas'?"),
        (["budget.fraction=1.5"], "budget.fraction: 1.5: Input should be less than or equal to 1"),
        (["budget.fraction=-0.1"], "greater than or equal to 0"),
        (["budget.fraction=nan"], "budget.fraction"),
        (["budget.fraction=third"], "give a number between 0 and 1"),
        (["budget.fraction=true"], "give a number between 0 and 1"),
        (
            ["input.source_lang=zho_Hant"],
            "input.source_lang: 'zho_Hant': not one of LMT's 60 codes; did you mean 'zh'?",
        ),
        (["input.columns.source=reason"], "input column 'reason' is the name of an output column"),
        (["input.columns.source=to"], "must be three columns"),
        (["models.small.max_output_tokens=256"], "leaves no room for a prompt"),
        (["models.small.engine.max_num_seqs=4"], "engine.max_num_seqs has its own key"),
        (["models.small.dtype=int8"], "models.small.dtype: 'int8'"),
        (["prompt.template=Translate {text}"], "template may use {source_lang}, {target_lang} and {source}"),
        (["prompt.template=Translate!"], "template must contain {source}"),
        (["guard.mode=hypothesis"], "guard: mode: hypothesis needs keep_small_above"),
        (["router.kind=lenght"], "kind 'lenght': unknown"),
        (
            ["output.uri=s4://bucket/out"],
            "output.uri: 's4://bucket/out': give a path, or a URI that begins with file://, s3://",
        ),
        (["input.uri=s3://key:secret@bucket/in"], "credentials are taken from the environment"),
        (["input.uri=s3:///in"], "give s3://BUCKET/KEY"),
        (
            ["output.uri=hf://datasets/a/b"],
            "output.uri: 'hf://datasets/a/b': hf:// is read only: give a path",
        ),
        (["input.uri=hf://a/b"], "input.uri: 'hf://a/b': is a model, and only datasets are read"),
        (["input.uri=[in, hf://a/b]"], "input.uri: ['in', 'hf://a/b']: hf://a/b: is a model"),
        (["name="], "name"),
        (["name"], "give key=value"),
        (["name.x=1"], "holds a value, not keys"),
        (["name=[1"], "the value is not YAML"),
    ],
)
def test_each_rule_has_a_message(make_spec, settings, message):
    with pytest.raises(SpecError) as error:
        load(make_spec(), settings)
    assert message in str(error.value)


def test_all_faults_are_told_at_once(make_spec):
    with pytest.raises(SpecError) as error:
        load(make_spec(), ["budget.fraction=2", "colour=red", "output.uri=null"])
    assert len(str(error.value).splitlines()) == 4


def test_a_missing_key_is_named(make_spec):
    path = make_spec()
    raw = yaml.safe_load(path.read_text())
    del raw["budget"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SpecError, match=r"budget: required, but missing"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n- b", "mapping"), ("a: [", "not valid YAML"), (None, "no such spec file")]
)
def test_a_file_that_is_no_spec(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=message):
        load(path)


SPECS = [path for path in REPOSITORY.glob("jobs/**/*.yaml") if "models" not in path.parts]


@pytest.mark.parametrize("path", sorted(SPECS), ids=str)
def test_every_spec_in_jobs_is_valid(path: Path):
    keys = yaml.safe_load(path.read_text())
    read = load if "budget" in keys else load_train_spec if "tables" in keys else load_label
    assert isinstance(read(path), kind_of(path, SPEC_KINDS))


SPEC_KINDS = (JobSpec, LabelSpec, TrainSpec)
BOTH = "name: x\ninput: {}\noutput: {}\nmodels: {}\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (BOTH, LabelSpec),
        (BOTH + "metrik: chrf\n", LabelSpec),
        (BOTH + "router: {}\n", JobSpec),  # its budget is an option
        (BOTH + "ruoter: {}\nbudget: {}\n", JobSpec),
        ("name: x\ntables: []\n", TrainSpec),
        ("name: x\noutput: {}\ntables: []\nbaes: {}\n", TrainSpec),
    ],
)
def test_a_specs_keys_say_which_command_it_is_for_even_if_one_is_wrong(tmp_path, text, kind):
    (tmp_path / "spec.yaml").write_text(text)
    assert kind_of(tmp_path / "spec.yaml", SPEC_KINDS) is kind


def test_the_starter_spec_is_valid_and_names_every_default(tmp_path):
    starter = REPOSITORY / "routelmt_batch" / "cli" / "starters" / "run.yaml"
    spec = load(starter)
    whole = []
    for line in starter.read_text().splitlines():
        bare = line.lstrip()
        if bare.startswith("# ") and ":" in bare.split("#")[1] and not bare[2].isupper():
            line = line.replace("# ", "", 1)
        whole.append(line)
    text = "\n".join(whole).replace("  source_lang: en  ", "  #").replace("  target_lang: de", "  #")
    path = tmp_path / "whole.yaml"
    path.write_text(text)
    assert load(path).models.small.replicas == spec.models.small.replicas == Replicas(min=1, max=1)
    for part in ("run", "guard", "checks", "audit"):
        assert getattr(load(path), part) == getattr(spec, part), "the commented defaults are the defaults"
