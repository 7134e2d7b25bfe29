"""What exports are worth: how far each format's pictures are from ours, what an adapter costs, and ONNX Runtime's time.

    python -m benchmarks.exports

Exports a shipped adapter of each toy base in every format, in fp32 and fp16. Bars: the largest difference of a picture
in [0, 1], before paste-back, fp32 <= 1e-3 (`max_difference_diffusers`, `_kohya`, `_merged`, `_onnx`, `_onnx_merged`),
fp16 <= 2e-2; `onnx_adapter_size_ratio` <= 1.2, an ONNX adapter's bytes over those of its safetensors files, the largest
of both bases; `onnx_time_ratio` and `onnx_merged_time_ratio` <= 1.0, painting time of ONNX Runtime, the adapter beside
the base and in its weights, over that of PyTorch, on the same threads, in turn, the larger of both bases.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.harness import emit, paired_ratio, progress
from inpaint.export.onnx.adapter import SUFFIX
from inpaint.export.onnx.painter import OnnxPainter
from inpaint.paint.batch import read_models
from inpaint.recipes.export_formats import Kind
from inpaint.recipes.exporting import ExportAdapter, export, fixed_set, paint_settings
from inpaint.serve.apps.paint import SHIPPED_ADAPTERS

KINDS: tuple[Kind, ...] = ("diffusers", "kohya", "merged", "onnx", "onnx_merged")
ADAPTERS = {"toy": "CDP_FOOD", "toy-sdxl": "panels"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    bases: tuple[str, ...] = tuple(ADAPTERS)
    precisions: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")
    steps: int = 10
    rounds: int = 5
    """Of timing; the median ratio counts."""
    threads: int = len(os.sched_getaffinity(0))


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    differences: dict[str, dict[str, float]] = {}
    sizes, times, merged_times, loads, megabytes = {}, {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for base in settings.bases:
            adapter = SHIPPED_ADAPTERS[base] / ADAPTERS[base]
            for precision in settings.precisions:
                progress(f"exporting {adapter.name} of {base} in {precision}")
                config = ExportAdapter(
                    adapter=str(adapter),
                    to=KINDS,
                    output=str(Path(temporary, base, precision)),
                    precision=precision,
                    steps=settings.steps,
                )
                done = export(config)
                differences[f"{base} {precision}"] = {kind: one.parity.largest for kind, one in done.items()}
            exported, merged = (Path(temporary, base, "fp32", kind) for kind in ("onnx", f"onnx_merged/{adapter.name}"))
            own = sum(file.stat().st_size for file in adapter.glob("*.safetensors"))
            sizes[base] = (exported / f"{adapter.name}{SUFFIX}").stat().st_size / own
            megabytes[base] = {file.name: file.stat().st_size / 1e6 for file in exported.iterdir()}
            loads[base] = load_seconds(exported, adapter.name)
            times[base] = time_ratio(settings, adapter, exported, adapter.name)
            merged_times[base] = time_ratio(settings, adapter, merged)
            progress(f"{base}: {differences}, size {sizes[base]:.3f}, time {times[base]}, merged {merged_times[base]}")
    exact = [found for name, found in differences.items() if name.endswith("fp32")]
    figures = {f"max_difference_{kind}": max(found[kind] for found in exact) for kind in KINDS}
    figures |= {
        "onnx_adapter_size_ratio": max(sizes.values()),
        "onnx_time_ratio": max(ratio for ratio, _ in times.values()),
        "onnx_merged_time_ratio": max(ratio for ratio, _ in merged_times.values()),
    }
    emit(
        "exports",
        figures,
        differences=differences,
        size_ratios=sizes,
        time_ratios=times,
        merged_time_ratios=merged_times,
        onnx_megabytes=megabytes,
        adapter_load_seconds=loads,
        threads=settings.threads,
    )


def load_seconds(folder: Path, name: str) -> float:
    """Of one adapter more beside a loaded base."""
    painter = OnnxPainter(folder)
    return seconds(lambda: painter.load(name, folder / f"{name}{SUFFIX}"))


def time_ratio(settings: Settings, adapter: Path, folder: Path, beside: str | None = None) -> tuple[float, list[float]]:
    """ONNX Runtime's time over PyTorch's for one picture, in turn: the median, and all. Args: beside: the adapter whose
    file lies in the folder."""
    models = read_models(paint_settings(ExportAdapter(adapter=str(adapter), steps=settings.steps)))
    (request,) = fixed_set(models, 1)
    ours = models.painter("cpu", 1)
    files = {} if beside is None else {beside: folder / f"{beside}{SUFFIX}"}
    theirs = OnnxPainter(folder, adapters=files, threads=settings.threads)

    def by_onnx() -> None:
        what = request.image, request.hole, request.prompt
        theirs.paint_raw(*what, adapter=beside, seed=request.seed, steps=settings.steps)

    def by_torch() -> None:
        ours.paint_raw([request])

    for warm_up in (by_onnx, by_torch):
        warm_up()
    return paired_ratio(lambda: seconds(by_onnx), lambda: seconds(by_torch), settings.rounds)


def seconds(work: Callable[[], object]) -> float:
    """That it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
