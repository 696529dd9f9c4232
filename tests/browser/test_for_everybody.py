"""The pages for a keyboard, a phone, the dark, and a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.watched import END, Watched, expect

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

# The least contrast of text to what lies behind it, by WCAG 2; colours are read back from a canvas, so that every
# notation will do, and translucent ones are laid over each other.
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const found = [];
  for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode();) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest(".unseen, .skip, :disabled, select")) continue;
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const ground = over(behind);
    const ink = over([...behind, getComputedStyle(element).color]);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), element.className || element.tagName, text.slice(0, 30)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""

UNNAMED = """() => [...document.querySelectorAll(
    "button, input, select, textarea, summary, a, [role=button], [role=slider], [role=img]")]
  .filter((part) => part.checkVisibility() && part.ariaHidden !== "true")
  .filter((part) => !(part.ariaLabel || part.labels?.[0]?.textContent.trim() || part.textContent.trim()))
  .map((part) => part.outerHTML.slice(0, 80))"""


def full(at: Watched) -> Watched:
    """The playground with as much on it as may be."""
    at.find("#compare").check()
    at.find("#other").select_option("experts")
    at.find("#experts").check()
    at.write("Once upon a time, in-a-very-long-word-that-does-not-end-" + "x" * 60, tokens=40, temperature=1.5)
    expect(at.find(".gloss").first).to_be_visible()
    at.find("[data-index='3']").first.click()
    expect(at.find("#alternatives")).to_be_visible()
    return at


def watching(at: Watched) -> Watched:
    """The live page with a mixture on it."""
    at.find("#run").select_option("experts")
    expect(at.find("#expert-charts canvas")).to_be_visible()
    return at


def learning(at: Watched) -> Watched:
    """The learner's page with all that a learner did."""
    at.find("#run").select_option("learner")
    expect(at.find("#curves canvas")).to_be_visible()
    expect(at.find(".cycle").first).to_be_visible()
    return at


PAGES: dict[str, Callable[[Watched], Watched]] = {"/": full, "/live": watching, "/learn": learning}


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_wider_than_a_phone(visit: Visit, path: str) -> None:
    at = PAGES[path](visit(path, **PHONE))
    assert at.page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [part.bounding_box() for part in at.find("button:visible, select:visible, #alternatives").all()]
    assert boxes and all(box and box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_every_text_can_be_read(visit: Visit, path: str, scheme: Any) -> None:
    at = PAGES[path](visit(path, color_scheme=scheme))
    ground = at.find("html").evaluate("html => getComputedStyle(html).backgroundColor")
    bright = sum(int(part) for part in ground.strip("rgb()").split(",")) > 3 * 128
    assert bright == (scheme == "light")
    contrast = at.page.evaluate(CONTRAST)
    assert len(contrast) > 30 and contrast[0][0] >= 4.5, contrast[:5]


@pytest.mark.parametrize("path", PAGES)
def test_everything_has_a_name(visit: Visit, path: str) -> None:
    at = PAGES[path](visit(path))
    assert at.page.evaluate(UNNAMED) == []
    assert at.find("h1").count() == 1 and at.find("html[lang=en]").count() == 1


def test_the_colours_change_while_the_page_is_open(visit: Visit) -> None:
    at = watching(visit("/live", color_scheme="light"))
    plot = at.find("#curves .plot").first
    at.redrawn(plot, lambda: at.page.emulate_media(color_scheme="dark"))


def test_the_playground_by_keyboard_alone(visit: Visit) -> None:
    at = visit()
    expect(at.find("#prompt")).to_be_focused()
    at.set(max_tokens=12, logit_bias=f"{END}: -100", seed=1)
    at.page.reload()
    keys = at.page.keyboard
    expect(at.find("#prompt")).to_be_focused()
    keys.type("Once upon")
    keys.press("Control+Enter")
    at.settle()
    for _ in range(60):
        keys.press("Tab")
        if at.find("[data-index]:focus").count():
            break
    expect(at.find("[data-index='0']")).to_be_focused()
    expect(at.find("#alternatives")).to_be_visible()
    assert at.find("[data-index='0']").evaluate("token => getComputedStyle(token).outlineStyle") == "solid"
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    expect(at.find("[data-index='2']")).to_be_focused()
    keys.press("Escape")
    expect(at.find("#alternatives")).to_be_hidden()
    keys.press("End")
    expect(at.find("[data-index='11']")).to_be_focused()
    keys.press("Home")
    keys.press("Enter")
    expect(at.find("#alternatives .card-row:not([disabled])").first).to_be_focused()
    keys.press("ArrowDown")
    expect(at.find("#alternatives .card-row:not([disabled])").nth(1)).to_be_focused()
    keys.press("Escape")
    expect(at.find("[data-index='0']")).to_be_focused()
    expect(at.find("#alternatives")).to_be_hidden()
    keys.press("Enter")
    expect(at.find("#alternatives .card-row:not([disabled])").first).to_be_focused()
    keys.press("Escape")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    keys.press("Enter")
    expect(at.find("[data-index='1']")).to_be_focused()
    at.settle()
    expect(at.find(".token[data-index]")).to_have_count(14)
    expect(at.find(".by-hand")).to_have_count(1)


def test_the_first_key_leads_to_the_contents(visit: Visit) -> None:
    at = visit("/live")
    expect(at.find("#run option").first).to_be_attached()
    at.page.keyboard.press("Tab")
    expect(at.find(".skip")).to_be_focused()
    expect(at.find(".skip")).to_be_in_viewport()
    at.page.keyboard.press("Enter")
    expect(at.find("#main")).to_be_focused()
