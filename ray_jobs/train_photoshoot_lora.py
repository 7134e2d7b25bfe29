"""Train a photoshoot LoRA: a folder of product photos and their captions in, their style out, called by a tag.

    python -m ray_jobs.train_photoshoot_lora --data-dir photos --tag ppzocketv2 --output-dir runs/shoot

`photos` holds `6_handbag/a.jpg` beside its caption `a.txt`: below that folder each photo comes six times per epoch, and
without a caption is called handbag. 65 photos x 6 / 2 are then 195 steps per epoch, 1,950 in all. Pictures with it:

    python -m ray_jobs.generate --adapter runs/shoot/adapters/ppzocketv2-10 --output runs/pictures \
        --prompt 'ppzocketv2, "handbag", stylish, studio photography, product photography, <lora:ppzocketv2-10:1>'

On the small base that comes with the package, some minutes on two cores:

    python -m ray_jobs.train_photoshoot_lora --base toy --data-dir photos --tag ppzocketv2 --output-dir runs/small \
        --network-dim 6 --unet-lr 2e-3 --text-encoder-lr 2e-3 --mixed-precision fp32
"""

from inpaint.command import command
from inpaint.recipes.photoshoot_lora import TrainPhotoshootLora, train_photoshoot

if __name__ == "__main__":
    command(train_photoshoot, TrainPhotoshootLora, __doc__, say=lambda folder: [f"adapter: {folder}"])
