"""Make pictures from prompts alone, with a base or an adapter; run again, it makes what is missing.

    python -m ray_jobs.generate --adapter ADAPTER --prompts prompts.txt --n 4 --output runs/pictures

One prompt, to see it run:

    python -m ray_jobs.generate --base toy --prompt "a red box on wood" --output runs/pictures
"""

from inpaint.command import command
from inpaint.recipes.generate import GeneratePictures, generate_pictures

if __name__ == "__main__":
    command(generate_pictures, GeneratePictures, __doc__, say=lambda done: [done])
