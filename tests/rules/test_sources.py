"""What holds for every file: short, ASCII, documented, typed, no pickles, nothing of one machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.sources import PACKAGES, ROOT, imports, modules, parse, tracked

MOST_LINES = 500
MOST_COMMAND_LINES = 60
TEXT = {".py", ".toml", ".yaml", ".yml", ".md", ".txt", ".cfg", ".sh", ".j2", ".html", ".json", ""}
ASCII = {".py", ".toml", ".yaml", ".yml", ".txt", ".sh", ""}

# Written in halves, so that this file passes its own rule.
MACHINE_PATHS = tuple(f"/{name}/" for name in ("work", "root", "home"))
INDEX_HOSTS = tuple(".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("pytorch", "org/whl")))
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}


def text_files(suffixes: set[str]) -> list[Path]:
    return [path for path in tracked() if path.suffix in suffixes]


@pytest.mark.parametrize("module", modules(*PACKAGES), ids=str)
def test_files_fit_a_reader(module: Path) -> None:
    lines = len((ROOT / module).read_text(encoding="utf-8").splitlines())
    assert lines <= (MOST_COMMAND_LINES if module.parts[0] == "ray_jobs" else MOST_LINES)


@pytest.mark.parametrize("path", text_files(ASCII), ids=str)
def test_sources_are_ascii(path: Path) -> None:
    wrong = [
        f"{path}:{i}: {line.strip()}"
        for i, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1)
        if not line.isascii()
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", text_files(TEXT), ids=str)
def test_nothing_of_one_machine_is_tracked(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    found = [word for word in (*MACHINE_PATHS, *INDEX_HOSTS) if word in text]
    assert not found, f"{path} names {found}"


@pytest.mark.parametrize("module", modules("inpaint", "ray_jobs", "benchmarks"), ids=str)
def test_no_pickles(module: Path) -> None:
    assert not {name for name in imports(module) if name.split(".")[0] in PICKLES}
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in PICKLING_CALLS, f"{module}:{node.lineno}"
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), (
                f"{module}:{node.lineno}: allow_pickle"
            )


@pytest.mark.parametrize("module", modules("inpaint"), ids=str)
def test_public_things_are_documented(module: Path) -> None:
    tree = parse(module)
    if not tree.body:
        return
    bare = [] if ast.get_docstring(tree) else [f"{module}: the module"]
    for node in public(tree.body):
        if not ast.get_docstring(node):
            bare.append(f"{module}:{node.lineno}: {node.name}")
    assert not bare, "no docstring:\n" + "\n".join(bare)


@pytest.mark.parametrize("module", modules("inpaint", "ray_jobs", "benchmarks"), ids=str)
def test_public_functions_are_typed(module: Path) -> None:
    untyped = []
    for node in public(parse(module).body):
        methods = public(node.body) if isinstance(node, ast.ClassDef) else [node]
        untyped += [f"{module}:{f.lineno}: {f.name}" for f in methods if is_untyped(f)]
    assert not untyped, "type hints missing:\n" + "\n".join(untyped)


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def is_untyped(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return node.returns is None or any(a.annotation is None for a in arguments if a.arg not in ("self", "cls"))
