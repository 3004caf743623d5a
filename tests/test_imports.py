"""Imports point from room to room in one direction, and no modules import each other in a circle.

All import statements count: at the top of a file, inside functions, under TYPE_CHECKING.  What is imported by name when
it is asked for (the methods) does not.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (("main",), ("utils.commands",), ("utils.bench", "utils.report"), ("utils.figures",), ("utils.tables",),
          ("utils.trained",), ("utils.sweep", "utils.released"), ("utils.run",), ("utils.process", "utils.text", "utils"), ("datasets",),
          ("model",))
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}      # 0 is at the top


def files() -> dict[str, str]:
    """The program's Python files: path -> source."""
    paths = [ROOT / "main.py", *(path for top in ("model", "datasets", "utils") for path in (ROOT / top).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parents(module: str) -> list[str]:
    """a.b.c -> a, a.b."""
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def named(path: str, source: str) -> set[tuple[str, str]]:
    """(module, name taken from it) of every import statement; relative ones resolved."""
    found, package = set(), path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {(base, alias.name) for alias in node.names}
    return found


def imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the program's modules that it imports, with the packages around them, whose __init__ runs too."""
    modules, graph = {module_of(path) for path in sources}, {}
    for path, source in sources.items():
        own = module_of(path)
        direct = {f"{base}.{name}" if f"{base}.{name}" in modules else base for base, name in named(path, source)}
        around = {parent for module in direct for parent in parents(module) if parent not in parents(own)}
        graph[own] = (direct | around) & modules - {own}
    return graph


def room(module: str) -> str:
    """The room that a module is in: the longest name in LEVEL that it begins with."""
    return next(one for one in [module, *reversed(parents(module))] if one in LEVEL)


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a room that is not below."""
    return sorted(f"{one} -> {other}" for one, others in graph.items() for other in others
                  if room(other) != room(one) and LEVEL[room(other)] <= LEVEL[room(one)])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_module_is_in_a_room():
    assert [path for path in files() if room(module_of(path)) == "utils"] == ["utils/__init__.py"]


def test_arrows_point_down():
    graph = imports(files())
    assert wrong_arrows(graph) == []
    assert "utils.run.build" in graph["main"] and "model.methods.base" in graph["model.methods"]      # it has looked


def test_no_modules_import_each_other_in_a_circle():
    assert circle(imports(files())) == []


@pytest.mark.parametrize("path, source, wrong", [
    ("model/a.py", "from datasets.scene import Scene", "model.a -> datasets.scene"),
    ("model/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import utils.text",
     "model.a -> utils.text"),
    ("model/ops/a.py", "def f():\n    from utils import text", "model.ops.a -> utils.text"),
    ("datasets/a.py", "import main", "datasets.a -> main"),
    ("model/a.py", "import utils", "model.a -> utils"),
    ("utils/run/a.py", "from utils.tables import cells", "utils.run.a -> utils.tables.cells"),
    ("utils/run/a.py", "from ..tables.cells import Cell", "utils.run.a -> utils.tables.cells"),
    ("utils/tables/a.py", "from utils.figures import sheet", "utils.tables.a -> utils.figures.sheet"),
    ("utils/sweep/a.py", "from utils.released import parity", "utils.sweep.a -> utils.released.parity"),
    ("utils/released/a.py", "import utils.sweep.file as f", "utils.released.a -> utils.sweep.file"),
    ("utils/text.py", "from utils.run.a import x", "utils.text -> utils.run.a"),
    ("utils/commands/a.py", "import main", "utils.commands.a -> main"),
    ("utils/__init__.py", "from utils.run import a", "utils -> utils.run.a"),
    ("utils/commands/a.py", "from utils import text\nfrom utils.bench import a\nimport torch, model.a", None),
    ("utils/trained/a.py", "from utils.released import parity\nfrom datasets import scene", None)])
def test_an_arrow_that_points_up_is_found(path, source, wrong):
    there = dict.fromkeys(("main.py", "model/a.py", "datasets/scene.py", "utils/__init__.py", "utils/text.py",
                           "utils/run/a.py", "utils/tables/cells.py", "utils/figures/sheet.py", "utils/sweep/file.py",
                           "utils/released/parity.py", "utils/bench/a.py"), "")
    found = wrong_arrows(imports(there | {path: source}))
    assert wrong in found if wrong else not found


@pytest.mark.parametrize("sources, found", [
    ({"model/a.py": "from model import b", "model/b.py": "import model.c", "model/c.py": "from . import a"}, "abc"),
    ({"model/a.py": "from model.b import x", "model/b.py": "def f():\n    from model.a import y"}, "ab"),
    ({"model/a.py": "if TYPE_CHECKING:\n    from model.b import x", "model/b.py": "from model.a import y"}, "ab"),
    ({"model/a.py": "from model.p import f", "model/p/__init__.py": "from model.p.b import f",
      "model/p/b.py": "from model.a import x"}, "apb"),
    ({"model/a.py": "from model.p import c", "model/p/__init__.py": "from model.a import x", "model/p/c.py": ""}, "ap"),
    ({"model/a.py": "from model.p import f", "model/p/__init__.py": "from model.p import b", "model/p/b.py": ""}, ""),
    ({"model/a.py": "from model import b, c", "model/b.py": "from model import c", "model/c.py": "import a, b"}, "")])
def test_a_circle_is_found(sources, found):
    modules = circle(imports(sources))
    assert {module.split(".")[-1] for module in modules} == set(found) and modules[:1] == modules[-1:]
