"""What the scored songs are called: a name and a hash that stand beside every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.songs.make import wants_songs
from pipeline.data.songs.tracks import Track, list_tracks
from pipeline.evaluation.summary import DataIdentity

_TEST_TRACKS, _TRAINING_TRACKS = 50, 100  # of MUSDB18
# The 50 songs of MUSDB18's test set last 3.5 hours; the 7 s samples of the same songs 6 minutes.
_TEST_SECONDS = 10_000.0
_SYNTHETIC_RECORD = "songs.json"


def is_whole_test_set(split: str, tracks: int, seconds: float) -> bool:
    """Return whether these can be all songs of MUSDB18's test set."""
    return split == "test" and tracks == _TEST_TRACKS and seconds >= _TEST_SECONDS


def data_identity(
    config: RunConfig, root: Path, tracks: Sequence[Track], hashes: Sequence[str], seconds: float
) -> DataIdentity:
    """Return the identity of the scored songs, all of one split.

    ``hashes`` are those of their files, in the same order, ``seconds`` is their length together.
    A folder counts as MUSDB18 (``.stem.mp4``) or MUSDB18-HQ (wav) if it has that set's number of
    songs in both halves, as long as they are; anything else is named by its folder.
    """
    pairs = sorted(zip((track.name for track in tracks), hashes, strict=True))
    text = "".join(f"{digest} {name}\n" for name, digest in pairs)
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    split = tracks[0].split
    if wants_songs(config) or (root / _SYNTHETIC_RECORD).is_file():
        return DataIdentity(name="Synthetic songs", kind="synthetic", split=split, hash=digest)
    if _is_musdb18(root, tracks[0]):
        kind = "MUSDB18-HQ" if tracks[0].is_wav else "MUSDB18"
        complete = is_whole_test_set(split, len(tracks), seconds)
        return DataIdentity(name=kind, kind=kind, split=split, hash=digest, complete=complete)
    return DataIdentity(name=f"Songs of {root.name}", kind="own", split=split, hash=digest)


def _is_musdb18(root: Path, track: Track) -> bool:
    listed = list_tracks(root, replace(track.wanted, is_wav=track.is_wav, dev_mode=False))
    test = sum(one.split == "test" for one in listed)
    return test == _TEST_TRACKS and len(listed) - test == _TRAINING_TRACKS
