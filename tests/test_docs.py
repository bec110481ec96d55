"""The pages that are written from the code are up to date, the site lists every page, the README is short."""

import re
import runpy

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = DOCS / "pages"


def test_what_is_written_from_the_code_is_up_to_date():
    for name, write in runpy.run_path(str(DOCS / "references.py"))["WRITTEN"].items():
        assert (PAGES / name).read_text(encoding="utf8") == write(), "run `make docs`"


def test_the_site_has_every_page():
    listed = re.findall(r"^  - (\S+\.md)$", (DOCS / "mkdocs.yml").read_text(encoding="utf8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES.glob("*.md"))


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf8").split()) <= 900
