"""What each job is for, which options it reads, and what must exist before it starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lasaft.config import MUSDB18_SOURCES
from lasaft.errors import Problem, no_effect
from lasaft.options import Option
from pipeline.config import RunConfig
from pipeline.config.data import SONG_FORM, SYNTHETIC_COUNTS
from pipeline.config.evaluate import set_problems
from pipeline.config.folders import RunFolder, added_runs
from pipeline.config.roles import names
from pipeline.config.run import split_problems, synthetic_songs, without_effect
from pipeline.search.problems import idle_in_trials, search_problems
from pipeline.tracking.address import store_problems
from pipeline.training.loop.identity import began_with, has_begun

STEPS = ("songs", "preprocess", "search", "train", "evaluate", "report")
_SYNTHETIC = (*SYNTHETIC_COUNTS, "synthetic_seconds", "synthetic_seed")
_CACHE = ("cache_dir", "cache_gb")
_SONGS = ("musdb_root", "musdb_is_wav", *SONG_FORM, "dev_mode", *_SYNTHETIC)
_SPECTROGRAM = (
    "sources", "sample_rate", "n_fft", "hop_length", "spec_type", "input_channels",
)  # fmt: skip
_SHARDS = ("shards_dir", *_CACHE)
_DRAWING = names("draw", "task", section="data")


@dataclass(frozen=True)
class Flag:
    """What a job does instead, where it is told to by a word without a value.

    Args:
        summary: one line for the help.
        uses: names of the groups and options that it reads then.
        needs: what is missing before it can start.
    """

    summary: str
    uses: tuple[str, ...]
    needs: Callable[[RunConfig], Iterator[Problem]]


@dataclass(frozen=True)
class Job:
    """One job.

    Args:
        summary: one line for its help.
        uses: names of the groups and options that it reads.
        usual: the options that its first help page shows.
        needs: what is missing before it can start.
        idle: options that do nothing in this job with the others chosen, each with the reason; None
            says that one does something here after all.
        flags: the words without a value; of several given, the last one in this order counts.
        suffix: the flag that counts, for messages.
    """

    summary: str
    uses: tuple[str, ...]
    usual: tuple[str, ...]
    needs: Callable[[RunConfig], Iterator[Problem]]
    idle: Callable[[RunConfig], Mapping[str, Problem | None]] = lambda run: {}
    flags: Mapping[str, Flag] = field(default_factory=dict)
    suffix: str = ""

    def reads(self, option: Option) -> bool:
        """Whether the job does something with ``option``."""
        return option.name in self.uses or option.section in self.uses

    def told(self, given: Collection[str]) -> Job:
        """Return the job as it is with some of its flags."""
        for name in reversed(list(self.flags)):
            if name in given:
                flag = self.flags[name]
                return replace(self, uses=flag.uses, needs=flag.needs, suffix=f" --{name}")
        return self


def steps_of(run: RunConfig) -> list[str]:
    """Return the steps that jobs.run has with these options."""
    left_out = set() if synthetic_songs(run) else {"songs"}
    left_out |= {"search"} if run.search.space is None else set()
    return [step for step in STEPS if step not in left_out]


def _needs_songs(run: RunConfig, *others: str) -> Iterator[Problem]:
    """Yield what is wrong with the songs; ``others`` are options that can do without them."""
    root = run.data.musdb_root
    if root is None:
        if not synthetic_songs(run):
            allowed = (
                "the folder of MUSDB18 (with train and test in it), or synthetic songs "
                "(synthetic_train, synthetic_valid, synthetic_test; or --preset demo)"
            )
            yield Problem("musdb_root", "None", allowed, others=(*SYNTHETIC_COUNTS, *others))
        elif sorted(run.model.sources) != sorted(MUSDB18_SOURCES):
            reason = f"allowed with synthetic songs: {', '.join(MUSDB18_SOURCES)}"
            given = ", ".join(run.model.sources)
            yield Problem("sources", given, reason=reason, others=("musdb_root", *SYNTHETIC_COUNTS))
    elif isinstance(root, Path) and not root.is_dir():
        reason = f"{root} {'is no folder' if root.exists() else 'does not exist'}"
        allowed = "the folder of MUSDB18 (with train and test)"
        yield Problem("musdb_root", reason=reason, allowed=allowed)


def _needs_shards(run: RunConfig) -> Iterator[Problem]:
    shards, address = RunFolder.of(run).shards, RunFolder.of(run).shards_address
    if address is None and not (shards / "manifest.json").is_file():
        reason = (
            f"{shards} holds no shards (no manifest.json); make them with "
            f"python -m jobs.preprocess --shards_dir {shards}"
        )
        others = ("output_dir",) if run.data.shards_dir is None else ()
        yield Problem("shards_dir", reason=reason, others=others)
    yield from _needs_start(run)
    yield from store_problems(run)


def _needs_start(run: RunConfig) -> Iterator[Problem]:
    """Yield why a training that has not begun cannot begin."""
    start = run.train.resume_from_checkpoint
    folder = RunFolder.of(run)
    if has_begun(folder) and (start is None or began_with(folder) == str(start)):
        return  # it goes on from its own state, or has ended
    if run.train.auto_lr_schedule and (idle := without_effect(run).get("auto_lr_schedule")):
        yield idle
    if start is None or (start.suffix == ".ckpt" and start.is_file()):
        return
    if not (start / "config.json").is_file():
        more = ", or a .ckpt file of the authors"
        yield _no_checkpoint("resume_from_checkpoint", start, more, "output_dir")


def _no_checkpoint(option: str, path: Path, more: str, *others: str) -> Problem:
    allowed = f"a folder with weights.safetensors and config.json{more}"
    return Problem(option, reason=f"{path} is no checkpoint", allowed=allowed, others=others)


def needs_estimates(run: RunConfig) -> Iterator[Problem]:
    """Yield what an evaluation misses: songs, and a checkpoint, finished estimates or scores."""
    yield from store_problems(run)
    if run.evaluate.scores_dir is None:
        yield from _needs_songs(run, "scores_dir")
    yield from _needs_system(run, RunFolder.of(run).evaluated)


def _needs_system(run: RunConfig, checkpoint: Path | None) -> Iterator[Problem]:
    """Yield what is missing of that which is scored; ``checkpoint`` None: it is still to come."""
    given = RunFolder.of(run).given
    scores, estimates = given.get("scores_dir"), given.get("estimates_dir")
    if scores is not None:
        if not scores.is_dir():
            reason, allowed = f"{scores} is no folder", "one with <split>/<track>.json"
            yield Problem("scores_dir", reason=reason, allowed=allowed)
    elif estimates is not None:
        if not estimates.is_dir():
            reason, allowed = f"{estimates} is no folder", "<split>/<track>/<source>.wav"
            yield Problem("estimates_dir", reason=reason, allowed=allowed)
    elif run.evaluate.separator is not None:
        pass
    elif checkpoint is not None and not (checkpoint / "config.json").is_file():
        others = ("estimates_dir", "scores_dir", "separator")
        if run.evaluate.checkpoint is None:
            others += ("output_dir",)
        yield _no_checkpoint("checkpoint", checkpoint, ", as training makes it", *others)


def _needs_scores(run: RunConfig) -> Iterator[Problem]:
    yield from store_problems(run)
    for option, folders in {"output_dir": [RunFolder.of(run)], "add": added_runs(run)}.items():
        for folder in folders if option == "add" or run.add is None else ():
            if folder.address is None and not folder.scores.is_dir():
                reason = f"{folder.root} holds no scores"
                allowed = "the output_dir of a run that was evaluated (python -m jobs.evaluate)"
                yield Problem(option, reason=reason, allowed=allowed)


def _needs_search(run: RunConfig) -> Iterator[Problem]:
    yield from search_problems(run)
    yield from _needs_shards(run)


def needs_songs_and_start(run: RunConfig) -> Iterator[Problem]:
    """Yield what a run from songs to a trained network misses."""
    yield from _needs_songs(run)
    if RunFolder.of(run).mixes():
        allowed = "a folder that holds shards alone, such as <output_dir>/shards"
        others = ("output_dir", "musdb_root")
        yield Problem("shards_dir", str(RunFolder.of(run).shards), allowed, others=others)
    yield from _needs_start(run)
    yield from store_problems(run)
    evaluated = RunFolder.of(run).evaluated
    made_here = evaluated == RunFolder.of(run).checkpoint
    yield from _needs_system(run, None if made_here else evaluated)
    sources = run.model.sources
    yield from set_problems(run.evaluate.sums, run.train.target_names or sources, sources)
    if run.search.space is not None:
        yield from search_problems(run)


def _needs_run(run: RunConfig) -> Iterator[Problem]:
    yield from needs_songs_and_start(run)
    if synthetic_songs(run):
        counts = {name.removeprefix("synthetic_"): name for name in SYNTHETIC_COUNTS}
        yield from split_problems(run, {s: getattr(run.data, n) for s, n in counts.items()})


def _needs_nothing(run: RunConfig) -> Iterator[Problem]:
    yield from ()


_LISTENING = ("sources", "sample_rate", "spec_type", "input_channels")


def _said_by_the_checkpoint(run: RunConfig) -> dict[str, Problem]:
    if run.evaluate.scores_dir is not None:
        cluster = ("address", "num_cpus", "task_memory", "wait_for_nodes_minutes")
        unread = (*_SONGS, *_LISTENING, "target_names", *cluster)
        return no_effect(unread, "scores_dir holds finished scores", "scores_dir")
    if run.evaluate.estimates_dir is not None or run.evaluate.separator is not None:
        return {}
    others = ("estimates_dir", "separator", "scores_dir")
    return no_effect(_LISTENING, "the checkpoint says it", *others)


# All of the group but filed_mode, which jobs.main alone reads.
_DATA = (*_SONGS, *_SHARDS, "max_frames_per_shard", "phases", *_DRAWING)
_EVERYTHING = ("output_dir", "model", *_DATA, "train", "evaluate", "tracking", "cluster")

# In the order of the workflow: look first, do all of it, or step by step.
JOBS: Mapping[str, Job] = {
    "doctor": Job(
        "says whether everything that a run needs is there",
        _EVERYTHING,
        ("musdb_root", "output_dir", "shards_dir", "gpus", "address"),
        _needs_nothing,
    ),
    "run": Job(
        "everything: songs, shards, training, scores, report; what is unchanged is skipped",
        (*_EVERYTHING, "search"),
        ("musdb_root", "output_dir", "batch_size", "max_epochs", "lr", "gpus", "precision", "seed"),
        _needs_run,
        idle_in_trials,
    ),
    "preprocess": Job(
        "turns songs into shards of spectrograms",
        (
            "output_dir", *_SONGS, *_SPECTROGRAM, *_SHARDS, "max_frames_per_shard",
            "phases", "cluster",
        ),
        ("musdb_root", "shards_dir", "output_dir", "n_fft", "hop_length", "dev_mode", "num_cpus"),
        _needs_songs,
        flags={
            "verify": Flag(
                "reads every byte of the shards again, makes nothing; 1 if one is damaged",
                ("output_dir", "shards_dir"),
                _needs_nothing,
            ),
            "repair": Flag(
                "the same, then builds the damaged shards alone from musdb_root, and verifies",
                ("output_dir", "shards_dir", "musdb_root", "musdb_is_wav", "layout", "cluster"),
                _needs_nothing,
            ),
        },
    ),
    "tune": Job(
        "searches for the best settings with many small trainings; an interrupted search goes on",
        ("output_dir", "model", *_SHARDS, *_DRAWING, "train", "search", "tracking", "cluster"),
        (
            "shards_dir", "output_dir", "space", "searcher", "scheduler", "num_trials",
            "trial_epochs", "seeds", "max_concurrent_trials",
        ),
        _needs_search,
        idle_in_trials,
    ),
    "train": Job(
        "trains a network on shards; an interrupted training goes on",
        ("output_dir", "model", *_SHARDS, *_DRAWING, "train", "tracking", "cluster"),
        ("shards_dir", "output_dir", "batch_size", "max_epochs", "lr", "gpus", "precision", "seed"),
        _needs_shards,
    ),
    "evaluate": Job(
        "separates whole songs with a trained network and scores them (BSS Eval v4)",
        (
            "output_dir", *_SONGS, *_CACHE, *_LISTENING, "target_names", "evaluate", "tracking",
            "cluster",
        ),
        ("musdb_root", "checkpoint", "output_dir", "split", "overlap_ratio", "save_estimates"),
        needs_estimates,
        _said_by_the_checkpoint,
    ),
    "report": Job(
        "makes tables, plots and players from scores",
        ("output_dir", "add", "split", "checkpoint", "report_audio", "single_file", "tracking"),
        ("output_dir", "add", "split", "report_audio", "single_file"),
        _needs_scores,
    ),
    "main": Job(
        "the command line of the LaSAFT README: trains a network, or evaluates a trained one",
        ("model", "data", "train", "evaluate", "tracking", "cluster", "readme"),
        (
            "mode", "run_id", "musdb_root", "musdb_is_wav", "filed_mode", "target_name",
            "batch_size", "max_epochs", "lr", "gpus", "precision", "ckpt_root_path", "epoch",
        ),
        _needs_nothing,
    ),
}  # fmt: skip
