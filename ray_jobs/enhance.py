"""Repaint the products in photos with a ControlNet, and nothing else; a photo without any comes back as it is.

    python -m ray_jobs.enhance --data photos --output runs/enhanced --products "hand bag|purse" shoe \
        --base stable-diffusion-v1-5/stable-diffusion-inpainting --enhance-prompt "{product}, studio photography"

On the small models that come with the package, on toy photos (`inpaint/toy/recoloured.py` makes some):

    python -m ray_jobs.enhance --data photos --output runs/toy --products mug bottle --find.finder toy \
        --base toy --control edges --enhance-prompt "a red {product}" --guidance-scale 2

Photos that were looked at before have masks: `python -m ray_jobs.find_products --csv found.csv` writes them as a CSV,
which is enhanced without looking again: `--data found.csv`, and no `--products`.
"""

from inpaint.command import command
from inpaint.recipes.photoshoot import EnhancePhotos, enhance_photos

if __name__ == "__main__":
    command(enhance_photos, EnhancePhotos, __doc__, say=lambda told: [told])
