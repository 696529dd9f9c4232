import math
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homespun.evaluate.charts import Chart, Series, draw, smooth, thin, ticks, value_at
from homespun.evaluate.markup import Html, element
from homespun.evaluate.words import duration, exact, short

numbers = st.floats(-1e6, 1e6)
curves = st.lists(numbers, min_size=1, max_size=400).map(lambda ys: [(float(x), y) for x, y in enumerate(ys)])


@given(curves, st.integers(4, 50))
def test_a_thinned_curve_keeps_its_ends_and_every_extreme(points: list[tuple[float, float]], limit: int) -> None:
    kept = thin(points, limit)
    assert len(kept) <= max(limit, 4) and kept == sorted(kept) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert min(y for _, y in kept) == min(y for _, y in points)
    assert max(y for _, y in kept) == max(y for _, y in points)


@given(curves)
def test_a_smoothed_curve_stays_between_the_extremes_and_starts_where_the_data_start(
    points: list[tuple[float, float]],
) -> None:
    smoothed = smooth(points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    assert smoothed[0][1] == pytest.approx(points[0][1], abs=1e-6)
    assert all(low - 1e-6 <= y <= high + 1e-6 for _, y in smoothed)


@given(numbers, st.floats(1e-6, 1e6), st.integers(3, 8))
def test_ticks_are_few_evenly_spaced_and_inside(low: float, width: float, count: int) -> None:
    high = low + width
    found = ticks(low, high, count)
    assert 1 <= len(found) <= 2 * count + 1
    slip = max(width * 1e-6, 4 * math.ulp(max(abs(low), abs(high))))  # far from 0 a float is no nearer than this
    assert all(low - slip <= tick <= high + slip for tick in found)
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-3, abs=max(1e-11, 2 * slip)) for gap in gaps)


def test_the_drawing_gives_the_measured_values_back() -> None:
    points = [(step, 8.0 * math.exp(-step / 50) + 1.5) for step in range(0, 1000, 7)]
    drawn = draw(Chart("Loss", "steps", [Series("training", points)]))
    left, right, low, high = map(float, re.search(r'data-frame="([^"]+)"', drawn)[1].split())
    path = re.search(r'<path d="M([^"]+)" class="line s0"', drawn)[1]
    back = [tuple(map(float, place.split())) for place in path.split("L")]
    for (x, y), (step, value) in zip(back, points, strict=True):
        assert left + x / 1000 * (right - left) == pytest.approx(step, abs=0.01)
        assert high - y / 1000 * (high - low) == pytest.approx(value, abs=1e-4)


def test_the_steep_start_leaves_the_frame_and_a_note_says_so() -> None:
    curve = [(float(step), 90.0 if step < 3 else 2.0 + step / 1000) for step in range(1000)]
    drawn = draw(Chart("Loss", "steps", [Series("training", curve)]))
    assert "The highest value, 90, lies above the frame." in drawn
    flat = draw(Chart("Loss", "steps", [Series("training", curve[3:])]))
    assert "above the frame" not in flat


@pytest.mark.parametrize("points", [[], [(5.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(0.0, 1e-30), (0.0, 1e30)]])
def test_a_chart_of_next_to_nothing_is_still_a_chart(points: list[tuple[float, float]]) -> None:
    for from_zero in (False, True):
        drawn = draw(Chart("Loss", "steps", [Series("training", points)], from_zero=from_zero))
        assert ("Nothing measured yet." in drawn) == (not points)
        assert "nan" not in drawn and "inf" not in drawn


def test_a_chart_says_in_words_what_it_shows() -> None:
    drawn = draw(Chart("Loss", "steps", [Series("training", [(0.0, 8.0), (1.0, 3.0), (2.0, 4.0)])]))
    assert 'role="img"' in drawn
    assert 'aria-label="Loss over steps: training from 8 to 4, lowest 3."' in drawn


def test_the_value_at_a_step_is_the_last_one_measured_until_then() -> None:
    points = [(10.0, 1.0), (20.0, 2.0)]
    assert [value_at(points, x) for x in (5, 10, 15, 20, 99)] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert value_at([], 3) is None


def test_plain_strings_are_escaped_and_built_html_is_not() -> None:
    built = element("p", "a<b & c", element("b", Html("&amp;")), class_="x", title='"quoted"', open=True, hidden=False)
    assert built == '<p class="x" title="&quot;quoted&quot;" open>a&lt;b &amp; c<b>&amp;</b></p>'


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.0003, "3e-4"), (0.25, "0.25"), (1500, "1,500"), (12_345, "12.3k"), (3.4e6, "3.4M"), (2e9, "2B")],
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert short(value) == words


def test_times_are_said_as_a_person_says_them() -> None:
    told = [duration(seconds) for seconds in (0.04, 4.2, 42, 59.7, 725, 7200, 12_000, 187_200)]
    assert told == ["0.0 s", "4.2 s", "42 s", "1 min", "12 min 5 s", "2 h", "3 h 20 min", "2 d 4 h"]
    assert [duration(None), short(None), exact(None)] == ["–", "–", "–"]


def test_words_and_lines_stand_out_from_the_page_in_light_and_in_dark() -> None:
    style = resources.files("homespun.evaluate").joinpath("report.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.+?)\}", style, re.S)
    )
    for theme in (light, dark):
        for behind in ("paper", "card"):
            assert all(_contrast(theme[words], theme[behind]) >= 4.5 for words in ("ink", "muted", "thread"))
            assert all(_contrast(theme[f"s{index}"], theme[behind]) >= 3 for index in range(8))
        assert _contrast(theme["ink"], theme["mark"]) >= 4.5
        assert _contrast(theme["card"], theme["s1"]) >= 4.5  # the flag on the best point
        assert _contrast(theme["card"], theme["thread"]) >= 4.5  # the badge in the table


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours written #rrggbb."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
