"""The wheel, built without a network and installed in a fresh environment, as docs/pages/install.md says.

That environment sees the pinned dependencies of the environment under test, but not its routelmt_batch.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from routelmt_batch import __version__
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
PACKAGE = REPOSITORY / "routelmt_batch"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "routelmt_batch")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def answer(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: object, cwd: Path) -> None:
    answer(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no earlier build's files get into it and the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=folder)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of the fresh environment."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    # Before the pins can be seen: among them pip would find this checkout's editable install.
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # The editable install works by a .pth file of its own, which Python does not read from such a folder.
    (site / "pins.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def test_the_documented_name_is_the_wheels(wheel):
    assert wheel.name in (REPOSITORY / "docs/pages/install.md").read_text(encoding="utf8")


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.split("/")[0].endswith("-info")
        }
    assert packed == {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in files}


def test_the_fresh_environment_uses_the_wheel(installed, tmp_path):
    found = answer(installed / "python", "-c", "import routelmt_batch as r; print(r.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(installed.parent / "lib")
    assert answer(installed / "routelmt-batch", "--version", cwd=tmp_path).split()[-1] == __version__


def test_its_commands_work_outside_the_repository(installed, tmp_path, make_spec):
    command = installed / "routelmt-batch"
    answer(command, "init", "--kind", "label", "label.yaml", cwd=tmp_path)
    assert (tmp_path / "label.yaml").read_bytes() == (PACKAGE / "cli/starters/label.yaml").read_bytes()
    assert "71 rows in 4 shards" in answer(command, "run", make_spec(), "--dry-run", cwd=tmp_path)
    assert "vLLM" in answer(command, "doctor", cwd=tmp_path)
