"""Separates song files into stem files: their names, and writing each one whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import tee
from math import log10
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from lasaft.audio import SUBTYPES, AudioReader, AudioWriter, Encoding, Samples
from lasaft.errors import AudioError, ConfigError
from lasaft.files import atomic_path, atomic_paths, link_on_the_way, safe_name
from lasaft.output import is_harmless
from lasaft.targets import rest_of

if TYPE_CHECKING:
    from lasaft.separation.separator import Separator

_FIELDS = ("track", "source")
_MOST_BYTES = 255  # in one part of a path, on common file systems


@dataclass(frozen=True)
class Stems:
    """What was made of one song.

    Args:
        song: the file that was read.
        files: by target, the files that were written.
        sample_rate: in Hz, of both.
        channels: their number, of both.
        seconds: the song's length.
        peaks: by target, the largest absolute value.
        clipped: by target, how many values the format had to cut to ±1.
        notes: what a user should know: conversions and clipping.
    """

    song: Path
    files: Mapping[str, Path]
    sample_rate: int
    channels: int
    seconds: float
    peaks: Mapping[str, float]
    clipped: Mapping[str, int]
    notes: Sequence[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        files = {target: str(path) for target, path in self.files.items()}
        seconds = round(self.seconds, 3)
        return asdict(self) | {"song": str(self.song), "files": files, "seconds": seconds}


@dataclass(frozen=True)
class Making:
    """What is made of each song.

    Args:
        targets: the sources wanted, or sets of them.
        other_method: with one of ``targets`` its rest is made too, by ``minus`` (the mixture minus
            it) or ``add`` (the set of the other sources); empty: no rest.
        encoding: of the files.
        clip_mode: what becomes of values beyond full scale: ``rescale`` turns the whole stem down,
            ``clamp`` cuts them, ``none`` leaves those that the format can hold.
    """

    targets: tuple[str, ...]
    other_method: str = ""
    encoding: Encoding = field(default_factory=Encoding)
    clip_mode: str = "none"

    @property
    def files(self) -> tuple[str, ...]:
        """What there is a file of: the targets, or one and its rest."""
        return (*self.targets, *([f"no_{self.targets[0]}"] if self.other_method else []))

    def estimates(
        self, separator: Separator, blocks: Iterable[Samples], sample_rate: int, name: object
    ) -> Iterator[Samples]:
        """Yield float32 [file, channel, sample], together as long as the song."""
        source, *_ = self.targets
        if self.other_method == "add":
            pair = [source, rest_of(source, separator.config.sources)]
            yield from separator.stream(blocks, sample_rate, pair, name)
        elif self.other_method == "minus":
            blocks, again = tee(blocks)
            mixture = _Held(again)
            for (estimate,) in separator.stream(blocks, sample_rate, source, name):
                yield np.stack([estimate, mixture.take(estimate.shape[-1]) - estimate])
        else:
            yield from separator.stream(blocks, sample_rate, self.targets, name)


class _Held:
    """A signal that arrives in ``blocks`` [..., sample] of any size, in the sizes asked for."""

    def __init__(self, blocks: Iterable[Samples]) -> None:
        self._blocks, self._held = iter(blocks), np.zeros(0, np.float32)

    def take(self, count: int) -> Samples:
        """Return the next ``count`` samples."""
        held = [self._held] if self._held.size else []
        there = sum(block.shape[-1] for block in held)
        while there < count:
            held.append(next(self._blocks))
            there += held[-1].shape[-1]
        whole = held[0] if len(held) == 1 else np.concatenate(held, axis=-1)
        self._held = whole[..., count:]
        return whole[..., :count]


def file_format(template: str, wanted: str | None) -> str:
    """Return the format that the user asked for, by option or by the template's ending."""
    ending = template.rpartition(".")[2].lower()
    ending = ending if ending in SUBTYPES else ""
    if wanted and ending and wanted != ending:
        raise ConfigError(f"format: got {wanted}, but name ends in .{ending}")
    return wanted or ending or "wav"


