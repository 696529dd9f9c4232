"""`homespun plan`: what a recipe costs before it is paid."""

from __future__ import annotations

from typing import Annotated

import typer

from homespun.cli import options, show
from homespun.cli.options import Choices


def plan(
    settings: Annotated[list[str] | None, options.argument("[KEY=VALUE...]", "Settings laid over the recipe.")] = None,
    recipe: options.RecipeName = None,
    config: options.SettingsFile = None,
    steps: options.Steps = None,
    tokens: options.Tokens = None,
    minutes: options.Minutes = None,
    tokenizer: options.TokenizerName = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Time three training steps here.")] = True,
    json: options.AsJson = False,
) -> None:
    """Show parameters, FLOPs, memory and time of a recipe, and whether it fits this machine.

    Example: [bold]homespun plan --recipe house-small model.layers=12[/bold]
    """
    given = options.settings_only(settings, "plan")
    from homespun import run

    chosen = Choices(recipe, config, given, steps, tokens, minutes, tokenizer=tokenizer).build()
    made = run.plan(chosen, measure=measure)
    show.as_json(made.to_dict()) if json else show.table(f"Plan for {chosen.name}", made.table())
