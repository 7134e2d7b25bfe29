"""Paint the holes of a CSV's or folder's photos, or of one photo; what is outside the holes stays bit for bit.

    python -m ray_jobs.paint --data set.csv --base toy --adapter ADAPTER --output runs/painted

`set.csv`: input, mask (white = paint), output, prompt, category. Run again, it goes on. Paths may be URLs. One photo:

    python -m ray_jobs.paint --image a.jpg --mask m.png --prompt "a red box on wood" --base toy --output a_painted.png

A model of one's own has masks that are black where to fill:

    python -m ray_jobs.paint --model RUN --image image.png --mask mask.png --output output.png
"""

from inpaint.command import command
from inpaint.recipes.painting import PaintPhotos, paint_photos

if __name__ == "__main__":
    # It joins or starts a cluster itself, for a data set alone.
    command(paint_photos, PaintPhotos, __doc__, cluster=False, say=lambda done: [done])
