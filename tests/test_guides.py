"""Commands that the guides show are commands that there are, options included; the files they name exist."""

import re
import shlex

import pytest
import typer

from routelmt_batch.cli.main import app
from tests.conftest import REPOSITORY

GUIDES = ("README.md", "cluster/README.md", "jobs/README.md")


def commands(guide: str) -> list[str]:
    text = (REPOSITORY / guide).read_text(encoding="utf8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    found = [re.search(r"\broutelmt-batch ([a-z].*)", line) for line in lines]
    return [match.group(1) for match in found if match]


SHOWN = [(guide, command) for guide in GUIDES for command in commands(guide)]


@pytest.mark.parametrize(("guide", "command"), SHOWN)
def test_a_shown_command_is_one(guide, command):
    name, *arguments = shlex.split(re.sub(r" > \S+|'$", "", command), comments=True)
    known = typer.main.get_command(app).commands
    known[name].make_context(name, arguments)
    for argument in arguments:
        if argument.startswith("jobs/"):
            assert (REPOSITORY / argument).exists(), argument


def test_the_guides_show_commands():
    assert {guide for guide, _ in SHOWN} == set(GUIDES)
    assert len(SHOWN) > 12


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide):
    path = REPOSITORY / guide
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
