"""The report in a real Chromium: it sorts, switches, plays, and asks no server for anything."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.evaluation.summary import Kind
from pipeline.report.build import write_report
from tests.helpers.browser import Page, find_chromium
from tests.helpers.scores import (
    save_excerpt,
    save_journal,
    save_summary,
    scored_summary,
)

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium or Chrome")

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b title=\'"\'>song & \u202e'
TRACKS = [HOSTILE, *(f"song {number}" for number in range(6))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    root = tmp_path_factory.mktemp("report")
    kinds: dict[str, Kind] = {"net A": "model", "net B": "model", "mixture": "mixture"}
    for (name, kind), level in zip(kinds.items(), (5, 4, -3), strict=True):
        summary = scored_summary(name, level, TRACKS, kind=kind, seed=len(name) + level)
        save_summary(root / "scores", summary)
    save_excerpt(root / "estimates/excerpts/test/x", HOSTILE, ["net A", "net B"])
    save_journal(root / "training/metrics.jsonl")
    file = write_report(RunConfig(output_dir=root)).page
    with Page(file, root / "profile") as opened:
        yield opened


# The contrast of each kind of text with what lies behind it, by WCAG's formula.
CONTRAST = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      const [, , , alpha = 1] = channels(colour);
      if (alpha === 1 && !colour.startsWith("color(")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !element.getClientRects().length || element.closest("svg")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(style.color), light(behind(element))].sort((x, y) => y - x);
    const name = `${element.tagName}.${element.className} ${style.color} on ${behind(element)}`;
    found[name] = (a + 0.05) / (b + 0.05);
  }
  return found;
})()"""


def _column(page: Page, table: str, column: int) -> list[str]:
    return page.run(
        f"[...document.querySelector('{table}').tBodies[0].rows].map((row) => "
        f"row.cells[{column}].innerText.split('\\n')[0].trim())"
    )


def _numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("\u2212", "-")) for text in texts]


def test_nothing_but_the_page_and_its_pictures_is_loaded_before_a_sound_is_played(
    page: Page,
) -> None:
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    assert outside == []
    kinds = [url.rpartition(".")[2] for url in page.requests if url.startswith("file:")]
    assert sorted(kinds) == ["html"] + ["webp"] * (1 + 4 * 3)
    assert page.problems == []


@pytest.mark.parametrize("width", [390, 0])
def test_axe_finds_nothing_serious(page: Page, width: int) -> None:
    page.be_narrow(width)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    script = resources.files("axe_core_python") / "axe.min.js"
    page.run(script.read_text() + ";0")
    page.run("window.found = null; axe.run().then((result) => { window.found = result; }); 0")
    page.wait_for("window.found !== null")
    found = page.run(
        "found.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html.slice(0, 120))])"
    )
    page.be_narrow(0)
    assert [each for each in found if each[0] in ("serious", "critical")] == []


def test_hostile_names_are_only_text(page: Page) -> None:
    assert page.run("window.hacked") is None
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert HOSTILE in page.run("document.querySelector('#songs').textContent")


def test_a_click_sorts_and_a_second_click_turns_the_order(page: Page) -> None:
    button = "document.querySelectorAll('table.songs thead button')[2]"
    page.run(f"{button}.click()")
    down = _numbers(_column(page, "table.songs", 2))
    assert down == sorted(down, reverse=True)
    page.run(f"{button}.click()")
    assert _numbers(_column(page, "table.songs", 2)) == sorted(down)
    head = "document.querySelectorAll('table.songs thead th')[2].getAttribute('aria-sort')"
    assert page.run(head) == "ascending"


def test_the_keyboard_sorts_too(page: Page) -> None:
    page.run("document.querySelectorAll('table.songs thead button')[0].focus()")
    page.press("Enter")
    names = _column(page, "table.songs", 0)
    assert names[1:] == sorted(names[1:])
    page.press("Space")
    assert _column(page, "table.songs", 0)[0].startswith("song 5")


def test_another_score_is_shown_and_sorted_by(page: Page) -> None:
    before = _column(page, "table.board", 1)
    page.run("document.querySelector('input[value=SIR]').click()")
    after = _column(page, "table.board", 1)
    assert sorted(after) != sorted(before)
    order = _numbers(_column(page, "table.board", 5))
    assert order == sorted(order, reverse=True)
    shown = "[...document.querySelectorAll('#spread table')].filter((f) => f.offsetHeight).length"
    assert page.run(shown) == 1
    assert page.run("document.querySelectorAll('#spread table.spread tbody tr').length") == 10 * 3
    page.run("document.querySelector('input[value=mean]').click()")
    assert _column(page, "table.board", 1) != after
    page.run("document.querySelector('input[value=median]').click()")
    page.run("document.querySelector('input[value=SDR]').click()")
    assert sorted(_column(page, "table.board", 1)) == sorted(before)


def test_every_player_loads_and_one_takes_over_from_the_other(page: Page) -> None:
    assert page.run("[...document.querySelectorAll('audio')].every((a) => a.readyState === 0)")
    page.run("document.querySelectorAll('audio').forEach((a) => a.load())")
    page.run("document.querySelectorAll('audio').forEach((a) => { a.preload = 'auto'; })")
    page.wait_for("[...document.querySelectorAll('audio')].every((a) => a.readyState > 0)")
    lengths = page.run("[...document.querySelectorAll('audio')].map((a) => a.duration)")
    assert len(lengths) == 1 + 4 * 3  # the mixture; four sources of reference and two systems
    assert all(6.9 < length < 7.3 for length in lengths)  # 7 s and the coder's padding
    page.run("document.querySelectorAll('.play')[1].click()")
    page.wait_for("document.querySelectorAll('audio')[1].currentTime > 0.2")
    page.run("document.querySelectorAll('.play')[2].click()")
    page.wait_for("!document.querySelectorAll('audio')[2].paused")
    assert page.run("document.querySelectorAll('audio')[1].paused")
    assert page.run("document.querySelectorAll('audio')[2].currentTime") >= 0.2
    assert page.run("document.querySelectorAll('.play')[2].getAttribute('aria-pressed')") == "true"
    page.run("document.querySelectorAll('.play')[2].click()")


def test_arrow_keys_move_within_a_clip(page: Page) -> None:
    page.wait_for("document.querySelectorAll('audio')[0].readyState > 0")
    page.run("document.querySelectorAll('.view')[0].focus()")
    page.press("ArrowRight")
    page.wait_for("document.querySelectorAll('audio')[0].currentTime > 0.3")


def test_the_page_never_scrolls_sideways_on_a_phone(page: Page) -> None:
    page.be_narrow(390)
    assert page.run("document.documentElement.scrollWidth") <= 390
    heights = page.run("[...document.querySelectorAll('.switch span')].map((s) => s.offsetHeight)")
    assert max(heights) < 40  # each choice is one line
    page.be_narrow(0)


def test_text_is_readable_in_dark_and_in_light(page: Page, tmp_path: Path) -> None:
    for dark in (False, True):
        page.screenshot(tmp_path / "page.png", dark=dark)
        ratios = page.run(CONTRAST)
        assert len(ratios) > 20
        faint = {kind: ratio for kind, ratio in ratios.items() if ratio < 4.5}
        assert faint == {}, "dark" if dark else "light"  # WCAG 2.1, level AA
