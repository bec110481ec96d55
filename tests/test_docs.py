"""The pages that are written from the code are up to date, the site lists every page, the README is short."""

import re
import runpy

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = DOCS / "pages"


def test_the_spec_reference_is_what_its_script_writes():
    written = runpy.run_path(str(DOCS / "spec_reference.py"))["page"]()
    shown = (PAGES / "spec-reference.md").read_text(encoding="utf8")
    assert shown == written, "run `python docs/spec_reference.py`"


def test_the_site_has_every_page():
    listed = re.findall(r"^  - (\S+\.md)$", (DOCS / "mkdocs.yml").read_text(encoding="utf8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES.glob("*.md"))


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf8").split()) <= 900
