"""Train a fleet: one CSV of many categories in, an adapter for each of them out, and one table.

    python -m ray_jobs.fleet --preset sd15 --data catalogue.csv --output runs/fleet

Several adapters are trained in one process, on one frozen base: one forward and backward for all, each with its own
rows, optimizer state, learning rates, checkpoints and end, as it would be alone. How many at once follows from the
memory there is, of which a step of one adapter is measured; the plan is printed. A category that fails stops no other;
what became of each is in the output's `fleet.csv`. Run it again with `--resume` and it does what is not done. On the
small base that comes with the package:

    python -m ray_jobs.fleet --data runs/demo/data/catalogue.csv --output runs/small-fleet
"""

from inpaint.command import command
from inpaint.recipes.fleet import Fleet, train_fleet

if __name__ == "__main__":
    command(train_fleet, Fleet, __doc__, defaults=Fleet.defaults, say=lambda report: report.lines)
