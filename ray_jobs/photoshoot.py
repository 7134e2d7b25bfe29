"""Photos in, enhanced products out: each is captioned, looked at, and its products repainted, as one resumable job.

    python -m ray_jobs.photoshoot --data photos --output runs/shoot --products "hand bag|purse" shoe \
        --base stable-diffusion-v1-5/stable-diffusion-inpainting --enhance-prompt "{caption}, studio photography"

Each stage has workers of its own: `--caption-pool.*`, `--find-pool.*`, and `--actors` and its like for those who paint.
`runs/shoot/manifest.jsonl` says of every photo what became of it, and why where it was left out.
"""

from inpaint.command import command
from inpaint.recipes.photoshoot import Photoshoot, enhance_photos

if __name__ == "__main__":
    command(enhance_photos, Photoshoot, __doc__, say=lambda told: [told])
