"""Settings: what is refused and with which way out, and the arithmetic of samples."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint.errors import InpaintError
from inpaint.train.settings import Offload, Optimizer, Precision, RateSchedule, TrainSettings, plain


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"global_batch": 2, "workers": 3}, "has work for no more"),
        ({"workers": (3, 2)}, "fewest, most"),
        ({"zero_stage": 4}, "give 0, 1, 2 or 3"),
        ({"zero_stage": 0, "offload": Offload.OPTIMIZER}, "offload needs"),
        ({"zero_stage": 2, "offload": Offload.PARAMETERS}, "zero_stage 3, not 2; or offload optimizer"),
        ({"zero_stage": 0, "precision": Precision.FP16}, "or use bf16"),
        ({"zero_stage": 1, "optimizer": Optimizer.ADAFACTOR}, "give zero_stage 0"),
        ({"zero_stage": 3, "optimizer": Optimizer.PRODIGY}, "give zero_stage 0"),
        ({"zero_stage": 0, "precision": Precision.FP16, "optimizer": Optimizer.ADAMW_8BIT}, "or use bf16"),
        ({"warmup": 1.0}, "share of the samples"),
        ({"keep_checkpoints": 1}, "at least 2"),
        ({"samples": 0}, "nothing to train on"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"ema_halflife": -5}, "ema_halflife is -5"),
        ({"workers": 0}, "from 1 up"),
        ({"max_micro_batch": 0}, "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(wrong: dict, message: str) -> None:
    with pytest.raises(InpaintError, match=message):
        TrainSettings(**wrong)


@given(rows=st.integers(1, 500), epochs=st.floats(0.1, 5), batch=st.integers(1, 40))
def test_a_run_is_whole_global_batches_and_covers_its_epochs(rows: int, epochs: float, batch: int) -> None:
    total = TrainSettings(epochs=epochs, global_batch=batch, workers=1).total_samples(rows)
    assert total % batch == 0
    assert total - batch < epochs * rows <= total or total == batch


def test_a_default_range_of_workers_is_cut_to_the_batch() -> None:
    assert TrainSettings(global_batch=4).worker_range == (1, 4)
    assert TrainSettings(global_batch=64, workers=3).worker_range == (3, 3)


def test_what_may_change_on_a_resume_is_said_at_the_field() -> None:
    settings = TrainSettings()
    fixed = plain(settings, fixed_only=True)
    assert plain(replace(settings, workers=2, zero_stage=3, samples=7), fixed_only=True) == fixed
    assert plain(replace(settings, global_batch=17), fixed_only=True) != fixed
    assert plain(replace(settings, seed=1), fixed_only=True) != fixed


@pytest.mark.parametrize("schedule", list(RateSchedule))
def test_rates_rise_over_the_warm_up_then_follow_the_schedule(schedule: RateSchedule) -> None:
    settings = TrainSettings(schedule=schedule, warmup=0.25, global_batch=10)
    scales = [settings.lr_scale(samples, 400) for samples in range(0, 400, 10)]
    assert scales[:11] == sorted(scales[:11])
    assert 0 < scales[0] < 0.2
    assert max(scales) == pytest.approx(1.0)
    if schedule is RateSchedule.CONSTANT:
        assert scales[-1] == 1.0
    else:
        assert scales[10:] == sorted(scales[10:], reverse=True)
        assert scales[-1] < 0.05


def test_schedules_do_not_depend_on_the_batch() -> None:
    small = TrainSettings(global_batch=8, warmup=0.0)
    large = TrainSettings(global_batch=64, warmup=0.0)
    assert small.lr_scale(3200, 6400) == large.lr_scale(3200, 6400)
