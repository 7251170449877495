"""Imports point down only; and what environment workers read, or `parl --help`, is free of torch.

The source is parsed, so imports inside functions count too.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

import parl_cli

ROOT = Path(parl_cli.__file__).parent

# From the bottom up; a room may import itself and whatever stands below its line.
LEVELS = (
    ("errors", "registry", "plugins", "config", "types"),
    ("per_policy", "functional", "envs", "metrics", "composition"),
    ("policies", "buffers", "vectorizers"),
    ("intrinsic", "algos"),
    ("actors",),
    ("training", "reports"),
    ("build",),
    ("experiment", "bench"),
    ("jobs",),
    ("sweeps",),
    ("commands",),
)
COMMAND_LINE = ("cli", "__main__", "_hydra")  # one room with the commands: help and completion look back at `cli`
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
LEAVES = LEVELS[0]
TORCH_FREE = ("errors", "registry", "plugins", "composition", "config", "per_policy", "types", "envs", "vectorizers")


def modules():
    """Every module of the package by dotted name, except the package's own `__init__`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(("parl_cli", *parts))] = path
    return found


MODULES = modules()


def room_of(module):
    room = module.split(".")[1]
    return "commands" if room in COMMAND_LINE else room


def imported(nodes):
    """Modules that these statements import; `from a import b` is a.b where that is a module, else a."""
    for node in nodes:
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports hide where they point"
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def running(body):
    """The statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inner = [] if is_type_checking(node) else getattr(node, "body", [])
        for block in (inner, getattr(node, "orelse", []), getattr(node, "finalbody", [])):
            yield from running(block)
        for handler in getattr(node, "handlers", []):
            yield from running(handler.body)


@cache
def all_imports(module):
    """Everything a module ever imports, in functions and for types too."""
    return frozenset(imported(ast.walk(ast.parse(MODULES[module].read_text()))))


@cache
def imports_when_run(module):
    """What importing a module imports itself."""
    return frozenset(imported(running(ast.parse(MODULES[module].read_text()).body)))


def ours(names):
    return [name for name in names if name in MODULES]


def ending_at(names, package):
    return [name for name in names if name.split(".")[0] == package]


def test_every_room_has_its_level():
    assert {room_of(module) for module in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    mine = room_of(module)
    for name in ours(all_imports(module)):
        room = room_of(name)
        assert room == mine or mine in LEAVES or LEVEL[room] < LEVEL[mine], f"{module} imports {name}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_leaves_only(leaf):
    # the registry loads what it is asked for by name: that is text, not an import statement
    rooms = {room_of(name) for name in ours(all_imports(f"parl_cli.{leaf}"))}
    assert rooms <= {"errors", "registry"} - {leaf}


def test_errors_import_nothing_of_the_package():
    assert not ours(all_imports("parl_cli.errors"))


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "vectorizers"])
def test_vectorizers_know_no_envs(module):
    assert "envs" not in {room_of(name) for name in ours(all_imports(module))}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in ("training", "reports")])
def test_training_knows_no_concrete_algorithm_policy_or_env(module):
    rooms = {room_of(name) for name in ours(all_imports(module))}
    assert not rooms & {"algos", "policies", "envs", "intrinsic"}


def reached_from(module):
    """All modules that importing this one imports, with the packages that hold them, each with how it got there."""
    reached, waiting = {module: [module]}, [module]
    while waiting:
        current = waiting.pop()
        names = {*imports_when_run(current), current.rpartition(".")[0]}
        for name in names - set(reached):
            reached[name] = [*reached[current], name]
            if name in MODULES:
                waiting.append(name)
    return reached


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in TORCH_FREE])
def test_what_workers_read_never_reaches_torch(module):
    reached = reached_from(module)
    assert not [" → ".join(path) for name, path in reached.items() if name.split(".")[0] == "torch"]


def test_the_package_itself_imports_nothing():
    # it runs before everything else, in every process
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert set(imported(running(tree.body))) <= {"typing"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch", {"torch"}),
        ("from torch import nn", {"torch"}),
        ("from parl_cli import build", {"parl_cli.build"}),
        ("from parl_cli.algos.ppo import PPO", {"parl_cli.algos.ppo"}),
        ("try:\n    import torch\nexcept ImportError:\n    import numpy", {"torch", "numpy"}),
        ("class A:\n    import torch", {"torch"}),
        ("def f():\n    import torch", set()),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", {"numpy"}),
    ],
)
def test_the_parser_of_this_test_sees_what_runs(source, names):
    assert set(imported(running(ast.parse(source).body))) == names


def test_the_parser_of_this_test_sees_functions_and_types_where_levels_count():
    tree = ast.parse("def f():\n    import parl_cli.build\nif TYPE_CHECKING:\n    from parl_cli import cli")
    assert set(imported(ast.walk(tree))) == {"parl_cli.build", "parl_cli.cli"}
