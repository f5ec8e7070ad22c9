"""``python -m jobs.doctor``: what it finds, and what it leaves behind."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from jobs.doctor import main
from pipeline.cluster import shared_storage
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.workflow import doctor
from tests.helpers.programs import path_without
from tests.helpers.songs import make_musdb
from tests.helpers.wavs import noise, write_track

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_a_sound_machine_has_no_fault_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_musdb(tmp_path / "musdb", train=1, valid=1, test=1, seconds=2.0)
    output = tmp_path / "runs" / "one"
    assert main(["--musdb_root", str(root), "--output_dir", str(output), "--num_cpus", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 train, 1 valid, 1 test tracks (MUSDB18 has 86/14/50)" in text
    assert f"output_dir {output} can be written, and is seen from every node" in text
    assert text.rstrip().endswith("all well")
    assert not (tmp_path / "runs").exists()


def test_every_fault_is_named_at_once_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_musdb(tmp_path / "musdb", train=2, valid=0, test=1, seconds=2.0)
    first, second = sorted((root / "train").iterdir())
    (first / "bass.wav").unlink()
    (second / "drums.wav").write_bytes(b"no audio")
    address = "http://127.0.0.1:9"  # nothing listens there
    words = ["--musdb_root", str(root), "--output_dir", str(tmp_path / "run"), "--num_cpus", "1"]
    words += ["--gpus", "64", "--batch_size", "128", "--tracking_uri", address, "--json"]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    faults = [check["text"] for check in found["checks"] if check["verdict"] == "FAULT"]
    assert found["faults"] == len(faults) == 4
    assert any(f"{first.name}: bass.wav is missing" in fault for fault in faults)
    assert any(f"{second.name}: drums.wav cannot be read as audio" in fault for fault in faults)
    assert any("gpus: got 64, the cluster has 0" in fault for fault in faults)
    assert any("tracking_uri: http://127.0.0.1:9 does not answer" in fault for fault in faults)


def _faults(config: RunConfig, name: str) -> list[str]:
    """Run one check as ``examine`` does, and return the texts of its faults."""
    check = doctor._CHECKS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_CHECKS", {name: check})
        return [one.text for one in doctor.examine(config) if one.verdict == "FAULT"]


def _tracking(tmp_path: Path, address: str) -> RunConfig:
    return RunConfig(output_dir=tmp_path, tracking=TrackingConfig(tracking_uri=address))


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK" if self.path == "/mlflow/health" else b"<html>a printer</html>")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_mlflow_server_is_told_from_others(tmp_path: Path, server: str) -> None:
    assert _faults(_tracking(tmp_path, f"http://me:secret@{server}/mlflow"), "mlflow") == []
    (fault,) = _faults(_tracking(tmp_path, f"http://me:secret@{server}"), "mlflow")
    assert fault == f"tracking_uri: http://{server} answers, but not as an MLflow server does"


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "http://[", "http://no\x01host"]
)
def test_an_address_of_no_server_is_a_fault(tmp_path: Path, address: str) -> None:
    (fault,) = _faults(_tracking(tmp_path, address), "mlflow")
    assert fault.startswith("tracking_uri: ")


def test_a_database_that_cannot_be_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, but long enough to look like one" * 100)
    (fault,) = _faults(_tracking(tmp_path, f"sqlite:///{tmp_path}/file"), "mlflow")
    assert "is no SQLite database (file is not a database)" in fault
    (fault,) = _faults(_tracking(tmp_path, f"sqlite:///{tmp_path}/file/x.db"), "mlflow")
    assert f"{tmp_path}/file is no folder that can be written" in fault
    assert _faults(_tracking(tmp_path, f"sqlite:///{tmp_path}/new/x.db"), "mlflow") == []
    assert not (tmp_path / "new").exists()


def test_a_cluster_that_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    config = RunConfig(output_dir=tmp_path, cluster=ClusterConfig(address="no such cluster"))
    (fault,) = _faults(config, "ray")
    assert fault.startswith("address: got 'no such cluster', is no HOST:PORT, allowed: ")


def _on(tmp_path: Path, root: Path) -> RunConfig:
    return RunConfig(output_dir=tmp_path / "run", data=DataConfig(musdb_root=root))


def test_too_small_a_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_track(tmp_path / "songs" / "train" / "a")
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    (fault,) = _faults(_on(tmp_path, tmp_path / "songs"), "songs")
    # 44 frames of five columns of 4 x 1025 float16 values
    assert fault == f"shards in {tmp_path}/run/shards need 0.00 GB, 0.0 GB are free"


def test_stem_mp4_without_ffmpeg_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "songs" / "train").mkdir(parents=True)
    (tmp_path / "songs" / "train" / "a.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", path_without(tmp_path, "ffmpeg", "ffprobe"))
    (fault,) = _faults(_on(tmp_path, tmp_path / "songs"), "songs")
    assert "needs ffmpeg and ffprobe on PATH, which is missing; install" in fault
    ((verdict, _),) = doctor._ffmpeg(RunConfig())
    assert verdict == "note"


def test_what_is_worth_knowing_about_own_data_is_noted(tmp_path: Path) -> None:
    sources = ("vocals", "drums", "bass", "other")
    for name in ("a", "b", "c"):
        write_track(tmp_path / "songs" / name, stems=(*sources, "flute"))
    (tmp_path / "songs" / "splits.yaml").write_text("train: [a]\nvalid: [b]\n")
    notes = [text for _, text in doctor._songs(_on(tmp_path, tmp_path / "songs"))]
    assert notes[:4] == [
        "1 train, 1 valid, 0 test tracks (MUSDB18 has 86/14/50)",
        "splits.yaml leaves out 1 tracks: 'c'",
        "no track has a mixture file: the mixture is the sum of the sources",
        "stems that sources does not name are not read: 'flute'",
    ]
    assert notes[4] == "0.03 minutes of audio (0.02 train, 0.02 valid, 0.00 test)"
    (tmp_path / "songs" / "splits.yaml").write_text("train: [a, b]\n")
    notes = [text for _, text in doctor._songs(_on(tmp_path, tmp_path / "songs"))]
    assert notes[5].startswith("no valid tracks: the training loss selects the model")


def test_the_doctor_names_layout_remedies_and_what_a_run_lacks(tmp_path: Path) -> None:
    for song, stems in {"train/a": ("x", "y"), "train/b": ("x",), "valid/a": ("x", "y")}.items():
        write_track(tmp_path / "songs" / song, stems=stems)
    for name in ("1", "2"):
        soundfile.write(tmp_path / "songs" / "train" / "a" / f"{name}.wav", noise(1), 44100)
    config = _on(tmp_path, tmp_path / "songs")
    (fault,) = _faults(config, "songs")
    assert fault.endswith(
        "no song has a stem called vocals, drums, bass, other; found: x (3), y (2), 1 (1), 2 (1); "
        "allowed: names that are there, such as --sources 1,2,x,y"
    )
    model = config.model.model_copy(update={"sources": ("x", "y")})
    config = config.model_copy(update={"model": model})
    (fault,) = _faults(config, "songs")
    assert fault.startswith("train/b: y.wav is missing; --missing_stems silence reads silence")
    data = config.data.model_copy(update={"missing_stems": "skip"})
    notes = [text for _, text in doctor._songs(config.model_copy(update={"data": data}))]
    assert "missing_stems skip leaves out 1 songs: train/b" in notes
    assert "train and valid both have 'a': is it one song?" in notes
    assert any("there is no test song for evaluation" in note for note in notes)
    for name in ("Track00001", "Track00002"):
        (tmp_path / "slakh" / "train" / name).mkdir(parents=True)
        (tmp_path / "slakh" / "train" / name / "metadata.yaml").write_text(
            "stems: {S00: {inst_class: Guitar}, S01: {inst_class: Bass}}"
        )
        for stem in ("stems/S00", "stems/S01", "mix"):
            file = tmp_path / "slakh" / "train" / name / f"{stem}.flac"
            file.parent.mkdir(exist_ok=True)
            soundfile.write(file, noise(0.1, channels=1), 44100)
    model = model.model_copy(update={"sources": ("bass", "other")})
    config = _on(tmp_path, tmp_path / "slakh").model_copy(update={"model": model})
    notes = [text for verdict, text in doctor._songs(config) if verdict == "note"]
    assert notes[1:4] == [
        "the layout is slakh (--layout)",
        "other is the sum of all stems that sources does not name",
        "train/Track00001, train/Track00002: every stem is mono: both channels are it",
    ]


def test_songs_that_a_node_does_not_see_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_track(tmp_path / "songs" / "train" / "a")
    monkeypatch.setattr(shared_storage, "_PATIENCE_SECONDS", 0.0)
    root = Path("/proc/self/cwd/songs")  # in this process alone
    with connected(ClusterConfig(num_cpus=1)):
        monkeypatch.chdir(tmp_path)
        (fault,) = _faults(_on(tmp_path, root), "ray")
    assert fault.startswith(f"musdb_root: {root} is not shared storage: ")
    assert "lacks what is in it (2 of 2, the first is 'train'); allowed: " in fault


def test_gpus_that_may_still_come_are_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(output_dir=tmp_path / "run", train=TrainConfig(gpus=64, batch_size=128))
    with connected(ClusterConfig(num_cpus=1)):
        assert _faults(config, "ray") == ["gpus: got 64, the cluster has 0"]
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        notes = [text for verdict, text in doctor._ray(config) if verdict == "note"]
    assert notes == [
        "gpus: got 64, the cluster has 0 now; a run waits 15 minutes for more "
        "(wait_for_nodes_minutes)"
    ]
