"""What `import inpaint` offers: every name is there, and whatever a command does can be done from Python."""

import dataclasses
import subprocess
import sys

import pytest

import inpaint
from tests.rules.sources import imports, modules


@pytest.mark.parametrize("name", inpaint.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(inpaint, name).__name__ == name


@pytest.mark.parametrize("command", [m for m in modules("ray_jobs") if m.name != "__init__.py"], ids=str)
def test_a_command_is_a_public_function_and_its_configuration(command) -> None:
    used = {name.rpartition(".") for name in imports(command) if name.startswith("inpaint.")}
    names = {name for _, _, name in used} - {"command", "defaults"}
    assert names <= set(inpaint.__all__)
    kinds = [dataclasses.is_dataclass(getattr(inpaint, name)) for name in names]
    assert sorted(kinds) == [False, True]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("inpaint", ("torch", "ray", "numpy", "diffusers")),
        # Ray Train starts three processes of its own for each training, which have this to import.
        ("inpaint.train.start", ("torch", "diffusers", "transformers", "deepspeed")),
    ],
)
def test_importing_it_imports_nothing_large(module: str, without: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {without} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
