"""The toy base's two trainings, which are not run here: on which rows they go on."""

from pathlib import Path
from typing import Any

import pytest

from inpaint.recipes import toy_base
from inpaint.recipes.toy_base import PretrainToy, ToyPart, pretrain_toy


def test_it_goes_on_with_the_catalogue_that_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, int]] = []

    def run(part: ToyPart, **more: Any) -> list[str]:
        assert part.resume and part.recheck, "rows that differ from those it began with are refused"
        begun.append((part.title, len(Path(part.data).read_text().splitlines()) - 1))
        return [part.export_folder("")]

    monkeypatch.setattr(toy_base, "run", run)
    monkeypatch.setattr(toy_base, "measure_base", lambda folder: {})
    # As an earlier run left it that was killed while it wrote, or that was asked for another one.
    csv = tmp_path / "catalogue" / "catalogue.csv"
    csv.parent.mkdir()
    csv.write_text("input,mask,output,prompt,category\n")
    folder, _ = pretrain_toy(PretrainToy(output=str(tmp_path), images=3))
    assert begun == [("toy VAE", 3), ("toy U-Net", 3)]
    assert folder == tmp_path / "unet" / "base"
