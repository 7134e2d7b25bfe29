"""Optuna's suggestions (the extra `optuna`), from the records of a sweep alone: nothing of Optuna's is kept."""

import warnings
from collections.abc import Mapping
from typing import Any

from inpaint.recipes.sweep_space import Choice, Settings, Space
from inpaint.train.trials import Trial, TrialState


def suggested(
    space: Space, number: int, trials: Mapping[int, Trial], metric: str, *, minimise: bool, seed: int
) -> Settings:
    """The settings of a new trial by the tree-structured Parzen estimator (Bergstra et al. 2011), from all others:
    those that run count as bad, so that no two go the same way; those stopped early by what they had reached."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed + number, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="minimize" if minimise else "maximize", sampler=sampler)
    distributions = {name: _distribution(kind) for name, kind in space.items()}
    for trial in trials.values():
        study.add_trial(_known(trial, metric, distributions))
    asked = study.ask(distributions)
    return {name: asked.params[name] for name in space}


def _distribution(kind: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(kind, Choice):
        return CategoricalDistribution(kind.values)
    if kind.whole:
        return IntDistribution(int(kind.low), int(kind.high), log=kind.log)
    return FloatDistribution(kind.low, kind.high, log=kind.log)


def _known(trial: Trial, metric: str, distributions: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState as State
    from optuna.trial import create_trial

    curve = trial.curve(metric)
    states = {TrialState.FINISHED: State.COMPLETE, TrialState.STOPPED: State.PRUNED, TrialState.RUNNING: State.RUNNING}
    state = states.get(trial.state, State.FAIL) if curve or trial.state is TrialState.RUNNING else State.FAIL
    return create_trial(
        state=state,
        value=curve[-1][1] if state is State.COMPLETE else None,
        params=trial.settings,
        distributions=dict(distributions),
        intermediate_values=dict(curve),
    )
