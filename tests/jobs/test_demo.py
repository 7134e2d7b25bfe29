"""`make demo`'s command in short form, for one of its categories: adapter, card, report."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.conftest import ROOT, run


@pytest.mark.timeout(600)
def test_the_demo_trains_paints_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_jobs.demo", "--output", str(tmp_path)]
    command += ["--categories", "CDP_COS", "--samples", "32", "--held-out", "4", "--images", "6"]
    first = run(command, cwd=ROOT, env=dict(os.environ))
    assert first.succeeded, first.logs
    adapter = tmp_path / "training" / "adapters" / "CDP_COS"
    card = json.loads((adapter / "adapter.json").read_text())
    assert card["tokens"] == {"CDP_COS": "CDP_COS"}
    assert card["base"] == "toy"
    assert "CDP_COS background" in (adapter / "README.md").read_text()
    assert Image.open(adapter / "samples.png").size[0] > 64
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["figures"]) == {"hit_rate_min", "base_hit_rate_max", "kept_pixels_changed"}
    assert report["figures"]["kept_pixels_changed"] == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4
    for line in ("hit_rate_min:", f"report: {tmp_path}/report.html", f"figures: {tmp_path}/report.json"):
        assert line in first.logs
