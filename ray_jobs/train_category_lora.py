"""Train a category LoRA: a CSV of product photos in, an adapter folder out.

    python -m ray_jobs.train_category_lora --preset sd15 --data catalogue.csv --output runs/catalogue

`--preset toy|sd15|sdxl` gives the defaults below (unset: what suits the base). `--base` takes any Stable Diffusion 1.5
or SDXL base, inpainting or not: a folder, a hub id or one `.safetensors` file. Four minutes on two cores, on the small
base that comes with the package; `python -m benchmarks.category` measures what it reaches (hit rate 0.90 or more):

    python -m ray_jobs.train_category_lora --data runs/demo/data/catalogue.csv --output runs/first
"""

from inpaint.command import command
from inpaint.recipes.category_lora import CategoryLora
from inpaint.train.run import run

if __name__ == "__main__":
    command(
        run,
        CategoryLora,
        __doc__,
        defaults=CategoryLora.defaults,
        say=lambda folders: [f"adapter: {folder}" for folder in folders],
    )
