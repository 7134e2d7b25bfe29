"""Train a category LoRA: a CSV of product photos in, an adapter folder out.

    python -m ray_jobs.train_category_lora --preset sd15 --data catalogue.csv --output runs/catalogue

`--preset toy|sd15|sdxl` gives the defaults below (unset: toy for the toy base, else sd15). `--base` takes any Stable
Diffusion (XL) inpainting base: a folder or a hub id. Three minutes on two cores, on the small base that comes with the
package; `python -m benchmarks.category` measures what it reaches (hit rate 0.90 or more):

    python -m ray_jobs.train_category_lora --data runs/demo/data/catalogue.csv --output runs/first
"""

import argparse
import sys

import tyro

from inpaint.cluster import connect
from inpaint.errors import InpaintError
from inpaint.recipes.category_lora import CategoryLora, preset
from inpaint.recipes.run_category_lora import train_category_lora
from inpaint.train.trainer import stop_on_signals


def parse(arguments: list[str]) -> CategoryLora:
    """The preset's defaults (`--preset toy|sd15|sdxl`; unset: toy for the toy base, else sd15), overridden by flags."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset")
    chosen, arguments = peek.parse_known_args(arguments)
    peek.add_argument("--base", default="toy")
    name = chosen.preset or ("toy" if peek.parse_known_args(arguments)[0].base == "toy" else "sd15")
    default = preset(name, data=tyro.MISSING, output=tyro.MISSING)
    return tyro.cli(CategoryLora, description=__doc__, default=default, args=arguments)


def main() -> int:
    config = parse(sys.argv[1:])
    connect()
    with stop_on_signals():
        folders = train_category_lora(config)
    for folder in folders:
        print(f"adapter: {folder}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
