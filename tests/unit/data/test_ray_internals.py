"""What is used of Ray beyond its public interface: where another version is installed, look at `ray_internals.py`."""

from types import SimpleNamespace

import pytest
import ray
import ray.data

from inpaint.data import ray_internals
from inpaint.data.ray_internals import PAUSES_S, TRIED_ON, Pace, set_pace, take_blocks_at_once
from tests.rules.sources import ROOT, modules


@pytest.mark.parametrize("module", modules("inpaint/data"), ids=str)
def test_what_is_private_to_ray_data_is_used_in_one_file(module):
    if module.name != "ray_internals.py":
        text = (ROOT / module).read_text()
        assert "._internal" not in text and "_topology" not in text and "context._" not in text


def test_the_version_is_the_one_that_was_tried():
    assert ray.__version__.startswith(f"{TRIED_ON}."), "look at every name in ray_internals.py, then change TRIED_ON"


def test_the_loop_of_ray_data_waits_after_turns_that_did_nothing(monkeypatch):
    pauses = []
    monkeypatch.setattr(ray_internals.time, "sleep", pauses.append)
    names = ("num_tasks_submitted", "num_tasks_finished", "num_task_outputs_generated", "num_outputs_taken")
    counts = SimpleNamespace(**dict.fromkeys(names, 1))
    executor = SimpleNamespace(_topology=[SimpleNamespace(metrics=counts)])
    pace = Pace()
    pace.on_execution_step(executor)
    assert pauses == []
    for _ in range(20):
        pace.on_execution_step(executor)
    assert pauses == sorted(pauses) and (pauses[0], pauses[-1]) == PAUSES_S
    for name in names:
        before = len(pauses)
        setattr(counts, name, 2)
        pace.on_execution_step(executor)
        assert len(pauses) == before, name
    pace.on_execution_step(executor)
    assert pauses[-1] == PAUSES_S[0]


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_has_what_is_set():
    """And calls the pace, whose counts move: it would wait for ever longer were they always the same."""
    dataset = ray.data.range(8, override_num_blocks=8)
    assert hasattr(dataset.context, "custom_execution_callback_classes")
    assert dataset.context._max_num_blocks_in_streaming_gen_buffer >= 1
    seen = []

    class Watched(Pace):
        def on_execution_step(self, executor):
            super().on_execution_step(executor)
            seen.append(self.done)

    set_pace(dataset)
    assert dataset.context.custom_execution_callback_classes == [Pace]
    dataset.context.custom_execution_callback_classes = [Watched]
    take_blocks_at_once(dataset, 5)
    assert dataset.context._max_num_blocks_in_streaming_gen_buffer == 5
    assert sorted(row["id"] for row in dataset.iter_rows()) == list(range(8))
    assert seen[-1] >= 16, "eight tasks were begun and ended"
