"""Commands that the guides show are commands that there are, options included; links, and files that they
name, lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from routelmt_batch.cli.main import app
from tests.conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs" / "pages").glob("*.md"))
READMES = [
    REPOSITORY / name for name in ("README.md", "jobs/README.md", "cluster/README.md", "jobs/demo/README.md")
]
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
FOLDERS = ("jobs", "cluster", "tests", "docs", "routelmt_batch")


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def commands(guide: Path) -> list[str]:
    blocks = BLOCKS.findall(guide.read_text(encoding="utf8"))
    shown = "".join(block for language, block in blocks if language in ("", "sh"))
    lines = shown.replace("\\\n", " ").splitlines()
    found = [re.search(r"\broutelmt-batch ([a-z].*)", line) for line in lines]
    return [match.group(1) for match in found if match]


GUIDES = [guide for guide in (REPOSITORY / "README.md", *PAGES) if commands(guide)]
SHOWN = [(name(guide), command) for guide in GUIDES for command in commands(guide)]


@pytest.mark.parametrize(("guide", "command"), SHOWN)
def test_a_shown_command_is_one(guide, command):
    first, *arguments = shlex.split(re.sub(r" > \S+|'$", "", command), comments=True)
    known = typer.main.get_command(app).commands
    known[first].make_context(first, arguments)
    for argument in arguments:
        if argument.startswith("jobs/"):
            assert (REPOSITORY / argument).exists(), argument


def test_the_guides_show_commands():
    shown = {Path(guide).stem for guide, _ in SHOWN}
    assert {"README", "index", "first-job", "operators-guide", "outputs", "learning", "clusters"} <= shown
    assert {command.split()[0] for _, command in SHOWN} == typer.main.get_command(app).commands.keys()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as Markdown's table of contents makes them."""
    text = BLOCKS.sub("", page.read_text(encoding="utf8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(BLOCKS.sub("", page.read_text(encoding="utf8"))):
        if target.startswith("https://"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"
        assert page not in PAGES or linked.resolve().is_relative_to(PAGES[0].parent), (
            f"{target}: not on the site"
        )


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=name)
def test_files_that_a_page_names_exist(page):
    """In code, whole: `jobs/nightly.yaml`, or in a block."""
    text = page.read_text(encoding="utf8")
    code = re.findall(r"`([^`\n]+)`", BLOCKS.sub("", text)) + [block for _, block in BLOCKS.findall(text)]
    for word in " ".join(code).split():
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", word):
            assert (REPOSITORY / word).exists(), word