def plan_files(
    songs: Sequence[Path],
    targets: Sequence[str],
    folder: Path,
    template: str,
    suffix: str,
    *,
    tracks: Sequence[str] | None = None,
) -> list[dict[str, Path]]:
    """Return for each song where each target goes, all below ``folder``.

    Args:
        songs: the files to read.
        folder: where the files go.
        template: of the path in ``folder``, with ``{track}`` and ``{source}``.
        suffix: ending without the dot; added to what ``template`` gives if it is not there.
        tracks: what ``{track}`` stands for, with folders in it or not (default: the song's file
            name without the ending).

    Raises:
        ConfigError: the template has other fields or leaves the folder, a file or folder there is
            a link, a part of a path is too long, two files would get one path, or a song would
            be overwritten.
    """
    check_template(template)
    if not template.lower().endswith(f".{suffix}"):
        template = f"{template}.{suffix}"
    plan: list[dict[str, Path]] = []
    owners: dict[str, str] = {_same(song): f"the song {song}" for song in songs}
    for song, track in zip(songs, tracks or [song.stem for song in songs], strict=True):
        paths = {}
        safe = "/".join(safe_name(part) for part in track.split("/"))
        for target in targets:
            names = {"track": safe, "source": safe_name(target)}
            path = folder / re.sub(r"\{(\w+)\}", lambda found, n=names: n[found[1]], template)
            if long := next((p for p in path.parts if len(os.fsencode(p)) > _MOST_BYTES), None):
                raise ConfigError(
                    f"name: {template!r} gives {target} of {song} a path with a part of "
                    f"{len(os.fsencode(long))} bytes; allowed: {_MOST_BYTES}"
                )
            if (link := link_on_the_way(path, folder)) is not None:
                raise ConfigError(
                    f"output_dir: {link} is a link, and nothing is written where a link leads"
                )
            owner = owners.setdefault(_same(path), f"{target} of {song}")
            if owner != f"{target} of {song}" or target in paths:
                raise ConfigError(
                    f"name: {template!r} gives {target} of {song} the path {path}, which is that "
                    f"of {owner}; allowed: {{track}} and {{source}} in it, and songs of the same "
                    "name in a run of their own, with another output_dir"
                )
            paths[target] = path
        plan.append(paths)
    return plan


def separate_file(
    separator: Separator,
    song: Path,
    files: Mapping[str, Path],
    making: Making,
    begin: Callable[[float], Callable[[float], object]] | None = None,
) -> Stems:
    """Separate one song block by block; each file appears whole, none if the song fails.

    Args:
        files: for each of ``making.files``, where it goes; folders are made.
        making: what is made, and how.
        begin: is called with the song's seconds and returns what is called with the seconds that
            have just been finished.

    Raises:
        AudioError: the song cannot be read.
        ConfigError: the format cannot hold the song's sample rate or channels.
        OSError: a file cannot be written.
    """
    new = {up for path in files.values() for up in path.parents if not up.exists()}
    with ExitStack() as stack:
        stack.callback(_remove_empty, new)
        reader = stack.enter_context(AudioReader(song))
        rate, channels = reader.sample_rate, reader.channels
        try:
            making.encoding.check(rate, channels)
        except ConfigError as error:
            raise ConfigError(f"{song}: {error}") from error
        advance = begin(reader.frames / rate) if begin else None
        temporaries = stack.enter_context(atomic_paths(list(files.values())))
        # How far a stem is turned down is known at its end: until then it is kept as floats.
        rescales = making.clip_mode == "rescale"
        encoding = Encoding() if rescales else making.encoding
        writers: dict[str, AudioWriter] = {}
        samples = 0
        with ExitStack() as written:
            for (target, path), temporary in zip(files.items(), temporaries, strict=True):
                writers[target] = written.enter_context(
                    AudioWriter(
                        temporary, rate, channels, encoding, frames=reader.frames, shown=path,
                        clamp=making.clip_mode == "clamp",
                    )
                )  # fmt: skip
            for block in making.estimates(separator, reader.blocks(), rate, song):
                samples += block.shape[-1]
                for writer, estimate in zip(writers.values(), block, strict=True):
                    writer.write(estimate)
                if advance is not None:
                    advance(block.shape[-1] / rate)
        gains = {target: min(1.0, 1 / max(one.peak, 1e-9)) for target, one in writers.items()}
        if rescales:
            for (target, path), temporary in zip(files.items(), temporaries, strict=True):
                writers[target] = _turned_down(temporary, path, making.encoding, gains[target])
    clipped = {target: writer.clipped for target, writer in writers.items()}
    notes = _notes(separator, reader, clipped)
    lower = [f"{target} {-20 * log10(gain):.1f} dB" for target, gain in gains.items() if gain < 1]
    if rescales and lower:
        notes.append(f"turned down to full scale: {', '.join(lower)}")
    return Stems(
        song=song,
        files=dict(files),
        sample_rate=rate,
        channels=channels,
        seconds=samples / rate,
        peaks={target: writer.peak for target, writer in writers.items()},
        clipped=clipped,
        notes=notes,
    )


