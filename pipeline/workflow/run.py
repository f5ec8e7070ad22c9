"""The whole way from songs to leaderboard, as steps for the step runner."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from lasaft.card import Licences
from lasaft.errors import refuse
from lasaft.files import atomic_write_bytes
from pipeline import evaluation, report, search, training
from pipeline.cluster.nodes import require_places
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.run_store import LARGE, RunStore
from pipeline.cluster.shared_storage import ready_cluster
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig, to_json, without_secrets
from pipeline.config.fingerprints import content_hash, digest, listing_hash
from pipeline.config.folders import RunFolder
from pipeline.config.roles import RESUME, STANDS_FOR, identity, values
from pipeline.config.run import split_problems
from pipeline.data import shards, synthetic
from pipeline.data.shards.manifest import MANIFEST_NAME, ShardSettings
from pipeline.data.shards.objects import MARK_SUFFIX
from pipeline.data.shards.store import shard_place
from pipeline.data.songs.folders import find_places
from pipeline.data.songs.make import make_songs, song_set, wants_songs
from pipeline.data.songs.wanted import Wanted
from pipeline.data.synthetic.writer import song_list
from pipeline.evaluation.excerpts import EXCERPTS
from pipeline.workflow.stages import make_report, score_songs, search_settings, train_network
from pipeline.workflow.stamps import StepPlace, read_stamp
from pipeline.workflow.steps import Step, StepResult, StepRunner


@dataclass
class Workflow:
    """One run from songs to report; Ray starts at the first step that has work to do.

    Args:
        config: the whole configuration.
        say: takes each line for the user.
        rerun: the steps to do again although nothing has changed.
    """

    config: RunConfig
    say: Callable[[str], None]
    rerun: Collection[str] = ()
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _has_places: bool = field(default=False, repr=False)
    _songs_failed: bool = field(default=False, repr=False)
    _hashes: dict[str, str | None] = field(default_factory=dict, repr=False)

    def run(self) -> list[StepResult]:
        """Run all steps and return what became of each.

        Raises:
            LasaftError: of the step that failed; what was finished is kept.
        """
        folder = RunFolder.of(self.config)
        with alone_in_run(self.config), self._stack:
            _write_config(folder, self.config)
            store = RunStore(folder)
            store.fetch_stamps()
            runner = StepRunner(
                folder.root, self.config, self.say, self.rerun,
                partial(publish, store), store.recall,
            )  # fmt: skip
            return runner.run(self._steps(folder))

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
            version=synthetic.VERSION,
            outputs=(folder.songs,),
            fingerprint=lambda: self._songs_hash(folder),
            run=lambda: self._connected(_songs),
        )

    def _preprocess(self, folder: RunFolder) -> Step:
        settings = ShardSettings.of(self.config).model_dump(mode="json", exclude={"format"})
        settings |= values(self.config, "data", "songs")
        return Step(
            "preprocess",
            inputs=lambda: {
                "options": settings,
                STANDS_FOR["musdb_is_wav"]: f"is_wav {self._is_wav(folder)}",
                "songs": self._songs_hash(folder),
            },
            version=shards.VERSION,
            outputs=self._own(folder, folder.shards),
            fingerprint=lambda: self._shards_hash(folder),
            run=lambda: self._connected(_preprocess),
        )

    def _search(self, folder: RunFolder) -> Step:
        from pipeline.search.space_reader import read_space
        from pipeline.search.trials import search_identity

        settings = self.config.search
        assert settings.space is not None
        space = read_space(settings.space)
        limits = values(self.config, "search", "limit")
        best = folder.search / "best.yaml"

        others = settings.model_dump(include={"max_concurrent_trials", "trial_gpus"})
        return Step(
            "search",
            inputs=lambda: {
                # As earlier versions wrote it; what the space holds counts where both sides know.
                "options": search_identity(self.config, space)
                | {"search.space": digest(repr(space))},
                "shards": shards_input(folder, "search", self._shards_hash),
            },
            version=search.VERSION,
            outputs=(folder.search,),
            fingerprint=lambda: content_hash(best),
            run=lambda: self._connected(_search),
            limits=lambda: limits,
            former_fingerprint=lambda: digest([content_hash(best), limits | others]),
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
                "options": identity(self._trained()),
                "shards": shards_input(folder, "train", self._shards_hash),
            },
            version=training.VERSION,
            outputs=(folder.checkpoint, folder.checkpoints, folder.training),
            fingerprint=lambda: content_hash(folder.checkpoint, folder.metrics),
            run=lambda: self._connected(lambda config: _train(self._trained())),
            limits=lambda: (
                values(self._trained(), "train", "ending", "limit")
                | {name: getattr(self.config.tracking, name) for name in Licences.model_fields}
            ),
            may_lack=RESUME,
        )

    def _evaluate(self, folder: RunFolder) -> Step:
        config = self.config
        others = folder.given.get("estimates_dir") or folder.given.get("scores_dir")
        return Step(
            "evaluate",
            inputs=lambda: {
                "options": values(config, "evaluate", "result")
                | {"target_names": values(config, "train", "task")["target_names"]}
                | {"run_id": config.tracking.run_id},
                "checkpoint": content_hash(folder.evaluated),
                "estimates": others and listing_hash(others, times=True),
                "songs": self._songs_hash(folder),
            },
            version=evaluation.VERSION,
            outputs=(),
            files=(folder.scores,),  # each score file has a key of its own
            fingerprint=lambda: _evaluated_hash(folder),
            run=lambda: self._connected(lambda config: self._scored(self._trained())),
            former_fingerprint=lambda: content_hash(folder.scores),
            complete=lambda: not self._songs_failed,
        )

    def _scored(self, config: RunConfig) -> str:
        result = score_songs(config)
        self._songs_failed = bool(result.lead.failed)
        return f"{result.lead.songs}, {len(result.summaries)} systems"

    def _report(self, folder: RunFolder) -> Step:
        settings = self.config.evaluate
        return Step(
            "report",
            inputs=lambda: {
                "options": {
                    "report_audio": settings.report_audio,
                    "single_file": settings.single_file,
                    "split": settings.split,
                    "run_id": self.config.tracking.run_id,
                },
                "scores": content_hash(folder.scores),
                "training": content_hash(folder.metrics),
                "audio": listing_hash(folder.estimates / EXCERPTS),
            },
            version=report.VERSION,
            outputs=(folder.report,),
            fingerprint=lambda: content_hash(folder.report),
            run=lambda: _report(self._trained()),
        )

    def _own(self, folder: RunFolder, path: Path) -> tuple[Path, ...]:
        """Return ``path`` if it is a folder of its own in the run's: all else is never moved."""
        place, root = (Path(os.path.normpath(one)) for one in (path, folder.root))
        return (path,) if place.is_relative_to(root) and not folder.mixes() else ()

    def _once(self, name: str, ask: Callable[[], str | None]) -> str | None:
        """Return what ``ask`` returns, and until a step works the same: a store is slow to ask.

        The step that makes what is asked for asks first, when it has put its old outputs away.
        """
        if name not in self._hashes:
            self._hashes[name] = ask()
        return self._hashes[name]

    def _shards_hash(self, folder: RunFolder) -> str | None:
        return self._once("shards", lambda: shards_hash(folder))

    def _songs_hash(self, folder: RunFolder) -> str | None:
        remote = RunStore(folder).remote
        if wants_songs(self.config) and remote is not None:
            return self._once("songs", lambda: remote.names_hash("songs"))
        times = not wants_songs(self.config)
        return self._once("songs", lambda: listing_hash(folder.songs, times=times))

    def _is_wav(self, folder: RunFolder) -> bool:
        """Return whether the songs are folders of stems; synthetic ones always are."""
        if wants_songs(self.config):
            return True
        wanted = Wanted.of(self.config.model, self.config.data)
        return find_places(folder.songs, wanted)[0].layout is not None

    def _connected(self, stage: Callable[[RunConfig], str]) -> str:
        self._stack.enter_context(ready_cluster(self.config, "for the steps of this run"))
        # Songs and shards can take hours: what training lacks is said before them, once: nodes that
        # no step uses may go, and come again for training.
        if not self._has_places:
            require_places(self.config)
            self._has_places = True
        try:
            return stage(self.config)
        finally:
            self._hashes.clear()


