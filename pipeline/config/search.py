"""The settings of a search: what is tried, how it is chosen, what it may cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import model_validator

from lasaft.config import Settings, option
from lasaft.errors import Problem, no_effect, refuse

# What a search can be about, and whether more of it is better.
OBJECTIVES = {"sdr": True, "val_loss": False, "parameters": False, "seconds": False}
# These are known after every epoch, so that a scheduler can stop a trial by them.
WATCHED = ("sdr", "val_loss")


class SearchConfig(Settings):
    """A search over options: space, searcher, scheduler, budget, resources of a trial."""

    space: str | None = option(
        None, "what is searched: one of --help spaces, or a YAML file", min_length=1
    )
    searcher: Literal["grid", "random", "optuna"] | None = option(
        None,
        "how trials are chosen (None: grid if all are choices and no num_trials is given, "
        "else random)",
    )
    scheduler: Literal["none", "asha", "median"] = option("none", "how weak trials are ended early")
    objectives: tuple[str, ...] = option(
        ("sdr",), "sdr or val_loss first; more of them (parameters, seconds) give a Pareto front"
    )
    num_trials: int | None = option(
        None,
        "budget in trials (None: the whole grid, else 12 if no other budget is given)",
        ge=1,
        le=9999,
        role="limit",
    )
    trial_epochs: int | None = option(None, "epochs of one trial (None: max_epochs)", ge=1)
    total_epochs: int | None = option(None, "budget in epochs, over all trials", ge=1, role="limit")
    max_hours: float | None = option(
        None, "budget in hours, over all interruptions", gt=0, role="limit"
    )
    max_gpu_hours: float | None = option(
        None, "budget in hours of training x GPUs of a trial", gt=0, role="limit"
    )
    grace_epochs: int = option(1, "asha, median: no trial ends before so many epochs", ge=1)
    reduction_factor: int = option(3, "asha: one in so many goes on at each rung", ge=2, le=16)
    seeds: int = option(
        0, "train the top settings again with so many new seeds", ge=0, le=99, role="limit"
    )
    top_settings: int = option(
        3, "how many settings are trained again with new seeds", ge=1, le=99, role="limit"
    )
    search_seed: int = option(0, "seed of what the searcher draws", ge=0)
    max_concurrent_trials: int | None = option(
        None, "trials at the same time (None: as many as fit)", ge=1, role="way"
    )

    trial_gpus: float | None = option(
        None, "share of a GPU for a one-process trial (None: gpus)", gt=0, le=1, role="way"
    )

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        refuse(_problems(self))
        return self


def _problems(search: SearchConfig) -> Iterator[Problem]:
    names = search.objectives
    unknown = [name for name in names if name not in OBJECTIVES]
    for name in unknown:
        yield Problem("objectives", repr(name), ", ".join(OBJECTIVES))
    wrong = not names or names[0] not in WATCHED or len(set(names)) < len(names)
    if wrong and not unknown:
        yield Problem("objectives", ", ".join(names), "sdr or val_loss first, each once")


def search_without_effect(search: SearchConfig) -> dict[str, Problem]:
    """Return the search's options that do nothing with the others chosen, each with the reason."""
    if search.space is None:
        names = set(SearchConfig.model_fields) - {"space"}
        return no_effect(names, "no space says what to search", "space")
    idle: dict[str, Problem] = {}
    if search.scheduler == "none":
        idle |= no_effect(["grace_epochs"], "scheduler none ends no trial early", "scheduler")
    if search.scheduler != "asha":
        idle |= no_effect(["reduction_factor"], f"scheduler is {search.scheduler}", "scheduler")
    if not search.seeds:
        idle |= no_effect(["top_settings"], "seeds is 0, so nothing is trained again", "seeds")
    if search.searcher == "grid":
        idle |= no_effect(["search_seed"], "a grid draws nothing", "searcher")
    return idle
