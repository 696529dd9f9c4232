"""How much a client may ask for, and how long it may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.config import Config, Count

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Limits(Config):
    """What the server never goes beyond.

    `body`: bytes of a request's body. `prompt_tokens`: of all prompts of a request. `tokens`: the most that one text
    may be asked to have. `texts`: of one request, `n` times its prompts. `inputs`: texts of a request for vectors;
    `input_tokens`: of all of them. `rows`: texts that a model writes at a time;
    `queue`: texts that wait beside them. `connections`: open at a time. `seconds`: for the answer to one request.
    `patience`: seconds in which a client has to send its request, and to take what was sent to it. `grace`: seconds in
    which answers may be finished after the server was told to stop.
    """

    body: Count = 2**20
    prompt_tokens: Count = 8192
    tokens: Count = 4096
    texts: Annotated[Count, Field(le=1024)] = 32
    inputs: Annotated[Count, Field(le=2**16)] = 2048
    input_tokens: Count = 2**16
    rows: Annotated[Count, Field(le=4096)] = 32
    queue: Annotated[int, Field(ge=0, le=2**20)] = 256
    connections: Annotated[Count, Field(le=2**16)] = 256
    seconds: Seconds = 300.0
    patience: Seconds = 20.0
    grace: Annotated[float, Field(ge=0, le=3600)] = 5.0
