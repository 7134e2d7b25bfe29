"""Find the settings of a workload that are best for its data: many trainings, a report, and the best one's result.

    python -m ray_jobs.sweep category_lora --samples 32 --preset sd15 --data catalogue.csv --output runs/sweep

First the workload: category_lora, panel_lora, photoshoot_lora, controlnet or ddpm; then its own settings, which all
trials share, and what is searched: by default the learning rates and a LoRA's rank, or `--search` with fields' names:

    python -m ray_jobs.sweep ddpm --image-size 32 --data photos --output runs/ddpms --samples 16 --searcher optuna \
        --search learning_rate=1e-4..1e-2:log train.weight_decay=0,0.01

The best trial's adapter is in the output's `adapters/`, with `sweep.json`; the trials, with their curves and pictures,
in `report/report.html`. Run it again with `--resume` and it goes on. On the small base that comes with the package:

    python -m ray_jobs.sweep category_lora --samples 12 --data runs/demo/data/catalogue.csv --output runs/small-sweep \
        --train.samples 1440 --validation.share 0.2
"""

from inpaint.command import command
from inpaint.recipes.sweep import Sweep, defaults, sweep

if __name__ == "__main__":
    command(sweep, Sweep, __doc__, defaults=defaults, say=lambda report: report.lines)
