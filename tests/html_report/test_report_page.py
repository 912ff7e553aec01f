"""The page in a real browser, without a network: drawn, readable, quiet."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from browser_cases import chromium
from playwright.sync_api import Browser, Page, expect
from report_cases import HOSTILE, NOWHERE, RUN

from export.web.server import PAGE
from fedkron.html_report import page, write_page
from fedkron.runlog import RunLog

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

# Each chart is drawn when it is first seen.
SCROLL = """async () => {
  for (let y = 0; y < document.body.scrollHeight; y += 500) {
    scrollTo(0, y);
    await new Promise((done) => setTimeout(done, 20));
  }
}"""
DRAWN = """() => {
  const charts = [...document.querySelectorAll(".chart")].filter((chart) => chart.checkVisibility());
  return charts.map((chart) => {
    const place = chart.querySelector(".main-svg")?.getBoundingClientRect();
    return [place?.width ?? 0, place?.height ?? 0, chart.querySelectorAll("path").length];
  });
}"""


@dataclass
class Heard:
    """What a page said and asked for."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder) as launched:
        yield launched
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, eventful: RunLog, private: RunLog) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    begun = replace(eventful, rounds=(), transfers=(), outcome="failed", error=NOWHERE)
    pages = {"one": [eventful], "both": [eventful, private], "failed": [begun]}
    for name, logs in pages.items():
        write_page(logs, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in pages}


def opened(browser: Browser, file: Path, heard: Heard, **options: object) -> Page:
    context = browser.new_context(offline=True, **options)
    shown = context.new_page()
    shown.on("console", lambda message: heard.said.append(message.text))
    shown.on("pageerror", lambda error: heard.said.append(str(error)))
    shown.on("dialog", lambda dialog: heard.said.append(dialog.message))
    shown.on("request", lambda request: heard.asked.append(request.url))
    shown.goto(file.as_uri())
    shown.evaluate(SCROLL)
    return shown


@pytest.mark.parametrize(
    ("name", "screen", "scheme"),
    [("one", DESKTOP, "dark"), ("one", PHONE, "light"), ("both", DESKTOP, "light")],
)
def test_all_charts_are_drawn_offline_and_without_a_word(
    browser: Browser, files: dict[str, Path], name: str, screen: dict[str, int], scheme: str
) -> None:
    heard = Heard()
    shown = opened(browser, files[name], heard, viewport=screen, color_scheme=scheme)
    drawn = shown.evaluate(DRAWN)
    assert len(drawn) == {"one": 8, "both": 3}[name]
    assert all(width > 250 and height > 150 and paths > 3 for width, height, paths in drawn)
    assert max(width for width, *_ in drawn) < screen["width"]
    assert shown.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    assert heard.said == []
    assert [url for url in heard.asked if not url.startswith(("data:", "blob:"))] == [files[name].as_uri()]
    shown.context.close()


def test_the_policy_forbids_what_a_stranger_would_add(browser: Browser, files: dict[str, Path]) -> None:
    heard = Heard()
    shown = opened(browser, files["one"], heard)
    shown.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'alert(3)' }))"
    )
    shown.evaluate("fetch('http://127.0.0.1:9/').catch(() => null)")
    assert len([said for said in heard.said if "Content Security Policy" in said]) >= 2
    assert "3" not in heard.said
    shown.context.close()


def test_names_and_reasons_are_shown_as_they_are(browser: Browser, files: dict[str, Path]) -> None:
    heard = Heard()
    shown = opened(browser, files["one"], heard)
    assert shown.locator("h1").inner_text().startswith(RUN)
    expect(shown.get_by_role("rowheader", name=HOSTILE, exact=True).first).to_be_visible()
    expect(shown.get_by_role("cell", name=NOWHERE).first).to_be_visible()
    legend = shown.locator(".chart").first.locator(".legendtext").all_text_contents()
    assert any(text.startswith("<img src=x") for text in legend)
    assert shown.locator(".chart img, .chart a, .chart b, main img, main script").count() == 0
    assert heard.said == []
    shown.context.close()


