"""The kinds of objectives."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.objectives.joint import Joint
from homespun.objectives.next_token import NextToken

Objective = Annotated[NextToken | Joint, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more file and one more word here."""

__all__ = ["Joint", "NextToken", "Objective"]
