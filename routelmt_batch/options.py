"""Options that commands share. Nothing heavy loads here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="Job spec, a YAML file.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", metavar="P", help="Fraction of rows for the large model; budget.fraction."),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", metavar="URI", help="Output folder; output.uri.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the spec; may be given again."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows of the input.")
]
ShardsOption = Annotated[
    str | None, typer.Option("--shards", metavar="GLOB", help="Only shards whose name matches.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="RAY", help="Ray cluster to run on; default: this machine."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and vLLM print, instead of logging it.")
]


def logs_of(output: str) -> Path:
    """Where a job writes its logs."""
    from routelmt_batch.workspace import Folder

    return Folder(Path(output)).logs