def _turned_down(file: Path, shown: Path, encoding: Encoding, gain: float) -> AudioWriter:
    """Write a file of floats again with another gain and encoding, in its own place."""
    with AudioReader(file) as reader, atomic_path(file) as fresh:
        rate, channels = reader.sample_rate, reader.channels
        with AudioWriter(
            fresh, rate, channels, encoding, frames=reader.frames, shown=shown
        ) as writer:
            for block in reader.blocks():
                writer.write(block * np.float32(gain))
    return writer


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that nothing was put into."""
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _notes(separator: Separator, reader: AudioReader, clipped: Mapping[str, int]) -> list[str]:
    rate, channels = reader.sample_rate, reader.channels
    ours = separator.config.sample_rate
    wanted = separator.config.audio_channels
    notes = [reader.note] if reader.note else []
    if rate != ours:
        notes.append(f"{rate} Hz: separated at {ours} Hz, the stems are at {rate} Hz again")
    if channels == 1 < wanted:
        notes.append("mono: separated as two equal channels, the stems are mono again")
    elif channels > wanted == 1:
        notes.append(f"{channels} channels: each was separated by itself by the mono network")
    cut = [f"{target} {count}" for target, count in clipped.items() if count]
    if cut:
        ways = "wav 32f keeps them, clip_mode rescale turns the stem down"
        notes.append(f"values above full scale were clipped: {', '.join(cut)} ({ways})")
    return notes


def check_writable(folder: Path, what: str = "") -> None:
    """Raise an AudioError that begins with ``what`` if nothing can be written to ``folder``."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = what or f"output_dir {folder}"
        raise AudioError(f"{what}: cannot be written: {error.strerror}") from error


def _same(path: Path) -> str:
    # Some systems do not tell upper from lower case.
    return os.path.realpath(path).casefold()


def check_template(template: str) -> None:
    """Raise a ConfigError unless ``template`` names files in a folder."""
    rest = template
    for name in _FIELDS:
        rest = rest.replace("{" + name + "}", "")
    if "{" in rest or "}" in rest:
        raise ConfigError(f"name: got {template!r}, allowed in braces: {{track}} and {{source}}")
    if not is_harmless(template):
        raise ConfigError(f"name: got {template!r}, allowed: no characters that a terminal obeys")
    parts = Path(template).parts
    if not template.strip() or template.endswith("/") or Path(template).is_absolute():
        raise ConfigError(f"name: got {template!r}, allowed: a file path inside output_dir")
    if ".." in parts:
        raise ConfigError(f"name: got {template!r}, which has .. in it and may leave output_dir")
