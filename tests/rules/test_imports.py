"""Imports point one way, and few files know Ray (docs/architecture.md)."""

import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.rules.sources import ROOT, imports, modules

GROUND = {"device", "errors", "heap", "progress", "randomness", "stopping", "warned"}
BELOW_THE_LOOP = GROUND | {"cluster", "data", "diffusion", "models", "export", "paint", "vision", "rowmap", "evaluate"}
TOP = {"recipes", "serve", "toy"}
MAY_IMPORT = {
    "device": {"errors", "heap"},
    "errors": set(),
    "heap": set(),
    "progress": set(),
    "randomness": {"errors"},
    "stopping": {"errors"},
    "warned": set(),
    "cluster": {"errors"},
    "command": GROUND | {"cluster"},
    "data": GROUND,
    "rowmap": GROUND | {"cluster", "data"},
    "diffusion": GROUND,
    "models": GROUND | {"data", "diffusion"},
    "export": GROUND | {"data", "diffusion", "models"},
    "vision": GROUND | {"data", "models"},
    "paint": GROUND | {"data", "diffusion", "export", "models", "rowmap"},
    "evaluate": BELOW_THE_LOOP - {"cluster"},
    "train": BELOW_THE_LOOP,
    **{room: BELOW_THE_LOOP | {"train"} | (TOP - {room}) for room in TOP},
}
"""Which rooms of `inpaint` each room may import beside itself."""

SERVE_MAY_IMPORT = {
    "service": set(),
    "shares": set(),
    "admission": {"service", "shares"},
    "batcher": {"service"},
    "adapters": {"service"},
    "engine": {"service"},
    "dispatcher": {"adapters", "admission", "service"},
    "http": {"service", "shares"},
    "dialects": {"http", "service"},
}
"""Which parts of `inpaint/serve` each part may import beside itself; the wiring may all."""

KNOW_RAY = (
    "inpaint/cluster.py",
    "inpaint/command.py",
    "inpaint/data/pipeline.py",
    "inpaint/data/ray_internals.py",
    "inpaint/recipes/inpainting.py",
    "inpaint/recipes/painting.py",
    "inpaint/rowmap.py",
    "inpaint/serve/apps/*",
    "inpaint/serve/deployments/*",
    "inpaint/train/channel.py",
    "inpaint/train/referee.py",
    "inpaint/train/encode.py",
    "inpaint/train/packing.py",
    "inpaint/train/start.py",
    "inpaint/train/trainer.py",
    "inpaint/train/tuning.py",
    "inpaint/train/worker.py",
    "ray_jobs/*",
    "benchmarks/*",
    "tests/*",
)
"""The wiring: files that may import Ray, or `inpaint.cluster`, which does."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "python_multipart": "python-multipart",
    "pydantic_core": "pydantic",
    "cv2": "opencv-python-headless",
}
"""Distribution names that differ from the name imported; pydantic brings its core, of one exact version."""

OPTIONAL = {
    "inpaint/evaluate/classical.py": {"skimage"},
    "inpaint/export/onnx/*": {"onnx", "onnxruntime"},
    "inpaint/recipes/sweep_tpe.py": {"optuna"},
    "inpaint/train/optimizers.py": {"bitsandbytes", "prodigyopt"},
}
"""What these files alone import, where an extra is installed."""


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "inpaint" and len(parts) > 1 else None


@pytest.mark.parametrize("module", modules("inpaint"), ids=str)
def test_imports_point_one_way(module: Path) -> None:
    room = module.with_suffix("").parts[1]
    if room == "__init__":
        assert not {room_of(name) for name in imports(module)} - {None}, "inpaint/__init__.py imports no room"
        return
    assert room in MAY_IMPORT, f"{module}: inpaint/{room} is not in docs/architecture.md nor in this test"
    wrong = {name for name in imports(module) if room_of(name) not in MAY_IMPORT[room] | {room, None}}
    assert not wrong, f"{module} imports {sorted(wrong)}; {room} may import {sorted(MAY_IMPORT[room])}"


@pytest.mark.parametrize("module", modules("inpaint/serve"), ids=str)
def test_the_parts_of_the_service_know_only_their_neighbours(module: Path) -> None:
    part = module.with_suffix("").parts[2]
    found = {name.split(".")[2] for name in imports(module) if name.startswith("inpaint.serve.")}
    wrong = found - SERVE_MAY_IMPORT.get(part, found) - {part}
    assert not wrong, f"{module} imports {sorted(wrong)} of serve; {part} may import {SERVE_MAY_IMPORT.get(part)}"


@pytest.mark.parametrize("module", modules("inpaint"), ids=str)
def test_only_the_wiring_knows_ray(module: Path) -> None:
    if any(fnmatch(module.as_posix(), pattern) for pattern in KNOW_RAY):
        return
    wrong = {name for name in imports(module) if name.split(".")[0] == "ray" or room_of(name) == "cluster"}
    assert not wrong, f"{module} imports {sorted(wrong)}: only the wiring may ({', '.join(KNOW_RAY)})"


@pytest.mark.parametrize("module", modules("inpaint", "benchmarks", "tests"), ids=str)
def test_nobody_imports_a_command(module: Path) -> None:
    assert not {name for name in imports(module) if name.split(".")[0] == "ray_jobs"}


@pytest.mark.parametrize("module", modules("ray_jobs"), ids=str)
def test_commands_do_not_import_each_other(module: Path) -> None:
    assert not {name for name in imports(module) if name.split(".")[0] == "ray_jobs"}


@pytest.mark.parametrize("module", modules("inpaint", "ray_jobs"), ids=str)
def test_the_package_does_not_need_its_tests_or_benchmarks(module: Path) -> None:
    assert not {name for name in imports(module) if name.split(".")[0] in ("tests", "benchmarks")}


def declared() -> tuple[set[str], set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=~! ]", r)[0].lower() for r in requirements}

    optional = {name for extra in project["optional-dependencies"].values() for name in names(extra)}
    return names(project["dependencies"]), optional


@pytest.mark.parametrize("package", ["inpaint", "ray_jobs", "benchmarks", "tests"])
def test_what_is_imported_is_declared(package: str) -> None:
    needed, optional = declared()
    allowed = needed if package in ("inpaint", "ray_jobs") else needed | optional
    own = {"inpaint", "ray_jobs", "benchmarks", "tests"} | set(sys.stdlib_module_names)
    tops = {name.split(".")[0] for module in modules(package) for name in imports(module)} - own
    if package == "inpaint":
        tops = tops.difference(*OPTIONAL.values())
    missing = {top for top in tops if DISTRIBUTIONS.get(top, top).lower() not in allowed}
    assert not missing, f"{package} imports {sorted(missing)}, which pyproject.toml does not declare"


@pytest.mark.parametrize("module", modules("inpaint"), ids=str)
def test_what_is_optional_is_imported_in_one_place(module: Path) -> None:
    others = set().union(*(tops for file, tops in OPTIONAL.items() if not fnmatch(module.as_posix(), file)))
    assert not {name.split(".")[0] for name in imports(module)} & others


def test_what_is_declared_is_pinned() -> None:
    needed, optional = declared()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower() for pin in pins}
    assert needed | optional <= pinned
