"""The whole way from songs to leaderboard, as steps for the step runner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lasaft.files import atomic_write_bytes
from pipeline.cluster.connection import require_gpus
from pipeline.cluster.shared_storage import ready_cluster
from pipeline.config import RunConfig, to_json
from pipeline.config.fingerprints import content_hash, digest, listing_hash
from pipeline.config.folders import RunFolder
from pipeline.data.shards.store import RemoteFolder, shard_place
from pipeline.data.songs.make import make_songs, song_set, wants_songs
from pipeline.data.synthetic import song_list
from pipeline.data.synthetic.writer import GENERATOR_VERSION
from pipeline.evaluation.excerpts import EXCERPTS
from pipeline.evaluation.score_track import SCORING_VERSION
from pipeline.workflow.steps import Step, StepResult, locked, run_steps

# Raised by whoever changes what a stage makes: then the step is done again.
_VERSIONS = {
    "songs": GENERATOR_VERSION,
    "preprocess": 1,
    "search": 1,
    "train": 1,
    "evaluate": SCORING_VERSION,
    "report": 1,
}
# Another value of these gives the same result.
_SPEED_ONLY = {
    "num_workers",
    "pin_memory",
    "mid_epoch_seconds",
    "save_weights_only",
    "max_failures",
}
# With more of these a search goes on; with others of its options it is another search.
_SEARCH_BUDGET = {
    "num_trials", "total_epochs", "max_hours", "max_gpu_hours", "seeds", "top_settings",
    "max_concurrent_trials", "trial_gpus",
}  # fmt: skip
_SHARD_OPTIONS = {
    "sources", "sample_rate", "n_fft", "hop_length", "input_channels", "spec_type",
}  # fmt: skip
_DRAW_OPTIONS = {
    "draw", "remix_probability", "gain_probability", "gain_db", "polarity_probability",
    "channel_swap_probability", "mixup_probability", "mixup_share", "val_mixture",
}  # fmt: skip


@dataclass
class Workflow:
    """One run from songs to report; Ray starts at the first step that has work to do.

    Args:
        config: the whole configuration.
        say: takes each line for the user.
    """

    config: RunConfig
    say: Callable[[str], None]
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    def run(self) -> list[StepResult]:
        """Run all steps and return what became of each.

        Raises:
            LasaftError: of the step that failed; what was finished is kept.
        """
        folder = RunFolder.of(self.config)
        with locked(folder.root), self._stack:
            atomic_write_bytes(folder.config, to_json(self.config).encode())
            return run_steps(folder.root, self._steps(folder), self.say)

    def _steps(self, folder: RunFolder) -> list[Step]:
        songs = [self._songs(folder)] if wants_songs(self.config) else []
        return [
            *songs,
            self._preprocess(folder),
            *([self._search(folder)] if self.config.search.space is not None else []),
            self._train(folder),
            self._evaluate(folder),
            self._report(folder),
        ]

    def _songs(self, folder: RunFolder) -> Step:
        return Step(
            "songs",
            inputs=lambda: {"options": asdict(song_set(self.config))},
            version=_VERSIONS["songs"],
            outputs=(folder.songs,),
            fingerprint=lambda: listing_hash(folder.songs),
            run=lambda: self._connected(_songs),
        )

    def _preprocess(self, folder: RunFolder) -> Step:
        options = self._options("model", _SHARD_OPTIONS) | self._options(
            "data", {"musdb_is_wav", "max_frames_per_shard", "dev_mode"}
        )
        return Step(
            "preprocess",
            inputs=lambda: {"options": options, "songs": self._songs_hash(folder)},
            version=_VERSIONS["preprocess"],
            outputs=self._own(folder, folder.shards),
            fingerprint=lambda: _shards_hash(folder),
            run=lambda: self._connected(_preprocess),
        )

    def _search(self, folder: RunFolder) -> Step:
        from pipeline.search.space_reader import read_space

        assert self.config.search.space is not None
        space = read_space(self.config.search.space)
        budget = self._options("search", _SEARCH_BUDGET)
        options = self._options("search", _names(self.config.search) - _SEARCH_BUDGET - {"space"})
        options |= {"space": digest(repr(space))}
        return Step(
            "search",
            inputs=lambda: {
                "options": options,
                "base": self._training_options(self.config),
                "shards": _shards_hash(folder),
            },
            version=_VERSIONS["search"],
            outputs=(folder.search,),
            # With another budget the search goes on in its place.
            fingerprint=lambda: (
                digest([found, budget])
                if (found := content_hash(folder.search / "best.yaml"))
                else None
            ),
            run=lambda: self._connected(_search),
        )

    def _training_options(self, config: RunConfig) -> dict[str, Any]:
        return (
            config.model.model_dump(mode="json")
            | config.train.model_dump(mode="json", include=_names(config.train) - _SPEED_ONLY)
            | config.data.model_dump(mode="json", include=_DRAW_OPTIONS)
        )

    def _trained(self) -> RunConfig:
        """Return the settings of the training: the winner's, once a search has ended."""
        if self.config.search.space is None:
            return self.config
        from pipeline.search.ranking import winning_config

        return winning_config(self.config)

    def _train(self, folder: RunFolder) -> Step:
        return Step(
            "train",
            inputs=lambda: {
                "options": self._training_options(self._trained()),
                "shards": _shards_hash(folder),
            },
            version=_VERSIONS["train"],
            outputs=(folder.checkpoint, folder.checkpoints, folder.training),
            fingerprint=lambda: content_hash(folder.checkpoint, folder.metrics),
            run=lambda: self._connected(lambda config: _train(self._trained())),
        )

    def _evaluate(self, folder: RunFolder) -> Step:
        options = self._options("evaluate", _names(self.config.evaluate))
        options |= self._options("train", {"target_names"})
        options |= self._options("tracking", {"run_id"})
        checkpoint = self.config.evaluate.checkpoint or folder.checkpoint
        others = self.config.evaluate.estimates_dir or self.config.evaluate.scores_dir
        return Step(
            "evaluate",
            inputs=lambda: {
                "options": options,
                "checkpoint": content_hash(checkpoint),
                "estimates": others and listing_hash(others, times=True),
                "songs": self._songs_hash(folder),
            },
            version=_VERSIONS["evaluate"],
            outputs=(),  # stays in place: each score file has a key of its own
            fingerprint=lambda: content_hash(folder.scores),
            run=lambda: self._connected(lambda config: _evaluate(self._trained())),
        )

    def _report(self, folder: RunFolder) -> Step:
        options = self._options("evaluate", {"report_audio", "split"})
        options |= self._options("tracking", {"run_id"})
        return Step(
            "report",
            inputs=lambda: {
                "options": options,
                "scores": content_hash(folder.scores),
                "training": content_hash(folder.metrics),
                "audio": listing_hash(folder.estimates / EXCERPTS),
            },
            version=_VERSIONS["report"],
            outputs=(folder.report,),
            fingerprint=lambda: content_hash(folder.report),
            run=lambda: _report(self._trained()),
        )

    def _options(self, section: str, names: set[str]) -> dict[str, Any]:
        return getattr(self.config, section).model_dump(mode="json", include=names)

    def _own(self, folder: RunFolder, path: Path) -> tuple[Path, ...]:
        """Return ``path`` if it is below the run's folder: what lies elsewhere is never moved."""
        return (path,) if path.is_relative_to(folder.root) else ()

    def _songs_hash(self, folder: RunFolder) -> str | None:
        if wants_songs(self.config):
            return listing_hash(folder.songs)
        return listing_hash(folder.songs, times=True)

    def _connected(self, stage: Callable[[RunConfig], str]) -> str:
        self._stack.enter_context(ready_cluster(self.config))
        # Songs and shards can take hours: what training lacks is said before them.
        require_gpus(self.config.train.gpus)
        return stage(self.config)


