"""What a job writes is its owner's alone, unless the folder that it writes into says otherwise."""

import os
import stat
from pathlib import Path

import pytest

from routelmt_batch.engines.session import _to_file
from routelmt_batch.files.write import write_text


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """The permissions of all files and of all folders below a folder, itself included."""
    paths = [folder, *folder.rglob("*")]
    return tuple(
        {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir() is is_folder}
        for is_folder in (False, True)
    )


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_job_s_output_is_its_owner_s_alone(invoke, make_spec, tmp_path):
    assert invoke("run", make_spec()).exit_code == 0
    assert modes(tmp_path / "out") == ({0o600}, {0o700})


@pytest.mark.parametrize(
    ("folder", "files", "folders"), [(0o755, 0o644, 0o755), (0o750, 0o640, 0o750), (0o700, 0o600, 0o700)]
)
def test_a_folder_that_was_made_before_says_who_may_read(invoke, make_spec, tmp_path, folder, files, folders):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(folder)
    assert invoke("run", make_spec()).exit_code == 0
    assert modes(tmp_path / "out") == ({files}, {folders})


def test_the_folder_gives_no_more_than_the_umask_allows(tmp_path):
    os.umask(0o077)
    tmp_path.chmod(0o777)
    write_text(tmp_path / "sub/file", "text", "test")
    assert modes(tmp_path / "sub") == ({0o600}, {0o700})


def test_a_log_follows_its_folder(tmp_path):
    (tmp_path / "logs").mkdir(0o700)
    with _to_file(tmp_path / "logs/driver.log"):
        os.write(2, b"a line")
    assert modes(tmp_path / "logs") == ({0o600}, {0o700})
