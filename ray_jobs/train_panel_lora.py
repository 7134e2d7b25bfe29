"""Train a panel LoRA: a folder of composites in, an adapter out that completes a composite from its visible panels.

    python -m ray_jobs.train_panel_lora --data-dir sheets --output-dir runs/panels

`sheets` holds `a.png` (or jpg) beside its caption `a.txt`, 2 x 2 panels each: 0 top left, 1 top right, 2 bottom left,
3 bottom right (`--grid` for others); `python -m ray_jobs.make_composites` makes such a folder. On the small SDXL base
that comes with the package, some minutes on two cores (`python -m benchmarks.panels` measures what it reaches):

    python -m ray_jobs.train_panel_lora --data-dir sheets --output-dir runs/small --model-id toy-sdxl --image-size 128 \
        --lora-rank 8 --lora-alpha 8 --learning-rate 2e-3 --num-epochs 30 --max-micro-batch 4 \
        --no-gradient-checkpointing
"""

from inpaint.command import command
from inpaint.recipes.panel_lora import TrainPanelLora, train_panels

if __name__ == "__main__":
    command(train_panels, TrainPanelLora, __doc__, say=lambda folder: [f"adapter: {folder}"])
