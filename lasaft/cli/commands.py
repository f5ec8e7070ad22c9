"""The ``lasaft`` command: separate songs, score stems, import and export networks, their cards."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lasaft import __version__
from lasaft.card import CARDS, Licences, card_of, read_cards, stated
from lasaft.checkpoint_record import CONFIG, read_record
from lasaft.cli.completion import SHELLS, completion
from lasaft.cli.console import (
    complain,
    listed,
    outcome,
    print_json,
    print_table,
    stopped_by_signals,
    text_of,
)
from lasaft.cli.grammar import Given, Verb, near, parse
from lasaft.cli.help import row
from lasaft.cli.separate import SEPARATE
from lasaft.config import Settings, option
from lasaft.errors import ConfigError, LasaftError, Problem
from lasaft.files import atomic_write_json
from lasaft.options import did_you_mean, options_of
from lasaft.output import be_quiet, keep_output, say, shown

if TYPE_CHECKING:
    from lasaft.metrics.folders import TrackScores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 all well, 1 something failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """
    keep_output()
    try:
        with stopped_by_signals():
            try:
                return _run(sys.argv[1:] if arguments is None else arguments)
            finally:
                sys.stdout.flush()
    except LasaftError as error:
        complain(listed(error))
        return error.exit_code
    except OSError as error:
        complain(text_of(error))
        return 1
    except KeyboardInterrupt as stop:
        complain("interrupted; what was finished is kept, nothing is half-written")
        return 128 + getattr(stop, "number", signal.SIGINT)
    finally:
        be_quiet(False)


def _run(words: Sequence[str]) -> int:
    first, rest = (words[0], words[1:]) if words else ("", [])
    if first in ("--help", "-h"):
        sys.stdout.write(_page())
        return 0
    if first == "--version":
        sys.stdout.write(f"lasaft {__version__}\n")
        return 0
    if first == "--completion":
        shell = rest[0] if rest else ""
        sys.stdout.write(completion(shell, ("lasaft",), {"lasaft": VERBS}, LASAFT))
        return 0
    name = first.replace("_", "-")
    if name not in VERBS:
        hint = did_you_mean(name, VERBS)
        allowed = f"{', '.join(VERBS)}, --help, --version{hint}"
        raise ConfigError(Problem("command", repr(first) if first else "none", allowed))
    given = parse(name, VERBS[name], rest)
    if isinstance(given, str):
        sys.stdout.write(given)
        return 0
    say(f"{name}: {' '.join(map(shown, given.words))} ...")
    return VERBS[name].run(given)


def _page() -> str:
    lines = ["lasaft: conditioned music source separation", ""]
    lines += ["usage: lasaft COMMAND WORDS [--OPTION VALUE]...", ""]
    for name, verb in VERBS.items():
        lines += row(name, verb.summary)
    lines += row("COMMAND --help", "lists its options; --help OPTION explains one")
    lines += row("--version", "says which this is")
    lines += row(f"--completion {'|'.join(SHELLS)}", "prints what your shell's start file sources")
    return "\n".join(lines) + "\n"


class _ImportOptions(Settings):
    sources: tuple[str, ...] | None = option(
        None, "names in the order of the condition numbers (None: MUSDB18's)"
    )


def _import_checkpoint(given: Given) -> int:
    from lasaft.authors.importing import import_checkpoint
    from lasaft.config import variant_name

    file, folder = given.words
    made = import_checkpoint(file, folder, given.options.sources)
    variant = variant_name(made.config)
    if made.left_out:
        say(f"{file}: left out, because they are objects: {', '.join(made.left_out)}")
    if made.assumed:
        taken = ", ".join(f"{name} {value}" for name, value in made.assumed.items())
        say(f"{file}: not in the file, so taken as usual: {taken}")
    if given.json:
        result = {"folder": folder, "hash": made.hash, "model": variant}
        print_json({**result, "left_out": made.left_out, "assumed": made.assumed})
    else:
        rows = [(folder, variant, ", ".join(made.config.sources), made.hash[:12])]
        print_table(("checkpoint", "model", "sources", "hash"), rows)
    return 0


