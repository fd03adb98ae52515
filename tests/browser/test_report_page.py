"""The report in a real browser: it opens from a file, is quiet, fits the window, and its map answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from damage_atlas.report import write_report
from damage_atlas.report.page import visible
from damage_atlas.store import Run
from tests.lib.report.synthetic_run import (
    HOSTILE_ASSET,
    HOSTILE_FILE,
    HOSTILE_LABEL,
    Scene,
    make_run,
    page_path,
    read_report,
)
from tests.support.browser import Browser

pytestmark = pytest.mark.browser

READY = "document.documentElement.dataset.map === 'ready'"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run full of hostile names; everything is tested on it."""
    scene = Scene(
        images=260,
        clusters=8,
        labels=("crack", "sound", HOSTILE_LABEL),
        names={0: HOSTILE_FILE, 1: "x/'q\" &\n\u202e.jpg"},
        asset_names={0: HOSTILE_ASSET},
    )
    made = make_run(tmp_path_factory.mktemp("page"), scene)
    write_report(made)
    return made


@pytest.fixture
def page(run: Run, browser: Browser) -> Iterator[Page]:
    opened = browser.open(page_path(run).as_uri())
    opened.page.wait_for_function(READY)
    yield opened.page
    assert (opened.errors, opened.requests) == ([], [])
    opened.page.context.close()


def point_at(page: Page, index: int, kind: str = "cluster") -> None:
    """Move the mouse to point ``index`` of the map, by the same arithmetic as the page's."""
    canvas = page.locator(f".plot[data-kind={kind}] canvas")
    canvas.scroll_into_view_if_needed()
    x, y = page.evaluate(
        """([index, kind]) => {
            const data = JSON.parse(document.getElementById("map-data").textContent);
            const column = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
            const box = document.querySelector(`.plot[data-kind=${kind}] canvas`).getBoundingClientRect();
            const scale = Math.min(box.width, box.height) * 0.93 / 65535;
            return [box.left + box.width / 2 + (column(data.x)[index] - 32767.5) * scale,
                    box.top + box.height / 2 - (column(data.y)[index] - 32767.5) * scale];
        }""",
        [index, kind],
    )
    page.mouse.move(x + 40, y + 40)
    page.mouse.move(x, y)
    # A busy machine draws late.
    page.locator("#tip").wait_for(state="visible", timeout=10_000)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_opens_quietly_and_fits(run: Run, browser: Browser, width: int, dark: bool) -> None:
    opened = browser.open(page_path(run).as_uri(), width=width, dark=dark)
    opened.page.wait_for_function(READY)
    opened.page.locator("#made summary").click()
    assert opened.errors == [] and opened.requests == []
    assert opened.overflow_px() == 0
    assert opened.page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    opened.page.context.close()


@pytest.mark.parametrize(
    "scene",
    [
        Scene(images=1, clusters=0, assets=0, quarantined=0, duplicates=0, previous=False),
        Scene(images=0, clusters=0, assets=0, quarantined=2, duplicates=0, previous=False),
        Scene(images=40, clusters=0, labelled=False, quarantined=100),
        Scene(images=700, clusters=60, hover_pictures=30),
        Scene(images=400, clusters=9, places=9, hover_pictures=30),
    ],
    ids=["one image", "no images", "all noise, no labels", "60 clusters", "places"],
)
def test_edge_cases_open_quietly(scene: Scene, browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path, scene)
    write_report(run)
    for width in (1280, 400):
        opened = browser.open(page_path(run).as_uri(), width=width)
        assert (opened.errors, opened.requests, opened.overflow_px()) == ([], [], 0)
        opened.page.context.close()


def test_hover_shows_the_picture_and_its_facts(page: Page) -> None:
    name = page.evaluate("JSON.parse(document.getElementById('map-data').textContent).names[0]")
    point_at(page, 0)
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.locator(".thumb").is_visible()
    assert name in tip.inner_text()
    # A thumbnail that was not drawn would be one flat transparent square.
    shades = page.evaluate(
        """() => { const canvas = document.querySelector("#tip .thumb");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(data.filter((_, i) => i % 4 === 0)).size; }"""
    )
    assert shades > 20
    assert page.locator(".plot[data-kind=label] .ring").is_visible(), "the other map points at the same image"


def test_tap_pins_and_leads_to_the_cluster(page: Page) -> None:
    point_at(page, 0)
    page.mouse.down()
    page.mouse.up()
    page.locator("#tip a").click()
    assert "#cluster-" in page.url
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_legend_isolates_and_everything_comes_back(page: Page) -> None:
    canvas = page.locator(".plot[data-kind=cluster] canvas")
    whole = canvas.screenshot()
    entry = page.locator(".plot[data-kind=cluster] .legend button").nth(2)
    entry.click()
    page.wait_for_timeout(120)
    assert entry.get_attribute("aria-pressed") == "true" and canvas.screenshot() != whole
    page.locator("#everything").click()
    page.mouse.move(1, 1)
    page.wait_for_timeout(300)
    assert entry.get_attribute("aria-pressed") == "false" and canvas.screenshot() == whole


def test_zoom_by_button_wheel_and_key(page: Page) -> None:
    canvas = page.locator(".plot[data-kind=cluster] canvas")
    canvas.scroll_into_view_if_needed()
    seen = {canvas.screenshot()}
    box = canvas.bounding_box()
    assert box is not None
    page.locator(".plot[data-kind=cluster] [data-zoom=in]").click()
    page.wait_for_timeout(250)
    seen.add(canvas.screenshot())
    page.mouse.click(box["x"] + 5, box["y"] + 5)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(250)
    seen.add(canvas.screenshot())
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(250)
    seen.add(canvas.screenshot())
    assert len(seen) == 4


