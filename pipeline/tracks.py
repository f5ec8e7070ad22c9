"""The tracks of MUSDB18 or of a folder in its shape: listed, checked, decoded."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lasaft.errors import AudioError, DataError
from pipeline.audio_files import (
    STEM_MP4_STREAMS,
    Header,
    read_stem_mp4_headers,
    read_wav_header,
    require_ffmpeg,
    stem_mp4_blocks,
    wav_blocks,
)

SPLITS = ("train", "valid", "test")
MIXTURE = "mixture"
_SUFFIX = ".stem.mp4"


@dataclass(frozen=True)
class Track:
    """One song: a folder of wav files, or a .stem.mp4 file.

    Attributes:
        name: the folder's or file's name.
        split: train, valid or test.
        path: the folder, or the file.
        sources: the names of its sources, in the order of their condition numbers.
        is_wav: a folder of wav files.
    """

    name: str
    split: str
    path: Path
    sources: tuple[str, ...]
    is_wav: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The streams in our order: the sources, then the mixture."""
        return (*self.sources, MIXTURE)

    @property
    def files(self) -> list[Path]:
        """The audio files: one a column, or one for all."""
        if not self.is_wav:
            return [self.path]
        return [self.path / f"{column}.wav" for column in self.columns]

    def __str__(self) -> str:
        return f"{self.split}/{self.name}"


@dataclass(frozen=True)
class TrackAudio:
    """The decoded audio of a track, float32: sources [source, channel, sample], mixture [...]."""

    sources: Tensor
    mixture: Tensor
    sample_rate: int


def list_tracks(
    musdb_root: Path,
    *,
    sources: Sequence[str],
    is_wav: bool | None = None,
    dev_mode: bool = False,
) -> list[Track]:
    """Return the tracks below ``musdb_root``, sorted by split and name; no audio is opened.

    Tracks lie in ``train/`` and ``test/`` (and ``valid/``, if there is one). Those of ``train/``
    that ``mus.yaml`` names under ``validation_tracks`` are valid; without a ``mus.yaml`` in the
    root, MUSDB18's own 14 are. Hidden folders and files are no tracks.

    Args:
        musdb_root: the data set's folder.
        sources: names of the sources, each a wav file or a stream of .stem.mp4.
        is_wav: wav layout, or .stem.mp4 (None: look at the files).
        dev_mode: keep only the first track of each split.

    Raises:
        DataError: there is no such folder, or no track in it, or it names tracks it lacks.
    """
    root = musdb_root.absolute()
    try:
        tracks = _list(root, tuple(sources), is_wav)
    except OSError as error:
        raise DataError(f"musdb_root {root}: cannot be read ({error.strerror})") from error
    if dev_mode:
        tracks = list({track.split: track for track in reversed(tracks)}.values())[::-1]
    return tracks


def _list(root: Path, sources: tuple[str, ...], is_wav: bool | None) -> list[Track]:
    if not root.is_dir():
        raise DataError(f"musdb_root {root}: there is no such folder")
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if not folders:
        found = sorted(item.name for item in root.iterdir() if not item.name.startswith("."))
        raise DataError(
            f"musdb_root {root}: this is no MUSDB18 folder: it holds neither train/ nor test/, "
            f"but {', '.join(found[:5]) or 'nothing'}"
        )
    wav = _is_wav_layout(root, folders, is_wav)
    valid = _validation_names(root, folders, wav)
    tracks = []
    for folder_name, folder in folders.items():
        for path in _candidates(folder, wav):
            name = path.name if wav else path.name.removesuffix(_SUFFIX)
            is_valid = folder_name == "train" and _normal(name) in valid
            split = "valid" if is_valid else folder_name
            tracks.append(Track(name, split, path, sources, wav))
    return sorted(tracks, key=lambda track: (SPLITS.index(track.split), track.name))


def _candidates(folder: Path, wav: bool) -> list[Path]:
    visible = (item for item in folder.iterdir() if not item.name.startswith((".", "__MACOSX")))
    if wav:
        return [item for item in visible if item.is_dir()]
    return [item for item in visible if item.name.endswith(_SUFFIX) and item.is_file()]


