"""The job spec: frozen pydantic models, read from YAML. It knows no engine and opens no corpus."""

from routelmt_batch.spec.jobs import JobSpec, LabelSpec, MeasureSpec, PassSpec, ScoreSpec
from routelmt_batch.spec.parts import (
    OWN_ENGINE_KEYS,
    Budget,
    Columns,
    Input,
    Models,
    Output,
    Page,
    Part,
    Pool,
    Prompt,
    Replicas,
    Router,
    Run,
    SpecFile,
    Texts,
    Translator,
    near,
)
from routelmt_batch.spec.quality import Audit, Checks, Guard, Metric
from routelmt_batch.spec.reuse import Reuse
from routelmt_batch.spec.storage import Storage
from routelmt_batch.spec.values import COMET

__all__ = [
    "COMET",
    "OWN_ENGINE_KEYS",
    "Audit",
    "Budget",
    "Checks",
    "Columns",
    "Guard",
    "Input",
    "JobSpec",
    "LabelSpec",
    "MeasureSpec",
    "Metric",
    "Models",
    "Output",
    "Page",
    "Part",
    "PassSpec",
    "Pool",
    "Prompt",
    "Replicas",
    "Reuse",
    "Router",
    "Run",
    "ScoreSpec",
    "SpecFile",
    "Storage",
    "Texts",
    "Translator",
    "near",
]
