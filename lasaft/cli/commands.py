"""The ``lasaft`` command: separate songs, score stems, import and export networks."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasaft import __version__
from lasaft.cli.console import complain, print_json, print_table, say, stopped_by_signals, text_of
from lasaft.errors import LasaftError, StageError
from lasaft.output import keep_output, shown

if TYPE_CHECKING:
    from lasaft.audio import Encoding
    from lasaft.metrics.folders import TrackScores
    from lasaft.separation.separator import Separator
    from lasaft.separation.stems import Stems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 all well, 1 something failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """
    keep_output()
    try:
        with stopped_by_signals():
            try:
                options = _parser().parse_args(arguments)
                return options.run(options)
            finally:
                sys.stdout.flush()
    except LasaftError as error:
        complain(str(error))
        return error.exit_code
    except OSError as error:
        complain(text_of(error))
        return 1
    except KeyboardInterrupt as stop:
        complain("interrupted; what was finished is kept, nothing is half-written")
        return 128 + getattr(stop, "number", signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lasaft", description="Conditioned music source separation.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lasaft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_separate(commands)
    _add_score(commands)
    _add_import(commands)
    _add_export(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _add_separate(commands: Any) -> None:
    parser = _command(commands, "separate", _separate, "Separate songs into their sources.")
    add = parser.add_argument
    add("songs", nargs="+", type=Path, metavar="SONG", help="wav, flac, mp3 or ogg")
    add("--checkpoint", required=True, type=Path, metavar="C", help="a checkpoint folder")
    add("--output_dir", required=True, type=Path, metavar="D", help="where the stems go")
    add("--targets", metavar="A,B", help="the sources wanted (default: all)")
    add(
        "--overlap_ratio",
        type=float,
        default=0.5,
        metavar="R",
        help="share of a chunk that is separated twice, 0 to 0.5 (default: %(default)s)",
    )
    add("--batch_size", type=int, default=1, metavar="N", help="chunks at once (default: 1)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", choices=("32", "bf16"), default="32", help="default: %(default)s")
    add("--format", choices=("wav", "flac", "mp3"), help="of the stems (default: wav)")
    add("--bits", choices=("16", "24", "32f"), help="default: 32f for wav, 24 for flac")
    add(
        "--name",
        default=None,
        metavar="TEMPLATE",
        help="of the files in output_dir, with {track} and {source} (default: {track}/{source})",
    )


def _add_import(commands: Any) -> None:
    text = "Make a checkpoint folder of one of the authors' .ckpt files; nothing in it is run."
    parser = _command(commands, "import-checkpoint", _import_checkpoint, text)
    parser.add_argument("file", type=Path, metavar="FILE.ckpt")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the checkpoint folder to make")
    parser.add_argument(
        "--sources", metavar="A,B", help="names in the order of the condition numbers"
    )


def _add_export(commands: Any) -> None:
    text = "Write a network as one ONNX or torch.export file; it maps spectrograms to spectrograms."
    parser = _command(commands, "export", _export, text)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint folder")
    parser.add_argument("file", type=Path, metavar="FILE", help="ends in .onnx or .pt2")


def _add_score(commands: Any) -> None:
    text = "Score estimates against references with BSS Eval v4 (museval's numbers and JSON)."
    parser = _command(commands, "score", _score, text)
    layout = "<source>.wav, <track>/<source>.wav or <split>/<track>/<source>.wav"
    parser.add_argument("references", type=Path, metavar="REFERENCE_DIR", help=layout)
    parser.add_argument("estimates", type=Path, metavar="ESTIMATE_DIR", help="the same names")
    parser.add_argument(
        "--output_dir", required=True, type=Path, metavar="D", help="gets <track>.json"
    )


def _separate(options: argparse.Namespace) -> int:
    from lasaft.audio import Encoding
    from lasaft.separation.stems import DEFAULT_NAME, check_writable, file_format, plan_files

    template = DEFAULT_NAME if options.name is None else options.name
    suffix = file_format(template, options.format)
    encoding = Encoding(suffix, options.bits or "")
    songs = list(dict.fromkeys(options.songs))
    separator, digest = _make_separator(options)
    targets = separator.targets(_names(options.targets))
    plan = plan_files(songs, targets, options.output_dir, template, suffix)
    check_writable(options.output_dir)
    done: list[Stems] = []
    failed: dict[str, str] = {}
    for song, files in zip(songs, plan, strict=True):
        try:
            done.append(_separate_song(separator, song, files, encoding))
        except (LasaftError, OSError) as error:
            failed[str(song)] = text = text_of(error)
            complain(text.replace(str(song), shown(str(song))))  # its name may hold lines
            continue
        for note in done[-1].notes:
            say(f"{shown(str(song))}: {note}")
    if options.json:
        results = [stems.as_json() for stems in done]
        print_json({"checkpoint": digest, "songs": results, "failed": failed})
    else:
        rows = [
            (str(path), f"{stems.seconds:.1f}", _peak(stems.peaks[target]))
            for stems in done
            for target, path in stems.files.items()
        ]
        print_table(("file", "seconds", "peak"), rows)
    return _outcome(len(songs), len(failed), "songs were separated")


def _peak(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def _make_separator(options: argparse.Namespace) -> tuple[Separator, str]:
    from lasaft.checkpoint import build_model, load_checkpoint
    from lasaft.device import find_device
    from lasaft.separation.separator import Separator

    device = find_device(options.device)
    checkpoint = load_checkpoint(options.checkpoint)
    separator = Separator(
        build_model(checkpoint, device),
        overlap_ratio=options.overlap_ratio,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    return separator, checkpoint.hash


def _separate_song(
    separator: Separator, song: Path, files: dict[str, Path], encoding: Encoding
) -> Stems:
    import torch
    from tqdm import tqdm

    from lasaft.separation.stems import separate_file

    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with ExitStack() as stack:

        def begin(seconds: float) -> Callable[[float], object]:
            # disable=None: a bar on a terminal only.
            bar = tqdm(
                total=seconds, desc=song.name, unit="s", bar_format=layout, file=sys.stderr,
                disable=None, dynamic_ncols=True,
            )  # fmt: skip
            return stack.enter_context(bar).update

        try:
            return separate_file(separator, song, files, encoding, begin)
        except torch.OutOfMemoryError as error:
            raise StageError(f"{song}: the device ran out of memory, try batch_size 1") from error


def _import_checkpoint(options: argparse.Namespace) -> int:
    from lasaft.authors.importing import import_checkpoint
    from lasaft.config import variant_name

    made = import_checkpoint(options.file, options.folder, _names(options.sources))
    variant = variant_name(made.config)
    if made.left_out:
        say(f"{options.file}: left out, because they are objects: {', '.join(made.left_out)}")
    if made.assumed:
        taken = ", ".join(f"{name} {value}" for name, value in made.assumed.items())
        say(f"{options.file}: not in the file, so taken as usual: {taken}")
    if options.json:
        result = {"folder": str(options.folder), "hash": made.hash, "model": variant}
        print_json({**result, "left_out": made.left_out, "assumed": made.assumed})
    else:
        rows = [(str(options.folder), variant, ", ".join(made.config.sources), made.hash[:12])]
        print_table(("checkpoint", "model", "sources", "hash"), rows)
    return 0


def _export(options: argparse.Namespace) -> int:
    from lasaft.checkpoint import build_model, load_checkpoint
    from lasaft.export import export_model
    from lasaft.separation.stems import check_writable

    check_writable(options.file.parent, str(options.file))
    checkpoint = load_checkpoint(options.checkpoint)
    provenance = {"checkpoint": checkpoint.hash, **checkpoint.provenance}
    done = export_model(build_model(checkpoint), options.file, provenance)
    multiple = done.frame_multiple
    if options.json:
        result = {"file": str(done.path), "bytes": done.bytes, "error": done.error}
        print_json({**result, "frame_multiple": multiple, "least_frames": 2 * multiple})
    else:
        frames = f"{2 * multiple}, {3 * multiple}, {4 * multiple} ..."
        row = (str(done.path), f"{done.bytes / 1e6:.1f}", frames, f"{done.error:.1e}")
        print_table(("file", "MB", "frames", "difference"), [row])
    return 0


def _score(options: argparse.Namespace) -> int:
    from lasaft.metrics.folders import medians, score_folders
    from lasaft.separation.stems import check_writable

    check_writable(options.output_dir)
    done: list[TrackScores] = []
    failed: list[str] = []
    for result in score_folders(options.references, options.estimates, options.output_dir):
        if isinstance(result, LasaftError):
            failed.append(str(result))
            complain(str(result))
            continue
        done.append(result)
        for note in result.notes:
            say(note)
    table = medians(done)
    if options.json:
        print_json({"tracks": table, "failed": failed})
    else:
        rows = [
            (track, source, *map(_cell, values.values()))
            for track, sources in table.items()
            for source, values in sources.items()
        ]
        print_table(("track", "source", "SDR", "ISR", "SIR", "SAR", "frames", "NaN"), rows)
        say("dB, median over frames of 1 s; NaN: frames without a score (silence)")
    return _outcome(len(done) + len(failed), len(failed), "tracks were scored")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _outcome(total: int, failed: int, what: str) -> int:
    if failed:
        complain(f"{total - failed} of {total} {what}, {failed} failed (named above)")
    return 1 if failed else 0
