"""Rooms: what each may import. The tree is read from top to bottom, and imports point down."""

import ast
import graphlib
from pathlib import Path

import pytest

import routelmt_batch

PACKAGE = Path(routelmt_batch.__file__).parent
# Top to bottom. Modules on the package's top level are below all rooms.
ROOMS = (
    "cli",
    "submission",
    "learning",
    "job",
    "page",
    "stages",
    "routers",
    "metrics",
    "checks",
    "engines",
    "store",
    "corpus",
    "spec",
    "files",
    "stats",
)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")


NAMES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("routelmt_batch"):
            of = node.module.removeprefix("routelmt_batch").lstrip(".")
            for name in node.names:
                whole = f"{of}.{name.name}".lstrip(".")
                found.add(whole if whole in NAMES else of)
    return found - {""}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    room = path.parts[0] if len(path.parts) > 1 else None
    if name_of(path) in ("", "__main__"):
        return
    below = ROOMS[ROOMS.index(room) :] if room else ()
    above = {name for name in imports(path) if name.split(".")[0] in set(ROOMS) - set(below)}
    assert not above, f"{path} imports {', '.join(sorted(above))} from above"


def test_no_file_imports_itself_by_way_of_others():
    list(graphlib.TopologicalSorter({name: imports(path) for name, path in NAMES.items()}).static_order())


def test_every_room_is_in_the_list_and_says_what_it_holds():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ROOMS)
    for room in ROOMS:
        opening = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf8")))
        assert opening and len(opening) < 240, room


@pytest.mark.parametrize("one", ["evaluation", "labelling", "training"])
def test_the_parts_of_learning_do_not_know_each_other(one):
    others = {f"learning.{part}" for part in ("evaluation", "labelling", "training")} - {f"learning.{one}"}
    for path in FILES:
        if path.parts[:2] == ("learning", one):
            assert not {name for name in imports(path) if name.startswith(tuple(others))}, path