def test_wheel_scrolls_the_page_until_the_map_is_clicked(page: Page) -> None:
    canvas = page.locator(".plot[data-kind=cluster] canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 200)
    page.wait_for_function("before => scrollY > before", arg=before)


def test_find_marks_files(page: Page) -> None:
    page.fill("#find", "onerror")
    assert page.locator("#found").inner_text() == "1 found"


def test_picture_opens_large_and_leads_to_the_map(page: Page) -> None:
    page.locator(".card .shot").first.click()
    assert page.locator("#large .pair img").count() == 2
    page.locator("#large [data-do=locate]").click()
    page.wait_for_timeout(200)
    assert page.locator(".plot[data-kind=cluster] .ring").is_visible()


def test_hostile_names_are_text(page: Page) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    index = page.evaluate(
        "JSON.parse(document.getElementById('map-data').textContent).names.findIndex((n) => n.includes('onerror'))"
    )
    point_at(page, index)
    assert HOSTILE_FILE in page.locator("#tip").inner_text()
    assert page.locator("#tip .words img").count() == 0
    text = page.locator("body").inner_text()
    assert HOSTILE_LABEL in text and visible(HOSTILE_ASSET) in text
    assert page.locator("img[onerror], i[onmouseover]").count() == 0 and dialogs == []


def test_phone_switches_between_the_maps(run: Run, browser: Browser) -> None:
    opened = browser.open(page_path(run).as_uri(), width=400)
    page = opened.page
    page.wait_for_function(READY)
    assert not page.locator(".plot[data-kind=label]").is_visible()
    page.locator(".switch [data-show=label]").click()
    assert page.locator(".plot[data-kind=label]").is_visible()
    point_at(page, 0, "label")
    assert page.locator("#tip .thumb").is_visible()
    assert opened.errors == []
    page.context.close()


def test_page_states_what_the_json_says(run: Run, page: Page) -> None:
    document = read_report(run)

    def shown(selector: str) -> list[str]:
        return page.locator(selector).all_text_contents()

    facts = {
        name: shown(f"[data-fact={name}]")[0].strip()
        for name in ("archive", "version", "delivery", "run_id", "images", "clusters", "quarantined", "new_clusters")
    }
    assert facts == {
        "archive": document["archive"],
        "version": str(document["version"]),
        "delivery": document["delivery"],
        "run_id": document["run_id"],
        "images": f"{document['images']:,}",
        "clusters": str(len(document["clusters"])),
        "quarantined": str(document["ledger"]["quarantined"]),
        "new_clusters": str(sum(c["status"] == "born" for c in document["changes"])),
    }
    assert shown("[data-fact=finding]") == [visible(document["finding"])]
    for word in ("listed", "embedded", "reused", "duplicate", "quarantined", "pending"):
        assert shown(f"[data-ledger={word}]") == [f"{document['ledger'][word]:,}"]
    changes = page.locator("[data-change]").evaluate_all("all => all.map((e) => e.dataset.change)")
    assert changes == [f"{c['cluster_id']} {c['status']}" for c in document["changes"]]
    sizes = page.locator(".card [data-size]").all_text_contents()
    assert sizes == [f"{c['size']:,}" for c in document["clusters"]]
    cells = page.locator("[data-cell]").evaluate_all("all => all.map((e) => [e.dataset.cell, e.textContent])")
    for place, number in cells:
        row, cluster = place.split()
        expected = document["classes"][int(row)]["clusters"].get(cluster, 0)
        assert number == (f"{expected:,}" if expected else "·")
    files = shown("#ledger details:first-of-type td.file")
    assert files == [visible(bad["file"]) for bad in document["quarantined"]]
    ranking = page.locator(".ranking tbody th").all_text_contents()
    assert ranking == [visible(asset["asset_id"]) for asset in document["assets"]]


def test_moves_and_courses_agree_with_the_json(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path, Scene(images=300, clusters=8, assets=5, places=9, hover_pictures=30))
    write_report(run)
    document = read_report(run)
    opened = browser.open(page_path(run).as_uri(), width=400)
    page = opened.page
    moves = page.locator("#time [data-move]").evaluate_all("all => all.map((e) => e.dataset.move)")
    assert moves == [row["kind"] for row in document["transitions"] if row["kind"] != "steady"]
    assert moves[0] == "progression" and page.locator("#time [data-move]").first.is_visible()
    matrix = page.locator("#time .matrix tbody tr")
    assert matrix.count() == sum(any(course["looks"]) for course in document["over_time"]) + 1
    assert matrix.last.inner_text().split()[1:] == [f"{n:,}" for n in document["looks_of_period"]]
    bars = page.locator("#assets .bars")
    courses = {course["asset_id"]: course["inspections"] for course in document["asset_courses"]}
    for i, asset in enumerate(document["assets"]):
        drawn = bars.nth(i).locator("g").evaluate_all("all => all.map((g) => g.querySelectorAll('rect').length)")
        assert drawn == [len(seen["grades"]) for seen in courses[asset["asset_id"]]]
        heights = (
            bars.nth(i).locator("g:first-of-type rect").evaluate_all("all => all.map((r) => +r.getAttribute('height'))")
        )
        assert sum(heights) == pytest.approx(30, abs=0.05)
    assert opened.errors == [] and opened.overflow_px() == 0
    opened.page.context.close()


def test_only_the_latest_delivery(page: Page) -> None:
    canvas = page.locator(".plot[data-kind=cluster] canvas")
    whole = canvas.screenshot()
    page.locator("#only").check()
    page.wait_for_timeout(120)
    assert canvas.screenshot() != whole
