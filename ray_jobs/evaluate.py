"""Measure generated pictures of a subject as DreamBooth does, or painted holes; ends with a report to look at.

    python -m ray_jobs.evaluate --real photos --generated runs/pictures --identifier sks --output runs/evaluation

DINO, CLIP-I, CLIP-T and DIV; with `--of-class` PRES, with `--lookalikes` the look-alike ranking. `--dino` and `--clip`
are hub ids or folders of weights. PSNR, SSIM, L1 and the seams of painted holes, against a data set's own photos:

    python -m ray_jobs.evaluate --data set.csv --painted runs/painted --output runs/evaluation
"""

from pathlib import Path

from inpaint.command import command
from inpaint.recipes.evaluate import EvaluatePictures, evaluate_pictures


def say(ended: tuple[Path, dict[str, float]]) -> list[str]:
    page, figures = ended
    return [*(f"{name}: {value:.4g}" for name, value in figures.items()), f"report: {page}"]


if __name__ == "__main__":
    command(evaluate_pictures, EvaluatePictures, __doc__, say=say)
