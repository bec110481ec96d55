"""Facts that one model writes as JSON and reads again. It knows no fact by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from routelmt_batch.atomic import plain, write_json


class Record(BaseModel):
    """A value that refuses unknown keys. A key that was not given is not written."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From what JSON holds, or will hold: NaN and infinities are null."""
        return cls.model_validate(plain(dict(value)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ValueError if the file holds something else."""
        return cls.model_validate(json.loads(path.read_text(encoding="utf8")))

    def as_json(self) -> dict[str, Any]:
        """As a file has it."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path, failpoint: str) -> None:
        """See atomic.write_json."""
        write_json(path, self.as_json(), failpoint)
