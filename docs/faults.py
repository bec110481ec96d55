"""Writes docs/pages/faults.md from chaos.json, the record of the random faults; see references.py.

It knows the record's form, which tests/chaos writes, and nothing of the package.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "pages/chaos.json"
_OUTCOME = ("exit_code", "rows_other_than_clean")
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
    parts = [part for key, write in sections.items() if record.get(key) for part in write(record[key])]
    return "\n".join([HEAD, *parts])


def _made_up(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield (
        "## With a made-up engine\n\n"
        f"{_seeds(found)} {sum(one['runs'] for one in found)} runs. A fault counts as met if its run ended "
        "otherwise than a run without a fault; a store's, if a request met it; a closed standard error "
        "always. The output's disk has a layer over it, in the driver's process; the store is moto's S3 "
        "server behind a proxy.\n"
    )
    drawn, met = (Counter(kind for one in found for kind in one[key]) for key in ("faults", "met"))
    kinds = runpy.run_path(str(Path(__file__).parents[1] / "tests/chaos/kinds.py"))["KINDS"]
    yield _table(
        ("fault", "what happens", "drawn", "met"),
        [(kind, what, drawn[kind], met[kind]) for kind, what in kinds.items()],
    )


def _real(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield (
        "## With real engines\n\n"
        f"{_seeds(found)} Each is `routelmt-batch run` with Ray and vLLM. A process that got SIGSTOP got "
        "SIGCONT after five seconds. The last column counts rows whose translation is not that of a run "
        "without faults: see [what is not promised](reliability.md#what-is-not-promised).\n"
    )
    yield _table(
        ("fault", "seconds after the process was there", "met", "exit code", "other rows"),
        [
            (one["fault"], one["after_s"], _yes(one.get("met")), *(one.get(key, "") for key in _OUTCOME))
            for one in found
        ],
    )


def _mutants(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    by = Counter(map(_by, found))
    yield (
        "## The tests tried\n\n"
        f"{len(found)} small faults in the code that commits, one at a time. {by['random faults']} are "
        f"noticed by {found[0]['seeds']} seeds of the random faults, {by['nearest tests']} more by the "
        f"nearest tests, {by['nothing']} by neither.\n"
    )
    yield _table(
        ("fault in the code", "module", "noticed by"),
        [(one["mutant"], f"`{one['module']}`", _by(one)) for one in found],
    )


def _by(one: Mapping[str, Any]) -> str:
    return next((name for name in ("random faults", "nearest tests") if one[name]), "nothing")


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _seeds(found: Sequence[Mapping[str, Any]]) -> str:
    broken = {one["seed"]: one["broken"] for one in found if "broken" in one}
    if not broken:
        return f"{len(found)} seeds; all passed."
    why = "; ".join(f"{seed} ({reason})" for seed, reason in broken.items())
    return f"{len(found)} seeds; {len(found) - len(broken)} passed. Not: {why}."


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
