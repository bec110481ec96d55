"""`verify` checks a job or labels, from the log to the last output byte.

It trusts the log and compares every other file with it. It writes nothing; see rebuild.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import pyarrow as pa

from routelmt_batch.errors import OutputError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.write import sha256
from routelmt_batch.job.committed import faults, surplus
from routelmt_batch.job.findings import Found, Remedy
from routelmt_batch.progress import Bars, counted
from routelmt_batch.rows import STAGES
from routelmt_batch.spec import JobSpec, PassSpec
from routelmt_batch.stages.allocate import is_begun, last_plan
from routelmt_batch.stages.outputs import Report, current_outputs, success
from routelmt_batch.store.folder import Folder, read_json
from routelmt_batch.store.log import Log
from routelmt_batch.store.log_check import flaws
from routelmt_batch.store.manifest import check_manifest
from routelmt_batch.threads import Stop, each

# The report of each kind of job, by its kind of spec.
Kinds: TypeAlias = Mapping[type[PassSpec], type[Report]]
_MISSING, _NOT_JSON = "is missing", "is empty or damaged"
_NOTHING = "nothing"
_PAGE_END = b"</html>"


def verify(folder: Folder, kinds: Kinds, bars: Bars) -> Found:
    """Read everything that a job wrote, and find what is wrong. An unfinished job is checked as far as it is.

    Raises:
        OutputError: no job is there.
    """
    found = Found(folder)
    _log(found, bars)
    _manifest(found)
    kinds = {spec: report for spec, report in kinds.items() if found.command in (None, spec.command)}
    _spec(found, kinds)
    _parts(found, bars)
    _plan(found)
    _outputs(found, bars)
    if found.finished:
        _end(found, kinds)
    return found


def _log(found: Found, bars: Bars) -> None:
    folder = found.folder
    log = Log(folder.work / "log")
    files = log.files()
    if not (files or folder.manifest.exists() or folder.success.exists()):
        raise OutputError(f"{folder.root}: no job there. Give the output of a job or of labels")
    found.checked["files of the log"] = len(files)
    found.finished = folder.success.exists() and not folder.is_reopened()
    if not files:
        found.find(log.folder, _MISSING, "what was committed is not known", Remedy.START_ANEW)
        return
    for flaw in flaws(log, bars):
        path = log.folder / flaw.name
        if flaw.is_copy:
            found.find(path, flaw.wrong, f"{_NOTHING}: it only repeats other segments", Remedy.REBUILD)
        elif flaw.kept_in:
            found.find(path, flaw.wrong, f"{_NOTHING}: {flaw.kept_in} has its records, too", Remedy.RESTORE)
        else:
            lost = "what was committed in it and after it is not known"
            found.find(path, flaw.wrong, lost, Remedy.START_ANEW)
    try:
        found.ledger = folder.ledger()
    except WorkChanged:
        if not found.findings:
            raise
        return
    found.finished |= found.ledger.cleaned


def _manifest(found: Found) -> None:
    if wrong := _wrong_manifest(found):
        lost = "the input and the settings that the committed work was made from"
        found.find(found.folder.manifest, wrong, lost, Remedy.START_ANEW)
    elif manifest := found.folder.read_manifest():
        found.command, found.unreadable = manifest["command"], manifest["unreadable"]
        found.rows = _rows(found.folder, manifest)


def _wrong_manifest(found: Found) -> str | None:
    path, ledger = found.folder.manifest, found.ledger
    try:
        manifest = found.folder.read_manifest()
    except WorkChanged:
        return _NOT_JSON
    if manifest is None:
        return _MISSING if found.finished or (ledger and ledger.has_parts) else None
    try:
        if ledger:
            check_manifest(path, ledger, manifest)
    except WorkChanged:
        return "is not the one that the log names"
    try:
        _rows(found.folder, manifest)
    except (WorkChanged, KeyError, TypeError):
        return f"names a list of shards that is missing or damaged ({found.folder.shard_lists})"
    return None


def _rows(folder: Folder, manifest: Mapping[str, Any]) -> dict[str, int]:
    """The rows of each shard that the job covers."""
    left = sys.maxsize if manifest["limit"] is None else manifest["limit"]
    rows = {}
    for shard in folder.read_shards(manifest):
        rows[shard.name] = min(shard.rows, left)
        left -= rows[shard.name]
    return rows


def _spec(found: Found, kinds: Kinds) -> None:
    if not (found.command or found.finished):
        return  # the manifest is written after it
    for kind in kinds:
        try:
            found.folder.read_spec(kind)
            return
        except WorkChanged:
            continue
    path = found.folder.spec
    wrong = "holds no spec" if path.exists() else _MISSING
    found.find(path, wrong, "the settings that the job ran with", Remedy.RUN)


def _parts(found: Found, bars: Bars) -> None:
    ledger, folder = found.ledger, found.folder
    if ledger is None:
        return
    found.checked["parts"] = sum(len(ledger.parts(stage)) for stage in STAGES.values())
    if found.finished:
        remedy, needed = Remedy.RESTORE, "the output does not need them, but cannot be made again"
    else:
        remedy, needed = Remedy.START_ANEW, "the job cannot continue without them"
    before = len(found.findings)
    for entry, wrong in faults(ledger, found.rows, bars):
        lost = f"{counted(entry.rows, 'row')} of {entry.stage.name}; {needed}"
        found.find(ledger.part_path(entry), wrong, lost, remedy)
    total = sum(found.rows.values())
    for stage, rows in surplus(ledger, total) if found.rows else ():
        wrong = f"holds {counted(rows, 'row')} of a job with {total:,}"
        found.find(folder.work / stage.name, wrong, "which rows count is not known", Remedy.START_ANEW)
    found.again = bool(found.rows) and not ledger.cleaned and len(found.findings) == before
    for stage_name, paths in ledger.unnamed().items():
        if paths:
            wrong = f"holds {counted(len(paths), 'file')} that no record names: a crash or `clean` left them"
            found.find(folder.work / stage_name, wrong, _NOTHING, Remedy.RUN, damage=False)


def _plan(found: Found) -> None:
    ledger, folder = found.ledger, found.folder
    frozen = last_plan(ledger) if ledger else None
    if not (ledger and frozen and is_begun(folder, ledger)):
        return  # until then `run` makes it again
    if wrong := _wrong(folder.plan, frozen["sha256"]):
        lost = f"{_NOTHING}: it is made again from the scores" if found.again else "the cut of the scores"
        found.find(folder.plan, wrong, lost, Remedy.RUN if found.again else Remedy.RESTORE)


def _wrong(path: Location, digest: str, size: int | None = None, stop: Stop = lambda: None) -> str | None:
    """What is wrong with a file that was written with this SHA-256 and as many bytes."""
    try:
        stat = path.stat()
        if stat is None:
            return _MISSING
        if size is not None and stat.bytes != size:
            return f"has {stat.bytes:,} bytes; {size:,} were written"
        if sha256(path, stop) != digest:
            return "has other contents than were written (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def _outputs(found: Found, bars: Bars) -> None:
    """The output shards that the log names, or, if the log is damaged, those that _SUCCESS names."""
    folder = found.folder
    outputs = current_outputs(found.ledger) if found.ledger else _named(folder)
    found.checked["output shards"] = len(outputs)
    with (
        bars.rows("output", len(outputs), unit="shards") as advance,
        each(lambda output, stop: _faults(found, output, stop), outputs) as shards,
    ):
        for output, wrongs in zip(outputs, shards, strict=True):
            advance(1)
            for path, wrong in wrongs:
                _lost(found, path, wrong, f"what it says of {counted(output['rows'], 'output row')}")
    if found.finished and found.ledger:
        for shard in found.rows.keys() - {output["shard"] for output in outputs}:
            _lost(found, folder.data(shard), "is of a finished job, but not in its log", "its output rows")


def _named(folder: Folder) -> list[dict[str, Any]]:
    try:
        return folder.outputs()
    except (FileNotFoundError, WorkChanged):
        return []


def _lost(found: Found, path: Location, wrong: str, what: str) -> None:
    """Find damage of what `run` writes again if it is missing and the committed work is whole."""
    if not found.again:
        found.find(path, wrong, what, Remedy.RESTORE if found.finished else Remedy.START_ANEW)
        return
    remedy = Remedy.REBUILD if path.exists() else Remedy.RUN
    found.find(path, wrong, f"{_NOTHING}: it is made again from the committed work", remedy)


def _faults(found: Found, output: Mapping[str, Any], stop: Stop) -> list[tuple[Location, str]]:
    """What is wrong with an output shard and with its report."""
    data, report = found.folder.data(output["shard"]), found.folder.report(output["shard"])
    wrongs = [
        (data, _wrong(data, output["sha256"], output["bytes"], stop) or _wrong_rows(found, data, output)),
        (report, _wrong_report(report, output)),
    ]
    return [(path, wrong) for path, wrong in wrongs if wrong]


def _wrong_rows(found: Found, path: Location, output: Mapping[str, Any]) -> str | None:
    try:
        with parquet_file(path) as file:
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read as Parquet ({type(error).__name__})"
    if rows == output["rows"] == found.rows.get(output["shard"], rows):
        return None
    return f"has {counted(rows, 'row')}; the log names {output['rows']:,}"


def _wrong_report(path: Location, output: Mapping[str, Any]) -> str | None:
    try:
        report = read_json(path)
    except FileNotFoundError:
        return _MISSING
    except WorkChanged:
        return _NOT_JSON
    if any(report.get(key) != output[key] for key in ("rows", "bytes", "sha256")):
        return "is about another output shard than the log names"
    return None


def _end(found: Found, kinds: Kinds) -> None:
    """The files at the end of a finished job: reports/job.json, _SUCCESS, the audit page."""
    folder = found.folder
    if wrong := _wrong_job_report(found, kinds):
        _lost(found, folder.job_report, wrong, "the job's figures, times and fingerprints")
    found.output_is_whole = found.is_whole("data", "reports")
    if found.ledger and (wrong := _wrong_success(found)):
        mends = bool(found.rows) and (found.output_is_whole or found.again)
        lost = f"{_NOTHING}: the log names the same" if mends else "the list of the output shards"
        found.find(folder.success, wrong, lost, Remedy.REBUILD if mends else Remedy.RESTORE)
    if found.command == JobSpec.command:
        _page(found)


def _page(found: Found) -> None:
    folder, remedy = found.folder, Remedy.RUN if found.again else Remedy.RESTORE
    if found.output_is_whole and not any(finding.where == folder.spec for finding in found.findings):
        remedy = Remedy.REBUILD
    try:
        if not folder.page.read_bytes().rstrip().endswith(_PAGE_END):
            found.find(folder.page, _NOT_JSON, f"{_NOTHING}: it is drawn again", remedy)
    except FileNotFoundError:
        found.find(folder.page, _MISSING, f"{_NOTHING}: the job is complete without it", remedy, damage=False)


def _wrong_job_report(found: Found, kinds: Kinds) -> str | None:
    path = found.folder.job_report
    if not path.exists():
        return _MISSING
    for kind in kinds.values():
        try:
            report = kind.read(path)
        except WorkChanged:
            continue
        same = (report.rows, report.shards) == (sum(found.rows.values()), len(found.rows))
        return None if same or not found.rows else "is about other rows than the job's"
    return _NOT_JSON


def _wrong_success(found: Found) -> str | None:
    assert found.ledger
    try:
        named = read_json(found.folder.success)
    except FileNotFoundError:
        return _MISSING
    except WorkChanged:
        return _NOT_JSON
    if not found.rows or named == success(found.ledger, sum(found.rows.values()), found.unreadable):
        return None
    return "does not name the output shards that the log names"
