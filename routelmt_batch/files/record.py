"""The base class of records that are written as JSON and read back. It knows no record by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from routelmt_batch.files.location import Location
from routelmt_batch.files.write import Check, plain, write_json


class Record(BaseModel):
    """A frozen record. It refuses unknown keys, and writes only the keys that were given."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """A record of a mapping's values; NaN and infinities become null, as in JSON."""
        return cls.model_validate(plain(dict(value)))

    @classmethod
    def read(cls, path: Location | Path) -> Self:
        """The record in a file. Raises ValueError if the file contains something else."""
        return cls.model_validate(json.loads(path.read_bytes()))

    def as_json(self) -> dict[str, Any]:
        """The record's JSON value, as `write` writes it."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Location | Path, failpoint: str, check: Check = lambda: None) -> None:
        """Write it atomically: see files.write.write_json."""
        write_json(path, self.as_json(), failpoint, check)
