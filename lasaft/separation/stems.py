"""Separates song files into stem files: their names, and writing each one whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lasaft.audio import SUBTYPES, AudioReader, AudioWriter, Encoding
from lasaft.errors import AudioError, ConfigError
from lasaft.files import atomic_paths, link_on_the_way, safe_name
from lasaft.output import is_harmless
from lasaft.separation.separator import Separator

DEFAULT_NAME = "{track}/{source}"
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


def file_format(template: str, wanted: str | None) -> str:
    """Return the format that the user asked for, by option or by the template's ending."""
    ending = template.rpartition(".")[2].lower()
    ending = ending if ending in SUBTYPES else ""
    if wanted and ending and wanted != ending:
        raise ConfigError(f"format: got {wanted}, but name ends in .{ending}")
    return wanted or ending or "wav"


def plan_files(
    songs: Sequence[Path], targets: Sequence[str], folder: Path, template: str, suffix: str
) -> list[dict[str, Path]]:
    """Return for each song where each target goes, all below ``folder``.

    Args:
        songs: the files to read; a song's ``{track}`` is its file name without the ending.
        folder: where the files go.
        template: of the path in ``folder``, with ``{track}`` and ``{source}``.
        suffix: ending without the dot; added to what ``template`` gives if it is not there.

    Raises:
        ConfigError: the template has other fields or leaves the folder, a file or folder there is
            a link, a part of a path is too long, two files would get one path, or a song would
            be overwritten.
    """
    _check_template(template)
    if not template.lower().endswith(f".{suffix}"):
        template = f"{template}.{suffix}"
    plan: list[dict[str, Path]] = []
    owners: dict[str, str] = {_same(song): f"the song {song}" for song in songs}
    for song in songs:
        paths = {}
        for target in targets:
            names = {"track": safe_name(song.stem), "source": safe_name(target)}
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
                    f"of {owner}"
                )
            paths[target] = path
        plan.append(paths)
    return plan


def separate_file(
    separator: Separator,
    song: Path,
    files: Mapping[str, Path],
    encoding: Encoding,
    begin: Callable[[float], Callable[[float], object]] | None = None,
) -> Stems:
    """Separate one song block by block; each file appears whole, none if the song fails.

    Args:
        files: by target, where the estimates go; folders are made.
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
            encoding.check(rate, channels)
        except ConfigError as error:
            raise ConfigError(f"{song}: {error}") from error
        advance = begin(reader.frames / rate) if begin else None
        temporaries = stack.enter_context(atomic_paths(list(files.values())))
        writers = {
            target: stack.enter_context(
                AudioWriter(temporary, rate, channels, encoding, frames=reader.frames, shown=path)
            )
            for (target, path), temporary in zip(files.items(), temporaries, strict=True)
        }
        samples = 0
        for block in separator.stream(reader.blocks(), rate, list(writers), name=song):
            samples += block.shape[-1]
            for writer, estimate in zip(writers.values(), block, strict=True):
                writer.write(estimate)
            if advance is not None:
                advance(block.shape[-1] / rate)
    clipped = {target: writer.clipped for target, writer in writers.items()}
    return Stems(
        song=song,
        files=dict(files),
        sample_rate=rate,
        channels=channels,
        seconds=samples / rate,
        peaks={target: writer.peak for target, writer in writers.items()},
        clipped=clipped,
        notes=_notes(separator, reader, clipped),
    )


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
        notes.append(f"values above full scale were clipped: {', '.join(cut)} (wav 32f keeps them)")
    return notes


def check_writable(folder: Path, what: str = "") -> None:
    """Make ``folder`` and raise an AudioError that begins with ``what`` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = what or f"output_dir {folder}"
        raise AudioError(f"{what}: cannot be written: {error.strerror}") from error


def _same(path: Path) -> str:
    # Some systems do not tell upper from lower case.
    return os.path.realpath(path).casefold()


def _check_template(template: str) -> None:
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
