"""Control files that are JSON of another shape are damaged, and no traceback."""

import pytest

from routelmt_batch.errors import WorkChanged
from routelmt_batch.store.folder import Folder


@pytest.mark.parametrize("text", ['{"shards": [{"x": 1}]}', '{"shards": {}}', '{"shards": [1]}', "[]"])
def test_a_success_file_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / "_SUCCESS").write_text(text)
    with pytest.raises(WorkChanged, match="_SUCCESS: empty or damaged"):
        Folder.at(str(tmp_path)).outputs()


@pytest.mark.parametrize("text", ["{}", '{"command": "run", "shards": 1, "limit": null}', "[]"])
def test_a_manifest_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job" / "manifest.json").write_text(text)
    with pytest.raises(WorkChanged, match=r"manifest\.json: empty or damaged"):
        Folder.at(str(tmp_path)).manifest_of_job()
