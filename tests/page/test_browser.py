"""The page in headless Chromium: opened from disk, clicked through, sorted, filtered, printed."""

import re
import shutil
import time

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect, sync_playwright

from routelmt_batch.page.comparison import compare
from routelmt_batch.page.page import write_page
from routelmt_batch.page.shard_table import lines
from routelmt_batch.spec import Page
from tests.page.conftest import ODD_NAME, SCRIPT, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
OPENS_WITHIN_S = 3.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def tab(chromium, request):
    """A tab that must meet no error, ask for nothing but the file, and run no script of the corpus."""
    tab = chromium.new_page(color_scheme=request.param)
    tab.set_default_timeout(20_000)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    assert tab.evaluate("window.ran") is None
    assert said == [] and len(set(asked)) == 1 and asked[0].startswith("file://")
    tab.close()


def names(tab: Tab) -> list[str]:
    return tab.locator("#shard-table tbody th").all_inner_texts()


def column(tab: Tab, name: str) -> list[str]:
    heads = [text.split(" ")[0] for text in tab.locator("#shard-table thead th").all_inner_texts()]
    return tab.locator(f"#shard-table tbody tr > :nth-child({heads.index(name) + 1})").all_inner_texts()


def test_an_auditor_clicks_through(finished, tab):
    write_page(finished, Page(rows=5))
    tab.goto(finished.folder.page.path.as_uri())
    expect(tab.get_by_role("heading", name="test", exact=True)).to_be_visible()
    assert tab.locator("#glance .figure").count() == 10
    assert tab.locator("svg").count() == 2

    assert names(tab)[0] == "sub/c.parquet", "what stands out comes first"
    rows = tab.get_by_role("button", name="rows")
    rows.click()
    expect(tab.locator("th[aria-sort=descending]")).to_have_text("rows")
    tab.get_by_role("button", name="shard", exact=True).click()
    assert names(tab) == sorted(names(tab)) and len(names(tab)) == 4
    tab.get_by_role("button", name="shard", exact=True).click()
    assert names(tab) == sorted(names(tab), reverse=True)

    tab.get_by_label("Show").select_option("failures")
    assert names(tab) == ["sub/c.parquet"]
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator("#count")).to_have_text("Shards 1 to 4 of 4")
    tab.get_by_label("Name contains").fill("ODD")
    assert names(tab) == [ODD_NAME]
    tab.locator("#shard-table").get_by_role("link", name=ODD_NAME).click()
    expect(tab.get_by_role("heading", name=ODD_NAME)).to_be_focused()
    expect(tab.locator("#overview")).to_be_hidden()
    tab.go_back()
    expect(tab.locator("#overview")).to_be_visible()


def test_a_shards_view_shows_its_rows_as_they_are(finished, tab):
    write_page(finished, Page(rows=1000))
    tab.goto(finished.folder.page.path.as_uri())
    tab.locator("#shard-table").get_by_role("link", name="sub/c.parquet").click()
    expect(tab.locator("#shard .mark")).to_have_text("failures")
    expect(tab.locator("#shard .rows")).to_have_count(3)
    failed = tab.locator("#shard .scroll", has_text="Failed, quarantined and fallback")
    expect(failed).to_contain_text(f"Hello {SCRIPT} 2")
    expect(failed).to_contain_text("failed, engine_error")
    both = tab.locator("#shard .rows tr", has_text="small of").filter(has_text="large of")
    assert both.count()
    tab.get_by_role("link", name="Next shard").click()
    expect(tab.locator("#shard-title")).not_to_have_text("sub/c.parquet")
    tab.get_by_role("link", name="All shards").click()
    expect(tab.locator("#shard")).to_be_hidden()


def test_all_of_it_works_by_keyboard(finished, tab):
    tab.goto(finished.folder.page.path.as_uri())
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the report")).to_be_focused()
    tab.get_by_label("Name contains").focus()
    tab.keyboard.type("sub")
    assert names(tab) == ["sub/c.parquet"]
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == "mean gain":
            break
    tab.keyboard.press("Enter")
    expect(tab.locator("th[aria-sort=descending]")).to_have_text("mean gain")
    tab.keyboard.press("Space")
    expect(tab.locator("th[aria-sort=ascending]")).to_have_text("mean gain")
    tab.locator("#shard-table tbody a").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#shard-title")).to_be_focused()


def test_it_prints_dark_on_light_with_the_numbers_open(finished, tab):
    tab.goto(finished.folder.page.path.as_uri())
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    expect(tab.locator(".controls")).to_be_hidden()
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0


# The contrast of each text with what is behind it, by WCAG 2.2's definition, and what it stands on.
CONTRASTS = """
() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *:not(script, style, noscript)")].filter(
    (one) => one.getClientRects().length && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()),
  );
  return texts.map((one) => {
    const style = getComputedStyle(one);
    const color = rgb(one.namespaceURI.endsWith("svg") ? style.fill : style.color).slice(0, 3);
    const [light, dark] = [luminance(color), luminance(behind(one))].sort((a, b) => b - a);
    return { text: one.textContent.trim().slice(0, 40), contrast: (light + 0.05) / (dark + 0.05) };
  });
}
"""


def test_every_text_can_be_read_in_light_and_in_dark(finished, tab):
    """4.5 to 1: WCAG's success criterion 1.4.3, level AA."""
    write_page(finished, Page(rows=5))
    tab.goto(f"{finished.folder.page.path.as_uri()}#shard=sub/c.parquet")
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [one for one in found if one["contrast"] < 4.5] == []
    dark = tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red, *_ = map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert red < 60 if dark else red > 220


def test_a_comparison_is_on_the_page(finished, audited, engine, tmp_path, tab):
    settings = {"budget__fraction": "0.5", "output__uri": str(tmp_path / "other"), "name": "other night"}
    other = run(audited(**settings), engine)
    compared = compare(finished, other, 5)
    write_page(finished, finished.spec.page, compared)
    tab.goto(finished.folder.page.path.as_uri())
    against = tab.locator("#against")
    expect(against).to_contain_text("Against other night")
    expect(against).to_contain_text(f"{compared['routed']['different']} were routed differently")
    assert compared["routed"]["different"] > 10
    against.locator("summary", has_text="differ").click()
    budget = against.locator("tr", has=tab.get_by_role("rowheader", name="budget.fraction"))
    expect(budget).to_contain_text("0.3")
    expect(budget).to_contain_text("0.5")


def test_ten_thousand_shards_open_within_three_seconds(ten_thousand, tab):
    write_page(ten_thousand, ten_thousand.spec.page)
    started = time.monotonic()
    tab.goto(ten_thousand.folder.page.path.as_uri())
    expect(tab.locator("#count")).to_have_text("Shards 1 to 50 of 10,000")
    assert time.monotonic() - started < OPENS_WITHIN_S
    tab.get_by_role("button", name="rows").click()
    most = [f"{line['rows']:,}" for line in sorted(lines(ten_thousand), key=lambda line: -line["rows"])]
    assert column(tab, "rows") == most[:50]
    tab.get_by_role("button", name="Next").click()
    assert column(tab, "rows") == most[50:100]
    tab.get_by_label("Name contains").fill("part-0777")
    expect(tab.locator("#count")).to_have_text("Shards 1 to 10 of 10 (10,000 in all)")
    tab.get_by_role("link", name="part-07770.parquet").click()
    expect(tab.locator("#shard")).to_contain_text("The rows of this shard are not in this page")
