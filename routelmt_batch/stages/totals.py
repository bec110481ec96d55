"""The shards' reports, added up over the job in tasks on all nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routelmt_batch.engines.lanes import Engine
from routelmt_batch.store.folder import Folder, read_json
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop

_TOGETHER = 256  # reports a task
_JOINS = (min, max)
Summable = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def totals(workspace: AnyWorkspace, engine: Engine, summable: Summable) -> dict[str, Any]:
    """The sum of what `summable` takes from each shard's report. If a key is the function `min` or `max`, its
    values are joined by it; the words may be language codes."""
    names = [shard.name for shard in workspace.shards]
    together = (names[first : first + _TOGETHER] for first in range(0, len(names), _TOGETHER))
    with engine.each(_Adder(workspace.folder, summable), together) as sums:
        return add(sums)


@dataclass(frozen=True)
class _Adder:
    """Adds up some shards' reports, in a task."""

    folder: Folder
    summable: Summable

    def __call__(self, shards: Sequence[str], stop: Stop) -> dict[str, Any]:
        def reports() -> Iterable[Mapping[str, Any]]:
            for shard in shards:
                stop()
                yield self.summable(read_json(self.folder.report(shard)))

        return add(reports())


def add(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of mappings of numbers, key by key, however deep; null counts for nothing."""
    total: dict[str, Any] = {}
    for value in values:
        _add_to(total, value)
    return total


def _add_to(total: dict[Any, Any], values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _add_to(total.setdefault(key, {}), value)
        elif total.get(key) is None:
            total[key] = value
        elif value is not None:
            total[key] = key(total[key], value) if key in _JOINS else total[key] + value
