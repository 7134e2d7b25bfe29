"""Make composites for `train_panel_lora`: four pictures become the panels of one, its caption beside it.

    python -m ray_jobs.make_composites --data views.csv --output sheets

`views.csv`: panel0,panel1,panel2,panel3,prompt. Or one folder per panel, whose pictures belong together by their names:

    python -m ray_jobs.make_composites --folders front left right back --prompt "four views of a toy" --output sheets

Other grids: `--grid 1x4`, with as many columns or folders. Run again, it goes on.
"""

from inpaint.command import command
from inpaint.recipes.composites import MakeComposites, make_composites

if __name__ == "__main__":
    command(make_composites, MakeComposites, __doc__, say=lambda done: [done])
