"""What reading uses of Ray Data beyond its public interface, all of it, so that another version is looked at here.

Tried on Ray 2.60 (`tests/unit/data/test_ray_internals.py` says so).
"""

import time
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

TRIED_ON = "2.60"
PAUSES_S = (0.002, 0.05)


class Pace(ExecutionCallback):
    """Lets Ray Data's scheduling loop wait after a turn that did nothing, longer after each. By itself it turns without
    a pause where training is slower than reading, and takes most of a core from it; see docs/decisions.md."""

    def __init__(self) -> None:
        self.done = 0
        self.pause = PAUSES_S[0]

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data after each turn of its loop."""
        ops = [op.metrics for op in executor._topology]
        done = sum(m.num_tasks_submitted + m.num_tasks_finished for m in ops)
        done += sum(m.num_task_outputs_generated + m.num_outputs_taken for m in ops)
        if done == self.done:
            time.sleep(self.pause)
            self.pause = min(2 * self.pause, PAUSES_S[1])
        else:
            self.pause = PAUSES_S[0]
        self.done = done


def set_pace(dataset: ray.data.Dataset) -> None:
    """Run the dataset's scheduling loop at `Pace`."""
    dataset.context.custom_execution_callback_classes = [Pace]


def take_blocks_at_once(dataset: ray.data.Dataset, blocks: int) -> None:
    """Let each turn of the loop take up to `blocks` from a task. Two, by itself, however small they are: then the
    numbers of a long run alone would take minutes."""
    dataset.context._max_num_blocks_in_streaming_gen_buffer = max(2, blocks)
