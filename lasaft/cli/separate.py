"""``lasaft separate``: songs, folders of songs and standard input into files of their sources."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING, Literal

from lasaft.card import Card, card_of, read_cards, write_cards
from lasaft.checkpoint_record import WEIGHTS, read_record
from lasaft.cli.console import complain, outcome, print_json, print_table, text_of
from lasaft.cli.grammar import Given, Verb, near
from lasaft.config import Settings, option
from lasaft.errors import AudioError, ConfigError, LasaftError, Problem
from lasaft.files import no_file
from lasaft.options import did_you_mean
from lasaft.output import is_quiet, say, shown
from lasaft.targets import members, rest_of, targets_in_words

if TYPE_CHECKING:
    from lasaft.audio import Encoding
    from lasaft.separation.separator import Separator
    from lasaft.separation.stems import Making, Stems

_STDIN = "standard input"
# How deep below the working folder networks are looked for: runs/film/checkpoint.
_DEPTH = 3


class SeparateOptions(Settings):
    """The options of ``lasaft separate``."""

    checkpoint: Path | None = option(
        None, "a checkpoint folder (None: the last one that was trained or imported here)"
    )
    output_dir: Path = option(Path("separated"), "where the stems go")
    targets: tuple[str, ...] | None = option(
        None, "the sources wanted; a+b: the sum of two (None: all)"
    )
    two_stems: str | None = option(None, "one source or a+b, and all the rest as no_<source>")
    other_method: Literal["minus", "add"] = option(
        "minus", "the rest of two_stems: the mixture minus the source, or the sum of the others"
    )
    overlap_ratio: float = option(0.5, "share of a chunk that is separated twice", ge=0, le=0.5)
    shifts: int = option(1, "passes, with chunks cut elsewhere, that are averaged", ge=1, le=100)
    batch_size: int = option(1, "chunks at once; on a GPU halved where memory lacks", ge=1)
    device: str = option("auto", "auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps")
    jobs: int | None = option(
        None, "songs at a time (None: one for each four cores, one on a GPU)", ge=1, le=256
    )
    precision: Literal["32", "bf16"] = option("32", "of the network's arithmetic")
    format: Literal["wav", "flac", "mp3"] | None = option(None, "of the stems (None: wav)")
    bits: Literal["16", "24", "32f"] | None = option(None, "None: 32f for wav, 24 for flac")
    bitrate: int | None = option(None, "of mp3, in kbit/s (None: variable)", ge=8, le=320)
    clip_mode: Literal["rescale", "clamp", "none"] = option(
        "none", "beyond full scale: turn the stem down, cut, or leave what the format can hold"
    )
    name: str = option("{track}/{source}", "of the files, with {track} and {source}")


@dataclass(frozen=True)
class _Song:
    """A file to read, what ``{track}`` stands for, and what messages call it."""

    path: Path
    track: str
    shown: str


def _problems(given: Given) -> Iterator[Problem]:
    from lasaft.device import require_device_name
    from lasaft.separation.stems import check_template

    options: SeparateOptions = given.options
    checks: tuple[Callable[[], object], ...] = (
        lambda: require_device_name(options.device),
        lambda: check_template(options.name),
        lambda: _encoding(options),
    )
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield from error.problems
    if options.two_stems is None and "other_method" in given.explicit:
        yield Problem("other_method", reason="has no effect without two_stems; leave it out")
    if options.two_stems is not None and options.targets is not None:
        yield Problem("targets", reason="allowed only without two_stems, which names its source")
    if given.words.count("-") > 1:
        yield Problem("SONG", "-", reason="twice: standard input is read once")


def _encoding(options: SeparateOptions) -> Encoding:
    from lasaft.audio import Encoding
    from lasaft.separation.stems import file_format

    suffix = file_format(options.name, options.format)
    return Encoding(suffix, options.bits or "", options.bitrate)


def _separate(given: Given) -> int:
    from lasaft.separation.stems import Making, check_writable, plan_files

    options: SeparateOptions = given.options
    encoding = _encoding(options)
    folder = _last_checkpoint() if options.checkpoint is None else near(options.checkpoint)
    other_method = options.other_method if options.two_stems else ""
    making = Making(_targets(folder, options), other_method, encoding, options.clip_mode)
    output_dir = near(options.output_dir)
    with TemporaryDirectory(prefix="lasaft-") as spool:
        songs = list(dict.fromkeys(song for word in given.words for song in _songs(word, spool)))
        plan = plan_files(
            [song.path for song in songs], making.files, output_dir, options.name,
            encoding.format, tracks=[song.track for song in songs],
        )  # fmt: skip
        check_writable(output_dir)
        for place in {path.parent for files in plan for path in files.values()}:
            read_cards(place)
        if not any(song.path.is_file() for song in songs):
            missing = [shown(f"{song.shown}: {no_file(song.path)}") for song in songs]
            raise AudioError("\n".join(missing))
        separator, card = _make_separator(folder, options)
        done: list[tuple[_Song, Stems]] = []
        failed: dict[str, str] = {}
        work = partial(_attempt, separator, making, Event())
        with closing(_side_by_side(work, list(zip(songs, plan, strict=True)), options)) as results:
            for song, result in zip(songs, results, strict=True):
                if isinstance(result, str):
                    failed[song.shown] = result
                    complain(result.replace(song.shown, shown(song.shown)))  # it may hold lines
                    continue
                done.append((song, result))
                for place in dict.fromkeys(path.parent for path in result.files.values()):
                    names = [path.name for path in result.files.values() if path.parent == place]
                    write_cards(place, card, names)
                for note in result.notes:
                    say(f"{shown(song.shown)}: {note}")
    if given.json:
        results = [stems.as_json() | {"song": song.shown} for song, stems in done]
        print_json({"checkpoint": card["checkpoint"], "songs": results, "failed": failed})
    else:
        print_table(("file", "seconds", "peak"), [row for _, stems in done for row in _rows(stems)])
    return outcome(len(songs), len(failed), "songs were separated")


def _rows(stems: Stems) -> Iterator[tuple[str, str, str]]:
    for target, path in stems.files.items():
        yield str(path), f"{stems.seconds:.1f}", _peak(stems.peaks[target])


def _peak(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def _last_checkpoint() -> Path:
    """Return the newest checkpoint in or below the working folder; the kept epochs do not count.

    Raises:
        ConfigError: there is none.
    """
    patterns = ["*/" * depth + WEIGHTS for depth in range(_DEPTH + 1)]
    found = [path for pattern in patterns for path in Path().glob(pattern)]
    found = [
        path for path in found if not any(part[:1] == "." or "=" in part for part in path.parts)
    ]
    if not found:
        reason = f"there is none here or {_DEPTH} folders below; train or import one, or name it"
        raise ConfigError(Problem("checkpoint", reason=reason))
    folder = max(found, key=lambda path: path.stat().st_mtime).parent
    say(f"checkpoint: {folder} (the last one trained or imported here; --checkpoint takes another)")
    return folder


def _targets(folder: Path, options: SeparateOptions) -> tuple[str, ...]:
    """Return the sources wanted, of two stems the one, as far as the network knows them."""
    _, config = read_record(folder)
    known = config.sources
    name = "targets" if options.two_stems is None else "two_stems"
    wanted = options.targets if options.two_stems is None else (options.two_stems,)
    unknown = [one for one in wanted or () if not members(one, known)]
    if unknown:
        allowed = targets_in_words(known) + did_you_mean(unknown[0], known)
        raise ConfigError(Problem(name, ", ".join(unknown), allowed))
    if (
        options.two_stems
        and options.other_method == "add"
        and not rest_of(options.two_stems, known)
    ):
        reason = f"leaves no source of {', '.join(known)} for other_method add (minus: the rest)"
        raise ConfigError(Problem(name, options.two_stems, reason=reason))
    return tuple(dict.fromkeys(wanted or known))


def _songs(word: str, spool: str) -> Iterator[_Song]:
    """Yield what a word of the command line stands for: a file, all in a folder, standard input.

    Raises:
        ConfigError: a folder holds no audio file.
        AudioError: standard input is empty.
    """
    from lasaft.audio import ENDINGS

    path = Path(word)
    if word == "-":
        path = Path(spool, "stdin")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        if path.stat().st_size == 0:
            raise AudioError(f"{_STDIN}: is empty")
        yield _Song(path, "stdin", _STDIN)
    elif path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower()[1:] in ENDINGS)
        inside = [file for file in inside if not file.name.startswith(".") and file.is_file()]
        if not inside:
            raise ConfigError(f"{path}: holds no audio file ({', '.join(ENDINGS)})")
        for file in inside:
            yield _Song(file, str(file.relative_to(path).with_suffix("")), str(file))
    else:
        yield _Song(path, path.stem, word)


def _make_separator(folder: Path, options: SeparateOptions) -> tuple[Separator, Card]:
    from lasaft.checkpoint import build_model, load_checkpoint
    from lasaft.device import find_device
    from lasaft.separation.separator import Separator

    device = find_device(options.device)
    if options.device == "auto":
        say(f"device: {device} (--device takes another)")
    checkpoint = load_checkpoint(folder)
    separator = Separator(
        build_model(checkpoint, device),
        overlap_ratio=options.overlap_ratio,
        batch_size=options.batch_size,
        precision=options.precision,
        shifts=options.shifts,
    )
    return separator, card_of(checkpoint.provenance, checkpoint.hash)


def _side_by_side(
    work: partial[Stems | str], items: list[tuple[_Song, dict[str, Path]]], options: SeparateOptions
) -> Generator[Stems | str, None, None]:
    """Yield what ``work`` makes of each item, in their order; closed, what still runs is ended."""
    import torch

    cores, stop = torch.get_num_threads(), work.args[-1]
    on_cpu = options.device == "cpu" or not torch.accelerator.is_available()
    count = min(options.jobs or (max(1, cores // 4) if on_cpu else 1), len(items))
    if count == 1:
        yield from map(work, items)
        return
    threads = max(1, cores // count)
    with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(threads)) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            stop.set()


def _attempt(
    separator: Separator, making: Making, stop: Event, item: tuple[_Song, dict[str, Path]]
) -> Stems | str:
    """Separate a song; return what was made, or what is wrong with it."""
    import torch
    from tqdm import tqdm

    from lasaft.separation.stems import separate_file

    song, files = item
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with ExitStack() as stack:

        def begin(seconds: float) -> Callable[[float], object]:
            # None: a bar on a terminal only.
            bar = tqdm(
                total=seconds, desc=song.path.name, unit="s", bar_format=layout, file=sys.stderr,
                disable=is_quiet() or None, dynamic_ncols=True,
            )  # fmt: skip
            stack.enter_context(bar)

            def advance(seconds: float) -> None:
                if stop.is_set():
                    raise KeyboardInterrupt
                bar.update(seconds)

            return advance

        try:
            return separate_file(separator, song.path, files, making, begin)
        except torch.OutOfMemoryError:
            return f"{song.shown}: one chunk does not fit the device's memory"
        except (LasaftError, OSError) as error:
            return text_of(error).replace(str(song.path), song.shown)


SEPARATE = Verb(
    "Separate songs into their sources. A SONG is a file (wav, flac, mp3, ogg; m4a, aac, mp4, webm "
    "and others with ffmpeg), a folder of them, or - for standard input.",
    ("SONG...",),
    _separate,
    SeparateOptions,
    _problems,
)
