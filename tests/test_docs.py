"""What the documents say can be done: verbs, options, keys, names and links exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import homespun
from homespun.cli.main import VERBS, app
from homespun.config import override, to_dict
from homespun.run import recipe, recipes

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(PROJECT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for text in TEXTS.values() for block in blocks(text, "sh") for line in block.splitlines()]
    lines += [span for text in TEXTS.values() for span in re.findall(r"`(homespun [^`]+)`", text)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "homespun"]


def options_of(verb: str) -> set[str]:
    from typer.main import get_command

    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_in_the_documents_exists(words: list[str]) -> None:
    verb, *rest = words
    assert verb in VERBS
    options = {word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
    assert options <= options_of(verb) | {"--debug"}
    settings = [word for word in rest if re.match(r"\w+(\.\w+)+=", word)]
    named = rest[rest.index("--recipe") + 1] if "--recipe" in rest else "house-tiny"
    override(recipe(named if named in recipes() else "house-tiny"), settings)


def test_the_readme_lists_the_verbs_that_exist() -> None:
    listed = re.findall(r"^\| `homespun (\w+)", TEXTS["README.md"], re.MULTILINE)
    assert listed == list(VERBS)


def test_every_link_leads_somewhere() -> None:
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (PROJECT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_every_python_example_uses_names_that_exist() -> None:
    for text in TEXTS.values():
        for block in blocks(text, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "hs":
                    assert node.attr in homespun.__all__


def test_every_documented_key_is_a_setting() -> None:
    keys = re.findall(r"^\| `([a-z]+(?:\.\w+)+)` \|", TEXTS["docs/recipes.md"], re.MULTILINE)
    assert len(keys) > 40
    known = to_dict(recipe("house-tiny"))
    for key in keys:
        here = known
        for part in key.split("."):
            assert part in here, key
            here = here[part]


def test_every_key_of_the_joint_objective_is_documented() -> None:
    keys = set(re.findall(r"^\| `([a-z]+(?:\.\w+)+)` \|", TEXTS["docs/embeddings.md"], re.MULTILINE))
    plain = recipe("house-tiny")
    joint = to_dict(override(plain, ["objective.kind=joint", "model.embedding={}"]))
    own = {f"objective.{name}" for name in joint["objective"].keys() - to_dict(plain)["objective"].keys()}
    assert keys == own | {f"model.embedding.{name}" for name in joint["model"]["embedding"]}


def test_every_recipe_is_documented() -> None:
    page = TEXTS["docs/recipes.md"]
    for name in recipes():
        family, _, size = name.partition("-")
        assert f"`{name}`" in page or f"`-{size}`" in page, name


def test_the_versions_that_are_tested_are_pinned() -> None:
    pins = {
        re.split(r"==", line)[0].lower()
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = (PROJECT / "pyproject.toml").read_text()
    core = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    tools = re.search(r"^dev = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert core and tools
    for name in re.findall(r'"([\w-]+)', core[1] + tools[1]):
        assert name.lower() in pins, name
