"""What is used of DeepSpeed's internals stands in one file, and was tried on one version."""

from importlib.metadata import version

from inpaint.train import deepspeed_internals
from tests.rules.sources import imports, modules


def test_the_version_it_was_tried_on() -> None:
    assert deepspeed_internals.__doc__ is not None and "tried on DeepSpeed 0.19" in deepspeed_internals.__doc__
    assert version("deepspeed").startswith("0.19."), "run tests/unit/train/test_engine.py, then say so in the file"


def test_nobody_else_imports_deepspeed() -> None:
    users = [m.as_posix() for m in modules("inpaint") if any(n.split(".")[0] == "deepspeed" for n in imports(m))]
    assert users == ["inpaint/train/deepspeed_internals.py"]
