"""The families: each says, in recipes, what it is, and keeps the front door that its document promised."""

from __future__ import annotations

from homespun.families import alen, gpt2, house, kimbho
from homespun.train.recipe import Recipe

RECIPES: dict[str, Recipe] = house.RECIPES | kimbho.RECIPES | alen.RECIPES | gpt2.RECIPES
"""Every recipe by name."""
