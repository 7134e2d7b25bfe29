"""Find products in photos by text: a row per photo, masks and overlays; photos without any are listed as skipped.

    python -m ray_jobs.find_products --data photos --products "hand bag|purse" shoe:0.4 watch --output runs/found

`--not` names what is no product. Grounding DINO and SAM by default; `--finder clipseg` is light, `--finder toy` is the
toy world's, to see it run. Run again, it looks at what is new. Photos without masks can then be trained on and painted:

    python -m ray_jobs.find_products --data photos --products shoe --hole background --csv shoes.csv --output found
    python -m ray_jobs.train_category_lora --data shoes.csv --output runs/shoes
"""

from inpaint.command import command
from inpaint.recipes.finding import FindProducts, find_products

if __name__ == "__main__":
    command(find_products, FindProducts, __doc__, say=lambda done: [done])