def test_light_and_dark_change_places_for_page_and_charts(browser: Browser, files: dict[str, Path]) -> None:
    heard = Heard()
    shown = opened(browser, files["one"], heard, color_scheme="light")
    paper = "getComputedStyle(document.querySelector('.chart .main-svg')).backgroundColor"
    box = "getComputedStyle(document.querySelector('figure')).backgroundColor"
    assert shown.evaluate(paper) == shown.evaluate(box) == "rgb(255, 255, 255)"
    shown.get_by_role("button", name="Dark").click()
    assert shown.evaluate(paper) == shown.evaluate(box) == "rgb(22, 25, 31)"
    shown.get_by_role("button", name="Light").click()
    assert shown.evaluate(paper) == "rgb(255, 255, 255)"
    shown.emulate_media(color_scheme="dark")
    expect(shown.get_by_role("button", name="Light")).to_be_visible()
    assert shown.evaluate(paper) == "rgb(22, 25, 31)"
    shown.context.close()


def test_a_dark_page_is_printed_light_and_without_buttons(browser: Browser, files: dict[str, Path]) -> None:
    heard = Heard()
    shown = opened(browser, files["one"], heard, color_scheme="dark")
    charts = """[...document.querySelectorAll(".chart .main-svg:first-child")]
                .map((svg) => getComputedStyle(svg).backgroundColor)"""
    shown.evaluate(f"() => addEventListener('beforeprint', () => {{ window.printed = {charts} }})")
    paper = shown.pdf(print_background=True)
    assert paper.startswith(b"%PDF-")
    assert len(paper) > 50_000
    assert shown.evaluate("window.printed") == ["rgb(255, 255, 255)"] * 8
    assert set(shown.evaluate(charts)) == {"rgb(22, 25, 31)"}  # on the screen it is dark again
    shown.emulate_media(media="print", color_scheme="dark")
    assert not shown.get_by_role("button").is_visible()
    assert shown.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert heard.said == []
    shown.context.close()


def test_each_run_of_a_comparison_is_drawn_when_it_is_opened(
    browser: Browser, files: dict[str, Path]
) -> None:
    heard = Heard()
    shown = opened(browser, files["both"], heard, viewport=PHONE)
    assert len(shown.evaluate(DRAWN)) == 3
    shown.locator("summary", has_text=re.compile(r"^private")).click()
    shown.evaluate(SCROLL)
    drawn = shown.evaluate(DRAWN)
    assert len(drawn) == 3 + 8
    assert all(width > 250 for width, *_ in drawn)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert heard.said == []
    shown.context.close()


def test_there_is_nothing_that_axe_finds_inaccessible(browser: Browser, files: dict[str, Path]) -> None:
    shown = opened(browser, files["one"], Heard(), bypass_csp=True, reduced_motion="reduce")
    shown.add_script_tag(path=PAGE / "node_modules/axe-core/axe.min.js")
    for scheme in "light", "dark":
        shown.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = shown.evaluate("axe.run({ exclude: [['.main-svg']] })")  # what is in there has a table, too
        assert "color-contrast" in {rule["id"] for rule in found["passes"]}
        assert [(rule["id"], rule["help"]) for rule in found["violations"]] == []
    shown.context.close()


def test_a_run_that_failed_before_its_first_round_has_a_page(
    browser: Browser, files: dict[str, Path]
) -> None:
    heard = Heard()
    shown = opened(browser, files["failed"], heard)
    expect(shown.get_by_role("alert")).to_have_text(f"The run failed: {NOWHERE}")
    assert shown.locator(".chart").count() == 0
    assert heard.said == []
    shown.context.close()


def test_the_same_run_has_the_same_page_and_ten_cost_little_more_than_one(eventful: RunLog) -> None:
    one, again, ten = page([eventful]), page([eventful]), page([eventful] * 10)
    assert one == again
    assert len(ten) < 1.2 * len(one)
    assert len(one) < 6_000_000
    outside = re.sub(r"<script>.*?</script>", "", one, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", outside)