def _is_wav_layout(root: Path, folders: dict[str, Path], is_wav: bool | None) -> bool:
    wavs = sum(len(_candidates(folder, True)) for folder in folders.values())
    mp4s = sum(len(_candidates(folder, False)) for folder in folders.values())
    if is_wav is None and wavs and mp4s:
        raise DataError(
            f"musdb_root {root}: holds {wavs} track folders and {mp4s} .stem.mp4 files; say which "
            "to read with --musdb_is_wav True or False"
        )
    wav = is_wav if is_wav is not None else mp4s == 0
    if not (wavs if wav else mp4s):
        other = mp4s if wav else wavs
        raise DataError(
            f"musdb_root {root}: no {'wav' if wav else _SUFFIX} track in {', '.join(folders)}; "
            + (f"found {other} in the other layout" if other else "the folders are empty")
        )
    return wav


def _normal(name: str) -> str:
    # A folder unpacked on a Mac may spell an accent as two characters.
    return unicodedata.normalize("NFC", name)


def _validation_names(root: Path, folders: dict[str, Path], wav: bool) -> set[str]:
    # The package's data file is read without importing musdb, which fails without ffmpeg.
    package = importlib.util.find_spec("musdb")
    assert package is not None
    assert package.origin is not None
    settings = Path(package.origin).parent / "configs" / "mus.yaml"
    own = yaml.safe_load(settings.read_text("utf-8"))
    musdb18 = {_normal(name) for name in own["validation_tracks"]}
    file = root / "mus.yaml"
    if not file.exists():
        return musdb18
    try:
        named = yaml.safe_load(file.read_text("utf-8")).get("validation_tracks") or []
        names = {_normal(name) for name in named}
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: not readable ({error}); allowed: YAML with a list validation_tracks of names"
        ) from error
    present = set()
    if "train" in folders:
        present = {
            _normal(p.name.removesuffix(_SUFFIX)) for p in _candidates(folders["train"], wav)
        }
    absent = sorted(names - present - musdb18)
    if absent:
        raise DataError(
            f"{file}: validation_tracks names {', '.join(map(repr, absent))}; allowed: the names "
            "of tracks in train/"
        )
    return names


def find_faults(
    tracks: Sequence[Track], *, sample_rate: int, channels: int
) -> tuple[list[str], list[int]]:
    """Check the headers of all tracks.

    Args:
        tracks: what to check.
        sample_rate: the only one allowed, in Hz.
        channels: the only number allowed.

    Returns:
        One line a fault (track, stem, what was found, what is allowed), and the number of samples
        of each track (0 where unknown).

    Raises:
        DataError: ffmpeg is needed and missing.
    """
    if any(not track.is_wav for track in tracks):
        require_ffmpeg()
    with ThreadPoolExecutor(8) as pool:
        checked = list(pool.map(lambda track: _check(track, sample_rate, channels), tracks))
    faults = [f"{track}: {line}" for track, (lines, _) in zip(tracks, checked, strict=True)
              for line in lines]  # fmt: skip
    return faults, [samples for _, samples in checked]


def check_tracks(tracks: Sequence[Track], *, sample_rate: int, channels: int) -> list[int]:
    """Return the samples of each track; raise one DataError that lists every fault found."""
    faults, samples = find_faults(tracks, sample_rate=sample_rate, channels=channels)
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the tracks"
        raise DataError(f"{count}:\n  " + "\n  ".join(faults))
    return samples


def _check(track: Track, sample_rate: int, channels: int) -> tuple[list[str], int]:
    try:
        track.name.encode()
    except UnicodeEncodeError:
        return ["its name is not valid UTF-8; rename it"], 0
    headers, faults = (_wav_headers if track.is_wav else _stem_mp4_headers)(track)
    lengths = {header.samples for header in headers.values()}
    for column, header in headers.items():
        if header.channels != channels:
            faults.append(f"{column} has {_channels(header.channels)}; allowed: {channels}")
        if header.sample_rate != sample_rate:
            faults.append(
                f"{column} has a sample rate of {header.sample_rate} Hz; allowed: {sample_rate}"
            )
        if header.samples == 0:
            faults.append(f"{column} is empty (0 samples)")
    if len(lengths) > 1:
        each = ", ".join(f"{column} {header.samples}" for column, header in headers.items())
        faults.append(f"unequal lengths in samples: {each}; allowed: one length")
    return faults, max(lengths, default=0)


