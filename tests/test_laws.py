"""The laws of the house, read from its source and tried in fresh interpreters."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import homespun

PROJECT = Path(__file__).parent.parent
SOURCE = PROJECT / "src" / "homespun"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

FLOORS = [
    {"errors"},
    {"config"},
    {"model"},
    {"objectives", "data"},
    {"optim"},
    {"train"},
    {"generate", "evaluate", "exchange", "learn"},
    {"benchmark", "families", "retrieve"},
    {"run"},
    {"serve"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
SAME_FLOOR = {("objectives", "data")}  # an objective reads a batch


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, at the top, inside a function, or for the type checker only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return (parts[1] if len(parts) > 1 else "") if parts[0] == "homespun" else None


def upward(name: str, tree: ast.AST) -> list[str]:
    """The imports of the file `name` that the law forbids."""
    room = name.split("/")[0].removesuffix(".py")
    if room in ("__init__", "__main__"):  # the front doors may name any room; the first one does so lazily
        return []
    below = {other for other, level in LEVEL.items() if level < LEVEL[room]}
    allowed = below | {room} | {other for mine, other in SAME_FLOOR if mine == room}
    allowed |= {"", "__version__"}  # the package itself, for its version
    return [module for module in imports(tree) if (other := room_of(module)) is not None and other not in allowed]


@pytest.mark.parametrize("name", TREES)
def test_imports_run_one_way(name: str) -> None:
    assert not upward(name, TREES[name])


def test_the_import_law_sees_a_breach() -> None:
    tree = ast.parse("def f():\n    from homespun.cli import main\n    from homespun.data.batches import Batch\n")
    assert upward("model/decoder.py", tree) == ["homespun.cli.main", "homespun.data.batches.Batch"]
    assert upward("train/trainer.py", tree) == ["homespun.cli.main"]


def test_every_room_is_known() -> None:
    rooms = {name.split("/")[0].removesuffix(".py") for name in TREES} - {"__init__", "__main__"}
    assert rooms <= LEVEL.keys()


OWNERS = {
    "torch.distributed": {"train/parallel.py"},
    "yaml": {"config.py"},
    "typer": {"cli"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "llguidance": {"generate/grammar.py"},
    "safetensors": {"train/checkpoint.py", "train/tensors.py", "exchange"},
}


@pytest.mark.parametrize("module", OWNERS)
def test_one_room_owns_one_outside_thing(module: str) -> None:
    users = {n for n, tree in TREES.items() if any(m == module or m.startswith(module + ".") for m in imports(tree))}
    owners = OWNERS[module]
    assert {user for user in users if user not in owners and user.split("/")[0] not in owners} == set()


def test_one_place_calls_the_attention_kernel() -> None:
    users = {
        n for n, tree in TREES.items() for called, _ in calls(tree) if called.endswith("scaled_dot_product_attention")
    }
    assert users == {"model/attention/core.py"}


def test_only_the_command_line_prints_and_exits() -> None:
    ends = {"print", "exit", "quit", "sys.exit", "sys.stdout.write", "sys.stderr.write"}
    found = {(name, called) for name, tree in TREES.items() for called, _ in calls(tree) if called in ends}
    progress = {("train/log.py", "print")}  # live progress is written by the log
    assert {(name, called) for name, called in found if not name.startswith("cli/")} <= progress


def test_nothing_is_pickled_or_executed() -> None:
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    functions = {
        "torch.load",
        "torch.save",
        "eval",
        "exec",
        "compile",
        "__import__",
        "yaml.unsafe_load",
        "yaml.full_load",
    }
    for name, tree in TREES.items():
        assert not {m.split(".")[0] for m in imports(tree)} & modules, name
        for called, call in calls(tree):
            assert called not in functions, f"{name}: {called}"
            named = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert named.get("allow_pickle", "False") == "False", name
            assert named.get("weights_only", "True") == "True", name
            assert named.get("trust_remote_code", "False") == "False", name


def test_nothing_can_open_a_connection() -> None:
    modules = {"socket", "ssl", "http", "urllib.request", "urllib3", "requests", "httpx", "aiohttp", "ftplib",
               "smtplib", "huggingface_hub", "datasets", "fsspec", "socketserver", "xmlrpc", "webbrowser"}  # fmt: skip
    for name, tree in TREES.items():
        found = {m for m in imports(tree) for banned in modules if m == banned or m.startswith(banned + ".")}
        named = {"fsspec", "aiohttp"} if name == "learn/web.py" else set()  # addresses that a person named
        assert found <= named, name


def test_functions_and_files_are_short() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        f"{name}: {node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (node.end_lineno or 0) - node.lineno + 1 > 50
    }
    assert not long
    lengths = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in TREES}
    assert {name: lines for name, lines in lengths.items() if lines > 330} == {}


def test_public_names_are_documented() -> None:
    bare = {
        f"{name}: {node.name}"
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if ast.get_docstring(node) is None
    }
    assert not bare
    assert not {name for name, tree in TREES.items() if tree.body and ast.get_docstring(tree) is None}


def test_no_path_of_a_machine_is_written_down() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = re.compile(
        "|".join(rf"(?<![\w.$~}}])/{place}/\w" for place in ("work", "home", "root", "Users", "opt", "tmp"))
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = PROJECT / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".txt", ".json", "") and path.is_file():
            found = places.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found}"


HEAVY = ("torch", "numpy", "tokenizers", "safetensors", "yaml", "homespun.run", "homespun.model", "homespun.config")


def fresh(code: str) -> dict[str, list[str]]:
    """Runs code that prints JSON in its last line in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_homespun_imports_nothing_heavy() -> None:
    found = fresh("import sys, json, homespun; print(json.dumps({'modules': sorted(sys.modules)}))")
    assert not set(HEAVY) & set(found["modules"])
    assert len([m for m in found["modules"] if m.startswith("homespun")]) == 1


def test_help_of_every_verb_does_bounded_work() -> None:
    from homespun.cli.main import VERBS

    code = f"""
import json, sys
from homespun.cli.main import main
seen = {{}}
for verb in {VERBS!r}:
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert end.code == 0, verb
    seen[verb] = sorted(sys.modules)
print(json.dumps(seen))
"""
    seen = fresh(code)
    assert set(seen) == set(VERBS)
    for verb, modules in seen.items():
        assert not set(HEAVY) & set(modules), verb
    assert len(modules) < 700  # the standard library, typer and rich; torch alone brings more than this


def test_the_public_names_exist_and_are_what_they_say() -> None:
    from homespun.run import train
    from homespun.train.recipe import Recipe

    assert all(getattr(homespun, name) is not None for name in homespun.__all__)
    assert homespun.Recipe is Recipe
    assert set(homespun.__all__) <= set(dir(homespun))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        homespun.nonsense  # noqa: B018
    with pytest.raises(TypeError, match="data") as by_package:
        homespun.train()  # type: ignore[call-arg]
    with pytest.raises(TypeError) as by_function:
        train()  # type: ignore[call-arg]
    assert str(by_package.value) == str(by_function.value)


@pytest.mark.parametrize("first", ["homespun.train.recipe", "homespun.run", "homespun"])
def test_train_is_a_room_and_a_function_in_any_order(first: str) -> None:
    code = f"""
import json
import {first}
import homespun as hs
from homespun import train
import homespun.train.recipe as recipe
assert train is hs.train and callable(hs.train) and hs.train.recipe is recipe
print(json.dumps({{}}))
"""
    fresh(code)
