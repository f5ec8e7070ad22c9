"""Makes the synthetic songs of a run: a Ray task a song."""

from __future__ import annotations

from pathlib import Path

from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.parcels import parcel
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_store import RunStore
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.run import synthetic_songs
from pipeline.data.synthetic.writer import SongSet, begin_songs, finish_songs, song_list, write_song


def wants_songs(config: RunConfig) -> bool:
    """Return whether the run is on synthetic songs: no ``musdb_root``, some songs asked for."""
    return synthetic_songs(config) > 0


def fetch_songs(config: RunConfig) -> None:
    """Bring the songs that the run has made here, where it is kept elsewhere."""
    if wants_songs(config):
        RunStore(RunFolder.of(config)).pull("songs")


def song_set(config: RunConfig) -> SongSet:
    """Return the parameters of the run's synthetic songs."""
    data = config.data
    counts = data.synthetic_train, data.synthetic_valid, data.synthetic_test
    return SongSet(*counts, data.synthetic_seconds, data.synthetic_seed)


def make_songs(config: RunConfig) -> Path:
    """Write the songs that are still missing and return their folder; call while connected to Ray.

    Raises:
        DataError: the folder holds other songs.
        StageError: a song could not be written.
    """
    folder, songs = RunFolder.of(config), song_set(config)
    root, store = folder.songs, RunStore(folder)
    store.pull("songs")
    missing = begin_songs(root, songs)
    store.push("songs")
    total = len(song_list(songs))
    with Progress("songs", total, "songs", done=total - len(missing)) as progress:
        run_tasks(
            write_song,
            [(root, songs, entry) for entry in missing],
            names=[entry.name for entry in missing],
            needs=Needs.of(config),
            parcels=[parcel(folder, writes=[entry.path(root)]) for entry in missing],
            on_done=lambda name, _: progress.advance(1, name),
        )
    store.pull("songs")
    finished = finish_songs(root, songs)
    store.push("songs")
    return finished
