"""A stop string ends a text at the same character, however the text arrives."""

from hypothesis import given
from hypothesis import strategies as st

from homespun.generate.stops import StopGate


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string that is complete ends the text."""
    for end in range(1, len(text) + 1):
        if matching := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, matching))], True
    return text, False


def through(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    gate, out = StopGate(stops), []
    for piece in pieces:
        text, stopped = gate.push(piece)
        out.append(text)
        if stopped:
            return out, True
    return [*out, gate.flush()], False


words = st.text("abé", max_size=4)


@given(st.lists(words, max_size=12), st.lists(words.filter(bool), max_size=3))
def test_the_text_depends_on_no_cut(pieces: list[str], stops: list[str]) -> None:
    out, stopped = through(pieces, stops)
    assert ("".join(out), stopped) == reference("".join(pieces), stops)


@given(st.lists(words, max_size=12), st.lists(words.filter(bool), min_size=1, max_size=3))
def test_no_part_of_a_stop_string_gets_through(pieces: list[str], stops: list[str]) -> None:
    final, stopped = reference("".join(pieces), stops)
    shown = ""
    for text in through(pieces, stops)[0]:
        shown += text
        assert final.startswith(shown)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    gate = StopGate(["\n\nQ:"])
    assert gate.push("one\ntwo") == ("one\ntwo", False)
    assert gate.push(" three\n") == (" three", False)
    assert gate.push("four\n\nQ") == ("\nfour", False)
    assert gate.flush() == "\n\nQ"
