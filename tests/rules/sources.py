"""The repository's files as the rules see them."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("inpaint", "ray_jobs", "benchmarks", "tests")


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that git tracks, relative to the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())


@cache
def modules(*packages: str) -> tuple[Path, ...]:
    """Python files of `packages`, relative to the repository, tracked or not yet."""
    return tuple(sorted(p.relative_to(ROOT) for package in packages for p in (ROOT / package).rglob("*.py")))


@cache
def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), str(module))


@cache
def imports(module: Path) -> frozenset[str]:
    """Dotted names that `module` imports anywhere in it, functions and TYPE_CHECKING blocks included.

    `from a.b import c` counts as `a.b.c`, for `c` may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # level counts the dots of a relative import: one stays in the module's own package.
            base = ".".join(module.parts[: -node.level]) if node.level else ""
            prefix = ".".join(part for part in (base, node.module or "") if part)
            names |= {f"{prefix}.{alias.name}" for alias in node.names}
    return frozenset(names)