def _export(given: Given) -> int:
    from lasaft.checkpoint import build_model, load_checkpoint
    from lasaft.export import export_model
    from lasaft.separation.stems import check_writable
    from lasaft.separation.wave_export import export_waves

    folder, file = given.words
    check_writable(Path(file).parent, file)
    checkpoint = load_checkpoint(folder)
    card = card_of(checkpoint.provenance, checkpoint.hash)
    provenance = {"checkpoint": checkpoint.hash, **checkpoint.provenance, "card": card}
    export = export_waves if "with_stft" in given.flags else export_model
    done = export(build_model(checkpoint), file, provenance)
    multiple = done.frame_multiple
    if given.json:
        result = {"file": str(done.path), "bytes": done.bytes, "error": done.error}
        frames = {"frame_multiple": multiple, "least_frames": multiple and 2 * multiple}
        print_json(result | frames)
    else:
        frames = f"{2 * multiple}, {3 * multiple}, {4 * multiple} ..." if multiple else "any length"
        found = (str(done.path), f"{done.bytes / 1e6:.1f}", frames, f"{done.error:.1e}")
        print_table(("file", "MB", "frames", "difference"), [found])
    return 0


def _card(given: Given) -> int:
    folder = Path(given.words[0])
    if (folder / CARDS).is_file():
        if given.explicit:
            allowed = f"a checkpoint folder; {folder} holds stems, whose licences are stated there"
            raise ConfigError(Problem("DIR", str(folder), allowed))
        cards = read_cards(folder)
    else:
        record, _ = read_record(folder)
        if given.explicit:
            record = stated(record, given.options)
            atomic_write_json(folder / CONFIG, record)
        cards = [card_of(record["provenance"], record.get("hash"))]
    if given.json:
        print_json(cards)
    for card in cards if not given.json else ():
        rows = [
            (name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
            for name, value in card.items()
        ]
        print_table(("card", str(folder)), rows)
    return 0


class _ScoreOptions(Settings):
    output_dir: Path = option(Path("scores"), "gets <track>.json")


def _score(given: Given) -> int:
    from lasaft.metrics.folders import medians, score_folders
    from lasaft.separation.stems import check_writable

    references, estimates = map(Path, given.words)
    output_dir = near(given.options.output_dir)
    check_writable(output_dir)
    done: list[TrackScores] = []
    failed: list[str] = []
    for result in score_folders(references, estimates, output_dir):
        if isinstance(result, LasaftError):
            failed.append(str(result))
            complain(str(result))
            continue
        done.append(result)
        for note in result.notes:
            say(note)
    table = medians(done)
    if given.json:
        print_json({"tracks": table, "failed": failed})
    else:
        rows = [
            (track, source, *map(_cell, values.values()))
            for track, sources in table.items()
            for source, values in sources.items()
        ]
        print_table(("track", "source", "SDR", "ISR", "SIR", "SAR", "frames", "NaN"), rows)
        say("dB, median over frames of 1 s; NaN: frames without a score (silence)")
    return outcome(len(done) + len(failed), len(failed), "tracks were scored")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


VERBS = {
    "separate": SEPARATE,
    "score": Verb(
        "Score estimates against references with BSS Eval v4 (museval's numbers and JSON): "
        "folders of <source>.wav, <track>/<source>.wav or <split>/<track>/<source>.wav.",
        ("REFERENCE_DIR", "ESTIMATE_DIR"),
        _score,
        _ScoreOptions,
    ),
    "import-checkpoint": Verb(
        "Make a checkpoint folder of one of the authors' .ckpt files; nothing in it is run.",
        ("FILE.ckpt", "DIR"),
        _import_checkpoint,
        _ImportOptions,
    ),
    "export": Verb(
        "Write a network as one ONNX (.onnx) or torch.export (.pt2) file; it maps spectrograms "
        "to spectrograms, with --with_stft waveforms to waveforms.",
        ("CHECKPOINT", "FILE"),
        _export,
        flags={
            "with_stft": "of ONNX: from waveform to waveforms of any length, STFT and chunks inside"
        },
    ),
    "card": Verb(
        "Print where weights come from, and under which licences: of a checkpoint, or of the "
        "stems in a folder. A licence that is given is written into the checkpoint.",
        ("DIR",),
        _card,
        Licences,
    ),
}
# For the completion of shells: the options of each command, and its flags.
LASAFT = {
    name: (options_of(verb.options), dict.fromkeys(verb.all_flags, ()))
    for name, verb in VERBS.items()
}