def publish(store: RunStore) -> None:
    """Put a run into the store, with what its steps have moved aside; nothing is lost meanwhile."""
    came_back = store.push_moved()
    store.push(but=LARGE)
    for place in came_back:
        store.remove(place)


def run_workflow(
    config: RunConfig, say: Callable[[str], None], rerun: Collection[str] = ()
) -> list[StepResult]:
    """Run everything from songs to report; see :class:`Workflow`."""
    return Workflow(config, say, rerun).run()


def _write_config(folder: RunFolder, config: RunConfig) -> None:
    """Write the settings of a run, unless they stand there: what is new goes to the store."""
    data = to_json(without_secrets(config)).encode()
    if not folder.config.is_file() or folder.config.read_bytes() != data:
        atomic_write_bytes(folder.config, data)


def _songs(config: RunConfig) -> str:
    make_songs(config)
    return f"{len(song_list(song_set(config)))} songs of {config.data.synthetic_seconds:g} s"


def _preprocess(config: RunConfig) -> str:
    from pipeline.data.shards.preprocess import preprocess
    from pipeline.data.songs.tracks import list_tracks

    songs = list_tracks(RunFolder.of(config).songs, Wanted.of(config.model, config.data))
    refuse(split_problems(config, Counter(track.split for track in songs)))
    manifest = preprocess(config)
    frames = sum(track.frames for track in manifest.tracks)
    return f"{len(manifest.tracks)} tracks, {frames} frames, data hash {manifest.hash[:8]}"


