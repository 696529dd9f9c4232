"""The families: each says, in recipes, what it is, and keeps the front door that its document promised."""

from __future__ import annotations

from homespun.families import alen, gpt2, house, kenga, kimbho, nanokimi, optimus_prime
from homespun.train.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    name: recipe
    for family in (house, kenga, kimbho, optimus_prime, alen, nanokimi, gpt2)
    for name, recipe in family.RECIPES.items()
}
"""Every recipe by name."""
