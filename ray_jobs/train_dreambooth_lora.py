"""Train a DreamBooth LoRA: some photos of one subject in, an adapter out that knows it by a word of its own.

    python -m ray_jobs.train_dreambooth_lora --instance-dir photos --instance-prompt "a photo of sks backpack" \
        --output-dir runs/backpack --with-prior-preservation --class-prompt "a photo of a backpack"

`--base` is Stable Diffusion 1.5, SDXL or an inpainting base of either, where random holes are painted. Class pictures
are taken from `--class-dir`, and what lacks there of `--num-class-images` is made by the base. `--identifier auto`
finds a rare token for `{identifier}` in the prompt. A folder of folders trains each of them, side by side:

    python -m ray_jobs.train_dreambooth_lora --instance-dir subjects --output-dir runs/subjects --identifier auto

On the small base that comes with the package; `python -m benchmarks.dreambooth` measures what it reaches:

    python -m ray_jobs.train_dreambooth_lora --base toy --instance-dir photos --output-dir runs/small --rank 6 \
        --learning-rate 2e-3 --train-text-encoder --text-encoder-lr 2e-3 --mixed-precision fp32
"""

from inpaint.command import command
from inpaint.recipes.dreambooth_training import TrainDreambooth, train_dreambooth

if __name__ == "__main__":
    command(
        train_dreambooth,
        TrainDreambooth,
        __doc__,
        say=lambda folders: [f"adapter: {folder}" for folder in folders],
    )
