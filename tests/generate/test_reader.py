"""What is read in parts, taken back and branched is as if it were read at once."""

from __future__ import annotations

import pytest
import torch

from homespun.generate.batch import window_start
from homespun.generate.reader import Reader
from tests.generate.test_beam import BYTES, CONTEXT, generator
from tests.kinds import ATTENTIONS


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_any_text_can_follow_any_other(kind: str) -> None:
    model = generator(ATTENTIONS[kind]).model
    reader = Reader(model, torch.device("cpu"))
    text, other = BYTES.encode("the cat sat on the mat and on the"), BYTES.encode("the cow stood in the rain for long")
    for ids, last in [
        (text[:3], 1), (text[:9], 4), (text[:9], 4), (text[:7], 1), (text[:8], 2), (other[:8], 1), (text[:2], 1),
        (text[:16], 3), (text[:17], 1), (text[:30], 1), (text[:16], 1), (other[:5], 5),
    ]:  # fmt: skip
        start = window_start(len(ids), CONTEXT)
        with torch.no_grad():
            whole = model(torch.tensor([ids[start:]]))[:, -last:]
        torch.testing.assert_close(reader.read([ids], last).clone(), whole, atol=1e-4, rtol=1e-4)


def test_what_is_in_the_cache_is_not_read_again() -> None:
    model = generator(context=64).model
    shapes: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    reader, text = Reader(model, torch.device("cpu")), list(range(40))
    reader.read([text[:10]])
    reader.read([text[:14]], 5)
    reader.read([text[:12] + [99]])
    reader.branch([0, 0, 0])
    reader.read([text[:12] + [99, token] for token in (1, 2, 3)])
    reader.branch([2, 1])
    reader.read([text[:12] + [99, 3, 5], text[:12] + [99, 2, 5]])
    assert shapes == [(1, 10), (1, 5), (1, 1), (3, 1), (2, 1)]


def test_room_ends_where_the_window_moves() -> None:
    reader = Reader(generator().model, torch.device("cpu"))
    for length in range(1, 4 * CONTEXT):
        room = reader.room(length)
        assert window_start(length + room, CONTEXT) == window_start(length, CONTEXT)
        assert window_start(length + room + 1, CONTEXT) > window_start(length, CONTEXT)