def run_workflow(config: RunConfig, say: Callable[[str], None]) -> list[StepResult]:
    """Run everything from songs to report; see :meth:`Workflow.run`."""
    return Workflow(config, say).run()


def _songs(config: RunConfig) -> str:
    root, count = make_songs(config), len(song_list(song_set(config)))
    return f"{count} songs of {config.data.synthetic_seconds:g} s in {root}"


def _preprocess(config: RunConfig) -> str:
    from pipeline.data.shards.preprocess import preprocess

    manifest = preprocess(config)
    frames = sum(track.frames for track in manifest.tracks)
    return f"{len(manifest.tracks)} tracks, {frames} frames, data hash {manifest.hash[:8]}"


def _search(config: RunConfig) -> str:
    from pipeline.workflow.stages import search_settings

    result = search_settings(config)
    return f"{len(result.rows)} trials, the winner is {result.winner.trial.title}"


def _train(config: RunConfig) -> str:
    from pipeline.workflow.stages import train_network

    result = train_network(config)
    loss = "none" if result.best_val_loss is None else f"{result.best_val_loss:.4g}"
    return f"{result.steps} steps, best epoch {result.best_epoch + 1} with val_loss {loss}"


def _evaluate(config: RunConfig) -> str:
    from pipeline.workflow.stages import score_songs

    result = score_songs(config)
    return f"{len(result.lead.tracks)} songs, {len(result.summaries)} systems"


def _report(config: RunConfig) -> str:
    from pipeline.workflow.stages import make_report

    return str(make_report(config).page)


def _names(section: Any) -> set[str]:
    return set(type(section).model_fields)


def _shards_hash(folder: RunFolder) -> str | None:
    """Return the hash of the manifest and, in a folder, of the shards' names and sizes."""
    place = shard_place(folder)
    if isinstance(place, RemoteFolder):
        file = place / "manifest.json"
        return None if file.size() is None else digest(file.read_bytes().decode())
    manifest = content_hash(folder.shards / "manifest.json")
    return None if manifest is None else f"{manifest}-{listing_hash(folder.shards)}"