def _search(config: RunConfig) -> str:
    result = search_settings(config)
    return f"{len(result.rows)} trials, the winner is {result.winner.trial.title}"


def _train(config: RunConfig) -> str:
    result = train_network(config)
    loss = "none" if result.best_val_loss is None else f"{result.best_val_loss:.4g}"
    return f"{result.steps} steps, best epoch {result.best_epoch + 1} with val_loss {loss}"


def _report(config: RunConfig) -> str:
    page = make_report(config).page
    return str(page.relative_to(RunFolder.of(config).root))  # the folder may be moved later


def _evaluated_hash(folder: RunFolder) -> str | None:
    """Return the hash of the scores and of the names and sizes of kept estimates and excerpts."""
    scores = content_hash(folder.scores)
    return None if scores is None else f"{scores}-{listing_hash(folder.estimates)}"


def shards_hash(folder: RunFolder) -> str | None:
    """Return the hash of the manifest and of the shards' names and sizes, wherever they lie."""
    place = shard_place(folder)
    if isinstance(place, RemoteFolder):
        data = _manifest_in(place)
        if data is None:
            return None
        manifest = digest([{MANIFEST_NAME: hashlib.sha256(data).hexdigest()}])
        return f"{manifest}-{place.names_hash(but=MARK_SUFFIX)}"
    manifest = content_hash(folder.shards / MANIFEST_NAME)
    listed = listing_hash(folder.shards, but=MARK_SUFFIX)
    return None if manifest is None else f"{manifest}-{listed}"


def _manifest_in(place: RemoteFolder) -> bytes | None:
    try:
        return (place / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        return None


def shards_input(
    folder: RunFolder, step: str, current: Callable[[RunFolder], str | None] = shards_hash
) -> str | None:
    """Return the shards' hash for a step that reads them.

    Stamps of versions before 0.3 have that of the manifest alone where shards lie at an address.
    """
    place, stamp = shard_place(folder), read_stamp(StepPlace(folder.root, step, ()).file)
    known = str(stamp["inputs"].get("shards")) if stamp is not None else "-"
    if "-" not in known and isinstance(place, RemoteFolder):  # today's hash has two parts
        former = digest((_manifest_in(place) or b"").decode())
        if known == former:
            return former
    return current(folder)