def _channels(count: int) -> str:
    return {1: "1 channel (mono)"}.get(count, f"{count} channels")


def _wav_headers(track: Track) -> tuple[dict[str, Header], list[str]]:
    headers, faults = {}, []
    for column, file in zip(track.columns, track.files, strict=True):
        if not file.is_file():
            faults.append(f"{file.name} is missing")
            continue
        try:
            headers[column] = read_wav_header(file)
        except AudioError as error:
            faults.append(f"{file.name} {error}")
    if not headers and len(faults) == len(track.columns):
        wanted = ", ".join(file.name for file in track.files)
        if all(fault.endswith("is missing") for fault in faults):
            return {}, [f"no stem in this folder; allowed: {wanted}"]
    return headers, faults


def _stem_mp4_headers(track: Track) -> tuple[dict[str, Header], list[str]]:
    unknown = [source for source in track.sources if source not in STEM_MP4_STREAMS]
    if unknown:
        return {}, [
            f"has no stem {', '.join(unknown)}; .stem.mp4 has {', '.join(STEM_MP4_STREAMS)}"
        ]
    try:
        headers = read_stem_mp4_headers(track.path)
    except AudioError as error:
        return {}, [f"{track.path.name} {error}"]
    if len(headers) != len(STEM_MP4_STREAMS):
        wanted = f"{len(STEM_MP4_STREAMS)} ({', '.join(STEM_MP4_STREAMS)})"
        return {}, [f"{track.path.name} has {len(headers)} audio streams; allowed: {wanted}"]
    return dict(zip(STEM_MP4_STREAMS, headers, strict=True)), []


def audio_blocks(track: Track, block_samples: int) -> Iterator[Tensor]:
    """Decode a track piece by piece, checking every sample.

    Yields:
        float32 [column, channel, sample], in the order of ``track.columns``.

    Raises:
        DataError: a stem is unreadable, shorter than its header says, or not finite.
    """
    if track.is_wav:
        blocks = wav_blocks(track.files, block_samples)
        order = None
    else:
        blocks = stem_mp4_blocks(track.path, block_samples)
        order = [STEM_MP4_STREAMS.index(column) for column in track.columns]
    start = 0
    try:
        for streams in blocks:
            block = streams if order is None else streams[order]
            _require_finite(track, block, start)
            start += block.shape[-1]
            yield block
    except AudioError as error:
        where = "" if track.is_wav else f"{track.path.name} "
        raise DataError(f"{track}: {where}{error}") from error


def _require_finite(track: Track, block: Tensor, start: int) -> None:
    if math.isfinite(float(block.abs().amax())):  # amax hands on NaN
        return
    for column, stream in zip(track.columns, block, strict=True):
        bad = (~torch.isfinite(stream)).any(dim=0).nonzero()
        if len(bad):
            at = start + int(bad[0])
            raise DataError(f"{track}: {column} is not finite at sample {at}; allowed: numbers")


def read_track(track: Track) -> TrackAudio:
    """Decode a whole track; 16-bit samples equal musdb's.

    Raises:
        DataError: as :func:`audio_blocks`, or the track is empty.
    """
    blocks = list(audio_blocks(track, 1 << 20))
    if not blocks:
        raise DataError(f"{track}: is empty (0 samples)")
    audio = torch.cat(blocks, dim=-1)
    first = (
        read_wav_header(track.files[0]) if track.is_wav else read_stem_mp4_headers(track.path)[0]
    )
    return TrackAudio(audio[:-1], audio[-1], first.sample_rate)


def source_hash(track: Track) -> str:
    """Return the sha256 of the bytes of the track's files, whatever their paths and times."""
    digest = hashlib.sha256()
    for column, file in zip(track.columns, track.files, strict=False):
        with file.open("rb") as stream:
            one = hashlib.file_digest(stream, "sha256")
        digest.update(f"{column if track.is_wav else _SUFFIX} {one.hexdigest()}\n".encode())
    return digest.hexdigest()
