"""What each job is for, which options it reads, and what must exist before it starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.config import RunConfig
from pipeline.config.data import SYNTHETIC_COUNTS
from pipeline.config.folders import RunFolder
from pipeline.config.options import Option
from pipeline.config.run import synthetic_songs
from pipeline.tracking.address import store_problems
from pipeline.training.loop.identity import has_begun

_SYNTHETIC = (*SYNTHETIC_COUNTS, "synthetic_seconds", "synthetic_seed")
_SONGS = ("musdb_root", "musdb_is_wav", "dev_mode", *_SYNTHETIC)
_SPECTROGRAM = (
    "sources", "sample_rate", "n_fft", "hop_length", "spec_type", "input_channels",
)  # fmt: skip
_SHARDS = ("shards_dir", "cache_dir", "cache_gb")
_DRAWING = (
    "draw", "remix_probability", "gain_probability", "gain_db", "polarity_probability",
    "channel_swap_probability", "mixup_probability", "mixup_share", "val_mixture",
)  # fmt: skip


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
    needs: Callable[[RunConfig], Iterator[str]]


@dataclass(frozen=True)
class Job:
    """One job.

    Args:
        summary: one line for its help.
        uses: names of the groups and options that it reads.
        usual: the options that its first help page shows.
        needs: what is missing before it can start.
        idle: options that do nothing in this job with the others chosen, each with the reason; an
            empty reason says that one does something here after all.
        flags: the words without a value; of several given, the last one in this order counts.
        suffix: the flag that counts, for messages.
    """

    summary: str
    uses: tuple[str, ...]
    usual: tuple[str, ...]
    needs: Callable[[RunConfig], Iterator[str]]
    idle: Callable[[RunConfig], dict[str, str]] = lambda run: {}
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


def _needs_songs(run: RunConfig) -> Iterator[str]:
    root = run.data.musdb_root
    if root is None:
        if not synthetic_songs(run):
            yield (
                "musdb_root: got None, allowed: the folder of MUSDB18 (with train and test in it), "
                "or synthetic songs (synthetic_train, synthetic_valid, synthetic_test; or "
                "--preset demo)"
            )
    elif not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        yield f"musdb_root: {root} {what}, allowed: the folder of MUSDB18 (with train and test)"


def _needs_shards(run: RunConfig) -> Iterator[str]:
    shards, address = RunFolder.of(run).shards, RunFolder.of(run).shards_address
    if address is None and not (shards / "manifest.json").is_file():
        yield (
            f"shards_dir: {shards} holds no shards (no manifest.json); make them with "
            f"python -m jobs.preprocess --shards_dir {shards}"
        )
    yield from _needs_start(run)
    yield from store_problems(run)


def _needs_start(run: RunConfig) -> Iterator[str]:
    start = run.train.resume_from_checkpoint
    if has_begun(RunFolder.of(run)):
        return  # it goes on from its own state, or has ended
    if start is None or (start.suffix == ".ckpt" and start.is_file()):
        return
    if not (start / "config.json").is_file():
        yield (
            f"resume_from_checkpoint: {start} is no checkpoint, allowed: a folder with "
            "weights.safetensors and config.json, or a .ckpt file of the authors"
        )


def needs_estimates(run: RunConfig) -> Iterator[str]:
    """Yield what an evaluation misses: songs, and a checkpoint, finished estimates or scores."""
    yield from store_problems(run)
    scores = run.evaluate.scores_dir
    if scores is not None:
        if not scores.is_dir():
            yield f"scores_dir: {scores} is no folder, allowed: one with <split>/<track>.json"
        return
    yield from _needs_songs(run)
    estimates = run.evaluate.estimates_dir
    checkpoint = run.evaluate.checkpoint or RunFolder.of(run).checkpoint
    if estimates is not None:
        if not estimates.is_dir():
            yield f"estimates_dir: {estimates} is no folder, allowed: <split>/<track>/<source>.wav"
    elif not (checkpoint / "config.json").is_file():
        yield (
            f"checkpoint: {checkpoint} is no checkpoint, allowed: a folder with "
            "weights.safetensors and config.json, as training makes it"
        )


def _needs_scores(run: RunConfig) -> Iterator[str]:
    yield from store_problems(run)
    scores = RunFolder.of(run).scores
    if not scores.is_dir():
        yield (
            f"output_dir: {scores.parent} holds no scores, allowed: the output_dir of a run that "
            "was evaluated (python -m jobs.evaluate)"
        )


def _needs_search(run: RunConfig) -> Iterator[str]:
    from pipeline.search.problems import search_problems

    yield from search_problems(run)
    yield from _needs_shards(run)


def needs_songs_and_start(run: RunConfig) -> Iterator[str]:
    """Yield what a run from songs to a trained network misses."""
    yield from _needs_songs(run)
    yield from _needs_start(run)
    yield from store_problems(run)
    if run.search.space is not None:
        from pipeline.search.problems import search_problems

        yield from search_problems(run)


def _said_by_the_space(run: RunConfig) -> dict[str, str]:
    from pipeline.search.problems import idle_in_trials

    return idle_in_trials(run)


def _needs_nothing(run: RunConfig) -> Iterator[str]:
    yield from ()


_LISTENING = ("sources", "sample_rate", "spec_type", "input_channels")


def _said_by_the_checkpoint(run: RunConfig) -> dict[str, str]:
    if run.evaluate.scores_dir is not None:
        unread = (*_SONGS, *_LISTENING, "target_names", "address", "num_cpus", "task_memory")
        return dict.fromkeys(unread, "scores_dir holds finished scores")
    if run.evaluate.estimates_dir is not None:
        return {}
    return dict.fromkeys(_LISTENING, "the checkpoint says it")


_EVERYTHING = ("output_dir", "model", "data", "train", "evaluate", "tracking", "cluster")

JOBS: Mapping[str, Job] = {
    "run": Job(
        "everything: songs, shards, training, scores, report; what is unchanged is skipped",
        (*_EVERYTHING, "search"),
        ("musdb_root", "output_dir", "batch_size", "max_epochs", "lr", "gpus", "precision", "seed"),
        needs_songs_and_start,
        _said_by_the_space,
    ),
    "preprocess": Job(
        "turns songs into shards of spectrograms",
        (
            "output_dir", *_SONGS, *_SPECTROGRAM, "shards_dir", "max_frames_per_shard",
            "filed_mode", "cluster",
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
                ("output_dir", "shards_dir", "musdb_root", "musdb_is_wav", "cluster"),
                _needs_nothing,
            ),
        },
    ),
    "train": Job(
        "trains a network on shards; an interrupted training goes on",
        ("output_dir", "model", *_SHARDS, *_DRAWING, "train", "tracking", "cluster"),
        ("shards_dir", "output_dir", "batch_size", "max_epochs", "lr", "gpus", "precision", "seed"),
        _needs_shards,
    ),
    "tune": Job(
        "searches for the best settings with many small trainings; an interrupted search goes on",
        ("output_dir", "model", *_SHARDS, *_DRAWING, "train", "search", "tracking", "cluster"),
        (
            "shards_dir", "output_dir", "space", "searcher", "scheduler", "num_trials",
            "trial_epochs", "seeds", "max_concurrent_trials",
        ),
        _needs_search,
        _said_by_the_space,
    ),
    "evaluate": Job(
        "separates whole songs with a trained network and scores them (BSS Eval v4)",
        (
            "output_dir", *_SONGS, *_LISTENING, "target_names", "evaluate", "tracking", "cluster",
        ),
        ("musdb_root", "checkpoint", "output_dir", "split", "overlap_ratio", "save_estimates"),
        needs_estimates,
        _said_by_the_checkpoint,
    ),
    "report": Job(
        "makes tables, plots and players from scores",
        ("output_dir", "split", "checkpoint", "report_audio", "tracking"),
        ("output_dir", "split", "report_audio"),
        _needs_scores,
    ),
    "doctor": Job(
        "says whether everything that a run needs is there",
        _EVERYTHING,
        ("musdb_root", "output_dir", "shards_dir", "gpus", "address"),
        _needs_nothing,
    ),
    "main": Job(
        "the command line of the LaSAFT README: trains a network, or evaluates a trained one",
        (*_EVERYTHING[1:], "readme"),
        (
            "mode", "run_id", "musdb_root", "musdb_is_wav", "filed_mode", "target_name",
            "batch_size", "max_epochs", "lr", "gpus", "precision", "ckpt_root_path", "epoch",
        ),
        _needs_nothing,
    ),
}  # fmt: skip
