"""What each option decides, and what follows from it: identities, recipes, what a search varies.

An option says its role where it is declared (``option(..., role="way")``); nothing else lists
options by what they decide.

======== =================================================== ======== ====== ======= ===========
role     what the option decides                             identity recipe search  step
======== =================================================== ======== ====== ======= ===========
result   what is computed                                    yes      yes    varies  begins anew
draw     which windows training draws                        yes      yes    varies  begins anew
task     what is learnt and how it is judged                 yes      yes    shares  begins anew
shards   what a network needs of its shards                  yes      yes    fixed   begins anew
seed     the seed of weights and draws                       yes      no     repeats begins anew
ending   when training ends                                  no       yes    shares  goes on
limit    what the work may cost                              no       no     shares  goes on
songs    which songs there are, and how shards are cut       by hash  by hash        (preprocess)
way      how the work is done, on what, what is shown        no       no             no
place    where things lie                                    no       no             no
======== =================================================== ======== ====== ======= ===========

*identity*: a training goes on only where these are the same. *recipe*: networks that share it and
differ in the seed are one row of the leaderboard. *search*: what the trials of a search may vary.
*step*: what another value does to a finished step of ``jobs.run``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lasaft.config import ModelConfig
from lasaft.files import file_sha256
from lasaft.options import Option, options_of
from pipeline.config.run import RunConfig

ROLES = ("result", "draw", "task", "shards", "seed", "ending", "limit", "songs", "way", "place")
_IDENTITY = ("result", "draw", "task", "shards", "seed")
_RECIPE = ("result", "draw", "task", "shards", "ending")
_SEARCHED = ("result", "draw")
# Another value of these never makes finished work another work.
_FREE = ("ending", "limit", "way", "place")
_TRAINING = ("model", "data", "train")
# A checkpoint that training began with may be left out when it goes on.
RESUME = "resume_from_checkpoint"
# What an option stands for, by the name that it has in a record: where both sides of a comparison
# know it, it counts instead of the option's value.
STANDS_FOR = {
    RESUME: f"weights of {RESUME}", "space": "content of space", "searcher": "searcher in use",
    "musdb_is_wav": "layout of songs",
}  # fmt: skip

Flat = Mapping[str, Any]


@functools.cache
def all_options() -> dict[str, Option]:
    """Return every option of a run by its name."""
    return options_of(RunConfig)


def names(*roles: str, section: str | None = None) -> list[str]:
    """Return the options with these roles, of one group or of all, in the order of the help."""
    return [
        option.name
        for option in all_options().values()
        if option.role in roles and section in (None, option.section)
    ]


def values(config: RunConfig, section: str, *roles: str) -> dict[str, Any]:
    """Return the options of one group with these roles and their values, as JSON has them."""
    chosen = set(names(*roles, section=section))
    return getattr(config, section).model_dump(mode="json", include=chosen)


def identity(config: RunConfig) -> dict[str, Any]:
    """Return all options that decide what a training computes, by dotted name, as JSON has them."""
    flat = {
        f"{section}.{name}": value
        for section in _TRAINING
        for name, value in values(config, section, *_IDENTITY).items()
    }
    if config.data.draw == "coverage":
        flat["data.draw"] = "coverage of targets"  # trainings of before drew otherwise
    if config.train.lr_schedule == "cosine":
        flat["train.max_epochs"] = config.train.max_epochs  # the rate of every step depends on it
    if (start := config.train.resume_from_checkpoint) is not None:
        file = start / "weights.safetensors" if start.is_dir() else start
        flat |= {STANDS_FOR[RESUME]: file_sha256(file)} if file.is_file() else {}
    return flat


def is_searched(option: Option) -> bool:
    """Return whether the trials of a search may differ in ``option``."""
    return option.section in _TRAINING and option.role in _SEARCHED


def recipe_of(provenance: Mapping[str, Any]) -> str | None:
    """Return a hash that trainings share that differ in their seed only.

    Args:
        provenance: of a checkpoint; the songs count by the hash of their shards.

    Returns:
        None where the record does not say how the network was trained.
    """
    config, data = provenance.get("config"), provenance.get("data_hash")
    if not isinstance(config, Mapping) or data is None:
        return None
    counted = set(names(*_RECIPE))
    # An option that the program has learnt since had its default.
    parts = {
        section: values(RunConfig(), section, *_RECIPE)
        | {n: v for n, v in config.get(section, {}).items() if n in counted}
        for section in _TRAINING
    }
    text = json.dumps([parts, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Change:
    """An option or an input of finished work that has another value now."""

    name: str
    before: Any
    now: Any


def changes(before: Flat, now: Flat, config: RunConfig) -> list[Change]:
    """Return what makes recorded work another work than the one that is wanted now.

    An option that only the record has is compared with its value in ``config``, unless it decides
    no result any more; one that the program has learnt since had its default. None is the same as
    the value that it becomes. What is no option (a hash, a version) counts where both sides have
    it.

    Args:
        before: the recorded options and inputs by name, dotted or bare.
        now: those of today.
        config: every option of today.
    """
    before, now = _by_leaf(before), _by_leaf(now)
    for name, meaning in STANDS_FOR.items():
        if not (meaning in before and meaning in now):
            continue
        meanings = [side.pop(meaning) for side in (before, now)]
        if meanings[0] == meanings[1]:
            before[name] = now[name] = None
        elif before.get(name) == now.get(name):
            before[name], now[name] = (f"{now.get(name)} ({text[:12]})" for text in meanings)
    compared = []
    for name in sorted(before.keys() | now.keys()):
        option = all_options().get(name)
        if option is None and not (name in before and name in now):
            continue
        if option is not None and name not in now:
            if option.role in _FREE:
                continue
            now[name] = _value(config, option)
        if option is not None and name not in before:
            before[name] = _value(RunConfig(), option)
        compared.append(name)
    was, becomes = _resolved(before, config), _resolved(now, config)
    return [
        Change(name, before[name], now[name])
        for name in compared
        if before[name] != now[name] and was[name] != becomes[name]
    ]


def _resolved(flat: Flat, config: RunConfig) -> Flat:
    """Return ``flat`` with what None becomes in its place, as far as options say it."""
    tree = config.model.model_dump(mode="json")
    recorded = {name: flat[name] for name in tree.keys() & flat.keys()}
    try:
        model = ModelConfig.model_validate_json(json.dumps(tree | recorded))
    except ValidationError:
        return flat  # a network that is refused today
    epochs = flat.get("max_epochs", config.train.max_epochs)
    usual = {"target_names": list(model.sources), "trial_epochs": epochs}
    found = model.resolved | {n: v for n, v in usual.items() if flat.get(n) is None}
    return {**flat, **{name: found[name] for name in found.keys() & flat.keys()}}


def _by_leaf(flat: Flat) -> dict[str, Any]:
    return {name.rpartition(".")[2]: value for name, value in flat.items()}


def _value(config: RunConfig, option: Option) -> Any:
    group = getattr(config, option.section) if option.section else config
    return group.model_dump(mode="json", include={option.name})[option.name]
