"""Write a caption beside each photo of a folder with BLIP: `x.txt` beside `x.jpg`, begun with an activation tag.

    python -m ray_jobs.caption --data photos --tag ppzocketv2

Captions that are there are kept; run again, it goes on where it ended. On a small GPU several captioners share it:

    python -m ray_jobs.caption --data photos --tag ppzocketv2 --precision fp16 --gpus-per-actor 0.5 --max-batch 32

The toy world's captioner, to see it run: `--captioner toy`.
"""

from inpaint.command import command
from inpaint.recipes.captioning import CaptionPhotos, caption_photos

if __name__ == "__main__":
    command(caption_photos, CaptionPhotos, __doc__, say=lambda done: [done])
