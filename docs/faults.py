"""Writes docs/pages/faults.md from chaos.json, the record of the random faults; see references.py.

It knows the record's form, which tests/chaos writes, and nothing of the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "pages/chaos.json"
HEAD = """\
# Random faults

What was tried at random against the [promises](reliability.md), and what came of it. This page is
written from `chaos.json`, the record of the runs, by `docs/references.py`; do not edit it.

A seed is a small job and one to three faults, each in a run of its own: what kind, and at which step.
The same seed draws the same faults. A step is a file that is written, made durable, named, replaced or
removed. After each fault the same command runs again. A seed passes if all of this holds:

- the last run ends with 0, and its output equals that of a run without faults;
- no row of a part that was committed when a run began went to an engine in that run;
- committed parts are byte for byte what they were, also after a power cut;
- no process, draft or unnamed part is left, and no run ended with a traceback.

```sh
python -m tests.chaos --seeds 200    # with a made-up engine
python -m tests.chaos --real 10      # with Ray and vLLM, on the demo's models
python -m tests.chaos.mutants        # tries the tests
```

`make test` runs ten of the seeds, and `make chaos` 190 more.
"""


def page() -> str:
    """The whole page."""
    record = json.loads(RECORD.read_text(encoding="utf8"))
    sections = {"made-up engine": _made_up, "real engines": _real, "mutants": _mutants}
    parts = [part for key, write in sections.items() if key in record for part in write(record[key])]
    return "\n".join([HEAD, *parts])


def _made_up(found: Mapping[str, Any]) -> Iterable[str]:
    first, last = found["seeds"]
    yield (
        "## With a made-up engine\n\n"
        f"Seeds {first} to {last}, {found['runs']} runs, {found['seconds'] // 60} minutes on two cores "
        f"({found['at']}). {_passed(last - first + 1, found['broken'])} A fault counts as met if its run "
        "ended otherwise than a run without a fault; a store's, if a request met it. The output's disk has a "
        "layer over it, in the driver's process; the store is moto's S3 server behind a proxy.\n"
    )
    rows = [(kind, fault["what"], fault["drawn"], fault["met"]) for kind, fault in found["faults"].items()]
    yield _table(("fault", "what happens", "drawn", "met"), rows)


def _real(found: Mapping[str, Any]) -> Iterable[str]:
    runs = found["runs"]
    seeds = len(runs) + len(found["broken"])
    yield (
        "## With real engines\n\n"
        f"{seeds} seeds with `routelmt-batch run`, Ray and vLLM ({found['at']}). "
        f"{_passed(seeds, found['broken'])} A process that got SIGSTOP got SIGCONT after five seconds. No "
        "process was left. The last column counts rows whose translation is not that of a run without "
        "faults: see [what is not promised](reliability.md#what-is-not-promised).\n"
    )
    lines = [
        (
            one["fault"],
            one["after_s"],
            "yes" if one["met"] else "no",
            one["exit_code"],
            one["rows_other_than_clean"],
        )
        for one in runs.values()
    ]
    yield _table(("fault", "seconds after the process was there", "met", "exit code", "other rows"), lines)


def _mutants(tried: Mapping[str, Any]) -> Iterable[str]:
    found = tried["each"]
    killed = [one for one in found if one["random faults"] or one["nearest tests"]]
    yield (
        "## The tests tried\n\n"
        f"{len(found)} small faults in the code that commits, one at a time: {len(killed)} are noticed, "
        f"{sum(one['random faults'] for one in found)} of them by {tried['seeds']} seeds of the "
        "random faults, the others by the nearest tests.\n"
    )
    rows = [(one["mutant"], f"`{one['module']}`", _by(one)) for one in found]
    yield _table(("fault in the code", "module", "noticed by"), rows)


def _by(one: Mapping[str, Any]) -> str:
    return next((name for name in ("random faults", "nearest tests") if one[name]), "nothing")


def _passed(seeds: int, broken: Mapping[str, str]) -> str:
    if not broken:
        return "All passed."
    return (
        f"{seeds - len(broken)} passed; not: "
        + "; ".join(f"{seed} ({why})" for seed, why in broken.items())
        + "."
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
