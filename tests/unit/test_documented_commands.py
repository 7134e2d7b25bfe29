"""Every command line that the documentation shows is understood by its command."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest

import inpaint.command
from inpaint.errors import InpaintError
from inpaint.models.base import read_base_info
from inpaint.recipes import latent as recipes_latent
from tests.rules.sources import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "ray_jobs").glob("[a-z]*.py"))


NEEDED = {
    "train_category_lora": "--data d.csv --output runs/x",
    "fleet": "--data d.csv --output runs/x",
    "sweep": "category_lora --data d.csv --output runs/x",
    "train_ddpm": "--data d --output runs/x",
    "train_dreambooth_lora": "--instance-dir d --output-dir o",
    "train_controlnet": "--data d --output o",
    "train_photoshoot_lora": "--data-dir d --output-dir o",
    "enhance": "--data d --output o --base b",
    "photoshoot": "--data d --output o --base b --products shoe",
    "train_panel_lora": "--data-dir d --output-dir o",
    "paint_panels": "--base-model b --input-image i.png",
    "make_composites": "--data d.csv --output o",
    "generate": "--prompt p --output o",
    "export": "--adapter a",
    "caption": "--data d",
    "find_products": "--data d --products p --output o",
    "evaluate": "--real r --generated g --output o",
    "paint": "--model runs/x --image i.png --mask m.png --output o.png",
}
"""What these commands cannot do without."""


def shown() -> list[str]:
    """Command lines that can be tried as they stand."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:    |ray job submit .*-- )?python -m (ray_jobs\.\w+.*)$", text, re.MULTILINE):
            found.append(re.sub(r"\s+#.*", "", line))
    return sorted({line for line in found if not line.endswith("...")})


def flags() -> list[str]:
    """Flags in the README's sentences, with a value where the sentence shows one; each of several values alone."""
    found = []
    for snippet in re.findall(r"`(--[a-z][^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8")):
        flag, *values = snippet.split()
        found += [[flag, value] for value in values[0].split("|")] if len(values) == 1 else [[flag, *values]]
    return sorted({" ".join(words) for words in found} - {"--help"})


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], bool]]:
    """Whether a command understands a line: its module runs as it does from a shell, up to the job itself."""
    parsed: list[object] = []

    def only_parse(job, config, description, *, defaults=None, **_: object) -> None:
        parsed.append(inpaint.command.parse(config, description, sys.argv[1:], defaults))

    with pytest.MonkeyPatch.context() as patch:
        # Bases of the hub are not here: what suits them is asked of another.
        patch.setattr(recipes_latent, "read_base_info", lambda base: read_base_info("toy"))
        patch.setattr(inpaint.command, "command", only_parse)
        patch.chdir(tmp_path_factory.mktemp("commands"))
        patch.setenv("COLUMNS", "300")

        def is_understood(line: str) -> bool:
            parsed.clear()
            patch.setattr(sys, "argv", shlex.split(line))
            with contextlib.suppress(SystemExit, InpaintError):
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            return len(parsed) == 1

        yield is_understood


@pytest.fixture(scope="module")
def flags_of(parse: Callable[[str], bool]) -> dict[str, set[str]]:
    """Each command's flags, as its help names them."""
    known = {}
    for name in NEEDED:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            parse(f"ray_jobs.{name} --help")
        known[name] = set(re.findall(r"--[a-z][\w.-]*", said.getvalue()))
    return known


def test_there_are_some() -> None:
    assert {line.split()[0].partition(".")[2] for line in shown()} >= {"demo", "paint", "train_category_lora"}
    assert {"--adapters per-category", "--preset sd15", "--resume"} <= set(flags())


@pytest.mark.parametrize("line", shown())
def test_a_line_is_understood(line: str, parse: Callable[[str], bool]) -> None:
    assert parse(line)


@pytest.mark.parametrize("flag", flags())
def test_a_flag_is_some_commands(flag: str, parse: Callable[[str], bool], flags_of: Mapping[str, set[str]]) -> None:
    """One that is named without a value is tried with a few."""
    values = [""] if " " in flag else ["", "toy", "8", "0.5", "d.csv"]
    names = [name for name, known in flags_of.items() if flag.split()[0] in known]
    assert any(parse(f"ray_jobs.{name} {NEEDED[name]} {flag} {value}") for name in names for value in values)
