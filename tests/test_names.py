"""Names with control characters do nothing to a terminal: they are shown escaped."""

import io
import os
import subprocess

import pyarrow.parquet as pq
import pytest
from rich.table import Table

from routelmt_batch.names import one_line, quoted, visible
from routelmt_batch.progress import Bars, SafeConsole
from tests.conftest import write_shard

EVIL = "a\x1b]0;owned\x07\x1b[2J\nscore: 9/9 rows\r\x9b1m\u202e.parquet"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\nscore: 9/9 rows\r\x9b1m\u202e.parquet"


def test_what_is_not_printable_is_escaped():
    assert one_line(EVIL) == SHOWN
    assert visible(EVIL) == SHOWN.replace(r"\n", "\n")
    assert one_line("größe, 大きさ, über/é.parquet") == "größe, 大きさ, über/é.parquet"
    assert one_line("lone \udcff") == r"lone \udcff"


def test_a_name_in_a_command_is_what_the_shell_passes_on():
    for name in ("plain.parquet", "a b's.parquet", EVIL, "back\\slash\n'quote' über.parquet"):
        command = ["bash", "-c", f"printf %s {quoted(name)}"]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        assert subprocess.run(command, capture_output=True, env=environment).stdout.decode() == name
        assert quoted(name).isprintable()


def test_messages_and_tables_have_no_control_characters():
    file = io.StringIO()
    console = SafeConsole(file=file, width=200, force_terminal=False)
    Bars(console).warn(EVIL)
    table = Table(EVIL)
    table.add_row(EVIL)
    console.print(table)
    assert not [mark for mark in file.getvalue() if mark != "\n" and not mark.isprintable()]
    assert file.getvalue().count(r"\x1b]0;owned\x07\x1b[2J") == 3


@pytest.mark.parametrize("fault", ["unreadable", "no column", "changed"])
def test_a_shard_s_name_is_one_line_of_a_message(invoke, make_spec, tmp_path, fault):
    corpus = tmp_path / "evil"
    shard = write_shard(corpus / EVIL, ["A cat.", "A dog."])
    write_shard(corpus / "b.parquet", ["A tree."])
    spec = make_spec(input__uri=str(corpus))
    if fault == "unreadable":
        shard.write_bytes(b"PAR1 no")
    elif fault == "no column":
        pq.write_table(pq.read_table(shard).drop_columns(["text"]), shard)
    else:
        assert invoke("run", spec).exit_code == 0
        write_shard(shard, ["Another cat."])
        (tmp_path / "out/_SUCCESS").unlink()
    answer = invoke("run", spec)
    assert answer.exit_code == (3 if fault == "unreadable" else 2), answer.output
    assert SHOWN in answer.stderr.replace(r"\\", "\\")
    assert "\nscore: 9/9" not in answer.output and "\x1b" not in answer.output
