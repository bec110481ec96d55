"""Imports point down: cli, learning, job, page, stages, routers and metrics, engines, then the modules below all."""

import ast
from pathlib import Path

import pytest

import routelmt_batch

PACKAGE = Path(routelmt_batch.__file__).parent
# A module may import from its own layer and from those after it.
LAYERS = (
    {"__main__", "cli"},
    {"learning.cli", "submission.cli"},
    {"show", "options", "scheduled"},
    {"learning.evaluation", "learning.labelling", "learning.training", "learning.calibrate"},
    {"learning"},
    {"job", "rates", "clean", "conditions", "exposition", "submission"},
    {"page"},
    {"stages"},
    {"routers", "metrics"},
    {"engines"},
)


def layer(module: str) -> int:
    """Of the longest name in LAYERS that the module stands under; the rest of the package is below all."""
    found = {
        name: depth
        for depth, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    }
    return found[max(found, key=len)] if found else len(LAYERS)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("routelmt_batch"):
            of = node.module.removeprefix("routelmt_batch").lstrip(".")
            for name in node.names:
                whole = f"{of}.{name.name}".lstrip(".")
                is_module = (PACKAGE / f"{whole.replace('.', '/')}.py").is_file()
                found.add(whole if is_module or not of else of)
    return found - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_down(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    above = {name for name in imports(path) if layer(name) < layer(module)}
    assert not above, f"{module} imports {', '.join(sorted(above))} from above"


@pytest.mark.parametrize("one", ["evaluation", "labelling", "training"])
def test_the_parts_of_learning_do_not_know_each_other(one):
    others = {f"learning.{part}" for part in ("evaluation", "labelling", "training")} - {f"learning.{one}"}
    for path in (PACKAGE / "learning" / one).glob("*.py"):
        assert not {name for name in imports(path) if name.startswith(tuple(others))}, path
