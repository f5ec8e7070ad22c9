"""People's own data: any sources, wav or flac, splits by folders or a file, hostile names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lasaft.errors import DataError
from lasaft.output import shown
from pipeline.config.fingerprints import content_hash, listing_hash
from pipeline.data.shards.manifest import Manifest
from pipeline.data.songs.tracks import list_tracks, read_track, source_hash
from pipeline.data.songs.wanted import Wanted
from pipeline.data.windows.loader import validation_tracks
from pipeline.data.windows.reader import ShardSet
from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import examined, faults_in, noise, write_track

SOURCES = ("piano", "violin")


def _names(root: Path) -> list[str]:
    return [str(track) for track in list_tracks(root, Wanted(SOURCES))]


def _faults(root: Path) -> list[str]:
    return faults_in(root, list_tracks(root, Wanted(SOURCES)))


def _own(root: Path, *names: str, mixture: bool = False, seconds: float = 0.5) -> None:
    stems = (*SOURCES, "mixture") if mixture else SOURCES
    for name in names:
        write_track(root / name, seconds=seconds, stems=stems)


def _problems(root: Path, text: str) -> list[str]:
    (root / "splits.yaml").write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        _names(root)
    message = str(caught.value)
    assert message.startswith(f"{root / 'splits.yaml'}: ")
    return message.removeprefix(f"{root / 'splits.yaml'}: ").split("\n  ")


def test_a_file_says_which_track_is_in_which_split(tmp_path: Path) -> None:
    _own(tmp_path, "a", "b", "c", "007", "nobody", "train/inside")
    text = "# by hand\nvalid: [b]\ntest:\n  - c\n  - inside\ntrain: [a, 007]\n"
    (tmp_path / "splits.yaml").write_text(text)
    assert _names(tmp_path) == ["train/007", "train/a", "valid/b", "test/c", "test/inside"]
    assert _faults(tmp_path) == []


def test_the_file_wins_over_folders_and_mus_yaml(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", "train/b", "test/c")
    (tmp_path / "mus.yaml").write_text("validation_tracks: [a]")
    (tmp_path / "splits.yaml").write_text("train: [c]\nvalid: [b]")
    assert _names(tmp_path) == ["train/c", "valid/b"]


def test_every_fault_of_the_file_is_told_at_once(tmp_path: Path) -> None:
    _own(tmp_path, "Blue Sky", "Red Sea")
    text = "train: [Blue Skye, Red Sea]\nvalidation: [x]\nvalid:\n  - Red Sea\n  - ../Blue Sky\n"
    problems = _problems(tmp_path, text + f"test: [{tmp_path / 'Red Sea'}]\n")
    assert problems[0] == "5 faults:"
    assert problems[1:4] == [
        "'validation' is no split; allowed: train, valid, test; did you mean valid?",
        "line 1: train names 'Blue Skye', and there is no such track; did you mean Blue Sky?",
        "line 4: valid names 'Red Sea', which train has already",
    ]
    assert "names '../Blue Sky', and there is no such track" in problems[4]
    assert f"names '{tmp_path}/Red Sea', and there is no such track" in problems[5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: a", "line 1: train is no list"),
        ("- a", "line 1 is no mapping"),
        ("train: [{a: b}]", "train has an item that is no text (line 1)"),
        ("train: [!!python/object/apply:os.system [ls]]", "has an item that is no text"),
        ("train: &x [a]\nvalid: *x", "is no plain YAML (line 1: anchors"),
        ("train: [" * 3000, "is no plain YAML"),
        ("train: [\x07]", "is no plain YAML"),
        ("train: [a]\ntrain: []", "line 2: train is given twice"),
        ("", "names no track"),
        ("train: []\nvalid:\n", "names no track"),
    ],
)
def test_a_file_that_is_no_list_of_names_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    _own(tmp_path, "a")
    assert problem in _problems(tmp_path, text)[0]


@pytest.mark.timeout(20)
def test_very_many_faults_of_the_file_are_told_in_part(tmp_path: Path) -> None:
    _own(tmp_path, *(f"songs{number}" for number in range(3)))
    names = "".join(f"- song {number}\n" for number in range(20_000))
    (line, *rest) = _problems(tmp_path, "train:\n" + names)
    assert line.endswith("20000 faults:")
    assert (len(rest), rest[-1].strip()) == (101, "and 19900 more")


def test_two_tracks_of_one_name_are_told(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", "test/a")
    assert "two tracks are called 'a'" in _problems(tmp_path, "train: [a]")[0]


def test_flac_and_wav_stems_are_the_same_data(tmp_path: Path) -> None:
    for place, suffix in (("wav", "wav"), ("flac", "FLAC")):
        folder = tmp_path / place / "train" / "a"
        folder.mkdir(parents=True)
        for seed, name in enumerate((*SOURCES, "mixture")):
            file = folder / f"{name}.{suffix}"
            soundfile.write(str(file), noise(1, seed=seed), 44100, subtype="PCM_16")
    one, other = (
        read_track(list_tracks(tmp_path / place, Wanted(SOURCES))[0]) for place in ("wav", "flac")
    )
    assert torch.equal(one.sources, other.sources)
    assert torch.equal(one.mixture, other.mixture)
    assert _faults(tmp_path / "flac") == []


def test_without_mixtures_the_mixture_is_the_sum(tmp_path: Path) -> None:
    _own(tmp_path, "train/a")
    audio = read_track(list_tracks(tmp_path, Wanted(SOURCES))[0])
    assert torch.equal(audio.mixture, audio.sources[0] + audio.sources[1])


def test_one_missing_mixture_among_others_is_a_fault(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", mixture=True)
    _own(tmp_path, "train/b")
    assert _faults(tmp_path) == [
        "train/b: mixture.wav is missing; --missing_stems silence (or skip) takes the sum of the "
        "sources"
    ]


def test_own_sources_become_shards(tmp_path: Path) -> None:
    _own(tmp_path / "songs", "train/a", "valid/b")
    config = small_config(tmp_path / "songs", tmp_path)
    model = config.model.model_copy(update={"sources": SOURCES})
    manifest: Manifest = make_shards(config.model_copy(update={"model": model}))
    track = manifest.split("train")[0]
    rows = torch.empty(3, 4, track.frames, 257)
    for row, column in zip(rows, manifest.settings.columns, strict=True):
        ShardSet(tmp_path / "shards").read_window(track, column, 0, row)
    ((_, stored),) = validation_tracks(ShardSet(tmp_path / "shards"))
    ((_, summed),) = validation_tracks(ShardSet(tmp_path / "shards"), as_sum=True)
    assert torch.equal(summed.mixture, summed.sources[0] + summed.sources[1])
    assert not torch.equal(summed.mixture, stored.mixture)
    torch.testing.assert_close(summed.mixture, stored.mixture, rtol=2e-3, atol=2e-2)
    # Each of the three columns is rounded to float16 by itself: 2^-11 of its size.
    torch.testing.assert_close(rows[2], rows[0] + rows[1], rtol=2e-3, atol=2e-2)


def test_stems_of_two_kinds_and_damaged_flac_are_faults(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", "train/b")
    soundfile.write(str(tmp_path / "train" / "a" / "piano.flac"), noise(0.5), 44100)
    file = tmp_path / "train" / "b" / "violin.flac"
    (file.parent / "violin.wav").unlink()
    soundfile.write(str(file), noise(0.5), 44100)
    file.write_bytes(file.read_bytes()[:-3000])
    assert _faults(tmp_path) == [
        "train/a: piano.flac and piano.wav are one stem; keep one",
        "train/b: violin.flac is truncated: its header says 22050 samples",
    ]


def test_a_silent_track_is_a_fault_and_a_silent_stem_a_note(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", "train/b", seconds=7)
    silence = np.zeros((7 * 44100, 2), np.int16)
    for file in (tmp_path / "train" / "a").iterdir():
        soundfile.write(str(file), silence, 44100, subtype="PCM_16")
    piano, violin = (tmp_path / "train" / "b" / f"{name}.wav" for name in ("piano", "violin"))
    soundfile.write(str(violin), silence, 44100, subtype="PCM_16")
    soundfile.write(str(piano), silence + np.array([500, -500], np.int16), 44100, subtype="PCM_16")
    tracks = list_tracks(tmp_path, Wanted(SOURCES))
    assert _faults(tmp_path) == [
        "train/a: every stem is silent throughout; allowed: a track that sounds"
    ]
    none, notes = [found.notes for found in examined(tmp_path, tracks)]
    assert none == []
    assert set(notes) == {
        "violin is silent throughout: it gets no SDR there, only a leak",
        "piano has channels that add up to zero throughout: it gets no SDR there, only a leak",
        "mixture has channels that add up to zero throughout",
    }


def test_samples_that_are_no_numbers_are_found_before_any_work(tmp_path: Path) -> None:
    audio = np.full((7 * 44100, 2), 0.1, np.float32)
    audio[-5, 1] = np.inf
    for stem in SOURCES:
        file = tmp_path / "train" / "a" / f"{stem}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(file), audio, 44100, subtype="FLOAT")
    assert _faults(tmp_path) == ["train/a: piano is not finite at sample 308695; allowed: numbers"]


def test_a_data_set_of_links_is_the_data_that_they_lead_to(tmp_path: Path) -> None:
    _own(tmp_path / "real", "train/a", "train/b", "test/c")
    root, blobs = tmp_path / "set", tmp_path / "blobs"
    root.mkdir()
    (root / "test").symlink_to(tmp_path / "real" / "test")  # a split
    (root / "train").mkdir()
    (root / "train" / "b").symlink_to("../../real/train/b")  # a song
    (root / "train" / "a").mkdir()
    blobs.mkdir()
    for number, file in enumerate(sorted((tmp_path / "real" / "train" / "a").iterdir())):
        blob = blobs / str(number)  # files whose names say nothing, as in a cache
        blob.write_bytes(file.read_bytes())
        (root / "train" / "a" / file.name).symlink_to(blob)
    assert _faults(root) == []
    places = (list_tracks(place, Wanted(SOURCES)) for place in (tmp_path / "real", root))
    for real, linked in zip(*places, strict=True):
        assert (linked.name, linked.split) == (real.name, real.split)
        assert source_hash(linked) == source_hash(real)
        assert torch.equal(read_track(linked).sources, read_track(real).sources)
    notes = [found.notes for found in examined(root, list_tracks(root, Wanted(SOURCES)))]
    assert notes == [["its files are links that lead out of the data set"]] * 3
    before = listing_hash(root, times=True)
    file = tmp_path / "real" / "test" / "c" / "piano.wav"
    file.write_bytes(file.read_bytes() + bytes(8))
    assert listing_hash(root, times=True) != before


def test_a_folder_that_holds_itself_is_hashed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "a" / "again").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    assert content_hash(tmp_path) == content_hash(tmp_path) is not None


def test_links_to_what_is_not_there_are_told(tmp_path: Path) -> None:
    _own(tmp_path, "train/a", "train/b")
    for name, target in (("a", "not fetched"), ("b", "piano.wav")):
        file = tmp_path / "train" / name / "piano.wav"
        file.unlink()
        file.symlink_to(target)
    assert _faults(tmp_path) == [
        "train/a, train/b: piano.wav is a link to a file that is not there"
    ]
    (tmp_path / "train" / "c").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"train/c: is a link to something that is not there"):
        list_tracks(tmp_path, Wanted(SOURCES))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\\..\\b", "a\u202eb"])
def test_names_that_could_mislead_are_faults(tmp_path: Path, name: str) -> None:
    _own(tmp_path, f"train/{name}")
    (fault,) = _faults(tmp_path)
    assert fault.endswith("rename it")
    assert fault.isprintable()


@pytest.mark.parametrize(
    "name", ["\u200ea", "a\u200fb", "a\u200cb", "\u2066a\u2069 b", "\u202aa\u202c"]
)
def test_names_with_marks_of_direction_are_names(tmp_path: Path, name: str) -> None:
    _own(tmp_path, f"train/{name}")
    assert _faults(tmp_path) == []
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown(name))


def test_very_long_and_odd_names_stay_inside_the_shard_folder(tmp_path: Path) -> None:
    names = ["n" * 255, "..a", "~", "-rf", "a:b*c?", "CON", " x"]
    _own(tmp_path / "songs", *(f"train/{name}" for name in names))
    config = small_config(tmp_path / "songs", tmp_path / "out")
    model = config.model.model_copy(update={"sources": SOURCES})
    manifest = make_shards(config.model_copy(update={"model": model}))
    found = set(tmp_path.rglob("*.arrow"))
    assert len(found) == len([name for name in names if name[0] != "."]) == len(manifest.tracks)
    assert {path.parent for path in found} == {tmp_path / "out" / "shards" / "train"}
