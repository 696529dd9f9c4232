"""Settings: what is impossible or unknown is an error that names the key, the value and the nearest known key."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from homespun.config import Config, Count, human_number, merge, override, parse, read_yaml, to_dict, to_yaml
from homespun.errors import ConfigError


class Round(Config):
    kind: Literal["round"] = "round"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: Count = 2
    rounded: bool = False


class House(Config):
    name: str = "home"
    rooms: Count = 3
    floor: int | None = None
    window: Annotated[Round | Square, Field(discriminator="kind")] = Round()


def test_settings_come_back_from_yaml_unchanged() -> None:
    house = House(name="Läuse: # 1", rooms=5, window=Square(side=4))
    assert parse(House, read_yaml(to_yaml(house))) == house


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 2**60), st.floats(0, 1e300))
def test_any_value_comes_back_from_yaml(name: str, rooms: int, radius: float) -> None:
    house = House(name=name, rooms=rooms, window=Round(radius=radius))
    assert parse(House, read_yaml(to_yaml(house))) == house


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1M", 10**6),
        ("64k", 64_000),
        ("1.5m", 1_500_000),
        ("1e6", 10**6),
        ("2_000", 2000),
        ("12", 12),
        ("2b", 2 * 10**9),
    ],
)
def test_numbers_are_read_as_people_write_them(written: str, meant: int) -> None:
    assert human_number(written) == meant
    assert override(House(), [f"rooms={written}"]).rooms == meant


@pytest.mark.parametrize("text", ["soon", "1X", "k", "", "0x10"])
def test_what_is_no_number_is_left_alone(text: str) -> None:
    assert human_number(text) == text


def test_later_assignments_win_and_the_former_object_stays() -> None:
    house = House()
    assert override(house, ["rooms=4", "rooms=6"]).rooms == 6
    assert house.rooms == 3
    with pytest.raises(Exception, match="frozen"):
        house.rooms = 9  # type: ignore[misc]


def test_a_new_kind_drops_the_settings_of_the_old_one_in_any_order() -> None:
    changed = override(House(window=Round(radius=2.0)), ["window.side=9", "window.kind=square"])
    assert changed.window == Square(side=9)
    assert merge(House(), {"window": {"kind": "square"}}, "a file").window == Square()


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("roms=3", "rooms"),
        ("window.radios=3", "radius"),
        ("window.kind=squart", "square"),
        ("rooms=many", "many"),
        ("rooms=0", "rooms"),
        ("rooms=2.5", "2.5"),
        ("window.radius=.nan", "radius"),
        ("rooms.high=3", "rooms"),
        ("name.first=3", "name"),
        ("floor=true", "floor"),
        ("rooms", "key=value"),
        ("=3", "key=value"),
    ],
)
def test_an_impossible_assignment_names_key_value_or_nearest(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        override(House(), [assignment])
    assert said in str(error.value) and error.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "a: &x [1, 1]\nb: *x",
        "rooms: 1\nrooms: 2",
        "- a\n- b",
        "a: [1, 2",
        "name: " + "[" * 5000,
        "# " + "x" * 1_100_000,
    ],
    ids=["tag", "alias", "twice", "list", "broken", "deep", "large"],
)
def test_yaml_that_is_no_settings_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(House, read_yaml(text, "the file"))


def test_an_unknown_key_in_a_file_is_named_with_the_file() -> None:
    with pytest.raises(ConfigError, match=r"'window\.sidee' in mine\.yaml.*'side'"):
        merge(House(), {"window": {"kind": "square", "sidee": 1}}, "mine.yaml")


def test_plain_data_holds_every_key() -> None:
    assert to_dict(House()) == {"name": "home", "rooms": 3, "floor": None, "window": {"kind": "round", "radius": 1.0}}
