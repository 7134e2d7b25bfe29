"""Paint panels of a composite from its visible ones, which come back bit for bit, as gutters and borders do.

    python -m ray_jobs.paint_panels --lora-path runs/panels/adapters/panels --input-image sheet.png \
        --prompt "four views of a robot" --panels-to-inpaint 2 3 --save-comparison

Panels: 0 top left, 1 top right, 2 bottom left, 3 bottom right. Many composites, in batches on a Ray cluster (run again,
it goes on):

    python -m ray_jobs.paint_panels --lora-path runs/panels/adapters/panels --data sheets --output-dir runs/completed
"""

from inpaint.command import command
from inpaint.recipes.panel_painting import PaintPanels, paint_panels

if __name__ == "__main__":
    # It joins or starts a cluster itself, for a data set alone.
    command(paint_panels, PaintPanels, __doc__, cluster=False, say=lambda done: [done])
