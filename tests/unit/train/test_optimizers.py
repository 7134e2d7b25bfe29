"""Optimizers: what is lacking is said with the way out, and rates that mean nothing to one are refused."""

import tomllib
from pathlib import Path

import pytest

from inpaint.errors import InpaintError
from inpaint.train.optimizers import check
from inpaint.train.settings import Optimizer


@pytest.mark.parametrize(("optimizer", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_package_that_is_not_there_is_named_with_the_command(
    optimizer: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inpaint.train.optimizers.find_spec", lambda name: name)
    check(Optimizer(optimizer), {})
    monkeypatch.setattr("inpaint.train.optimizers.find_spec", lambda name: None)
    with pytest.raises(InpaintError, match=rf"needs {package}.*pip install 'inpaint\[{optimizer}\]'"):
        check(Optimizer(optimizer), {})
    check(Optimizer.ADAFACTOR, {})
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name.partition(">")[0] for name in extras[optimizer]] == [package]


def test_prodigy_takes_no_rates_but_1() -> None:
    check(Optimizer.PRODIGY, {"a": 1.0, "b": 1.0})
    check(Optimizer.ADAMW, {"a": 1e-4})
    with pytest.raises(InpaintError, match=r"give a, b 1, not 0.0001, 1"):
        check(Optimizer.PRODIGY, {"a": 1e-4, "b": 1.0})
