"""The report's files: whole, honest, self-contained, the same bytes for the same inputs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lasaft.errors import DataError
from pipeline.config import RunConfig, TrackingConfig, TrainConfig, to_json
from pipeline.evaluation.score_table import score_table
from pipeline.evaluation.summary import DataIdentity, Kind, Summary
from pipeline.report.board import read_published
from pipeline.report.build import write_report
from pipeline.report.comparisons import AVERAGE
from pipeline.report.media import Shelf, read_songs
from pipeline.report.page import _tracks
from pipeline.report.training_curves import read_curves
from tests.helpers.scores import (
    SOURCES,
    SYNTHETIC,
    board_of,
    save_excerpt,
    save_journal,
    save_summary,
    scored_summary,
)

HOSTILE = (
    '</script><img src=http://evil.example onerror=alert(1)>{{ 7*7 }} & "it\'s" | \\end{table}'
)
TRACKS = [HOSTILE, "song 1", "song 2"]
MUSDB18 = DataIdentity(
    name="MUSDB18-HQ", kind="MUSDB18-HQ", split="test", hash="12" * 32, complete=True
)


class _Elements(HTMLParser):
    """Collects every start tag with its attributes, and the visible text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


def _run(root: Path, data: DataIdentity = SYNTHETIC, *, listen: bool = False) -> RunConfig:
    mixture = scored_summary("mixture", -3, TRACKS, kind="mixture", seed=2, data=data)
    save_summary(root / "scores", scored_summary("my_net", 5, TRACKS, seed=1, data=data))
    save_summary(root / "scores", mixture)
    if listen:
        save_excerpt(root / "estimates/excerpts/test/x", HOSTILE, ["my_net"])
    save_journal(root / "training/metrics.jsonl")
    return RunConfig(output_dir=root)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("run")
    config = _run(root, listen=True)
    texts = write_report(config).files
    assert len(list((root / "report" / "audio").iterdir())) == 2 * (1 + 4 * 2)
    whole = config.evaluate.model_copy(update={"single_file": True})
    assert write_report(config.model_copy(update={"evaluate": whole})).files == texts
    assert not (root / "report" / "audio").exists()
    return {path.name: path.read_text(encoding="utf-8") for path in texts}


@pytest.fixture(scope="module")
def page(files: dict[str, str]) -> _Elements:
    return _Elements(files["index.html"])


def test_the_report_is_five_files(files: dict[str, str]) -> None:
    names = {"index.html", "leaderboard.csv", "leaderboard.json", "leaderboard.md",
             "leaderboard.tex"}  # fmt: skip
    assert set(files) == names


def test_nothing_is_loaded_from_elsewhere(page: _Elements) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "poster", "srcset", "action", "xlink:href"):
            value = attributes.get(name)
            if value is None or (tag == "a" and value.startswith("https://github.com/")):
                continue  # a link that only a click follows
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not any(tag in ("iframe", "object", "embed", "base") for tag, _ in page.tags)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline'; script" in policy  # styles only
    assert "script-src 'sha256-" in policy


def test_hostile_names_are_text_everywhere(files: dict[str, str], page: _Elements) -> None:
    assert "<img src=http" not in files["index.html"]
    assert HOSTILE in "".join(page.text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\\end{table}" in files["leaderboard.tex"].rstrip()[-11:]
    assert files["leaderboard.tex"].count("\\end{table}") == 1


def test_a_name_reads_in_markdown_as_it_is(tmp_path: Path) -> None:
    name = "a<b>|&_#*`c~ [d]{e}"
    summary = scored_summary("net", 3, TRACKS).model_copy(update={"name": name})
    save_summary(tmp_path / "scores", summary)
    write_report(RunConfig(output_dir=tmp_path))
    table = (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    cell = table[4].split(" | ")[0].removeprefix("| ")
    assert unescape(re.sub(r"\\(.)", r"\1", cell)) == name


@pytest.fixture(scope="module")
def musdb18(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The report of six systems on all test songs of MUSDB18-HQ."""
    root = tmp_path_factory.mktemp("musdb18")
    tracks = [f"Some Artist With a Name - Song Number {number}" for number in range(50)]
    kinds: dict[str, Kind] = {"net 1": "model", "net 2": "model", "net 3": "model",
                              "mixture": "mixture", "irm": "irm", "ibm": "ibm"}  # fmt: skip
    for seed, (name, kind) in enumerate(kinds.items()):
        summary = scored_summary(name, 5, tracks, kind=kind, seed=seed, data=MUSDB18)
        save_summary(root / "scores", summary)
    save_excerpt(root / "estimates/excerpts/test/x", tracks[0], ["net 1", "net 2", "net 3"])
    files = write_report(RunConfig(output_dir=root)).files
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def test_fifty_songs_are_a_small_page_without_the_audio(musdb18: dict[str, str]) -> None:
    html = musdb18["index.html"]
    assert len(html) < 700_000
    # Each system has a box for each score and source, and a dot in it for each song.
    strips = re.findall(r'<svg class="strip.*?</svg>', html)
    assert len(strips) == 6 * 4 * 10
    assert {plot.count("h0M") + plot.count('h0"') for plot in strips} == {50}


def test_title_metric_and_aggregation_stand_on_the_page(page: _Elements) -> None:
    text = "".join(page.text)
    for part in ("Synthetic songs", "BSS Eval v4", "median of frames, median of tracks",
                 "3 tracks", "ab" * 32, "ef" * 32, "jobs.evaluate --run_id my_net"):  # fmt: skip
        assert part in text


def test_the_board_holds_the_summarys_figures(files: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["leaderboard.csv"])))
    expected = scored_summary("my_net", 5, TRACKS, seed=1)
    found = {
        (row["source"], row["metric"], row["aggregation"]): float(row["value_db"])
        for row in rows
        if row["system"] == "my_net"
    }
    for source in SOURCES:
        figure = expected.scores[source]["SIR"]
        assert found[source, "SIR", "median"] == pytest.approx(figure.median, abs=6e-6)
        assert found[source, "SIR", "mean"] == pytest.approx(figure.mean, abs=6e-6)
    assert (AVERAGE, "SDR", "median") in found
    drums = next(r for r in rows if r["system"] == "mixture" and r["source"] == "drums")
    assert (drums["tracks"], drums["frames"], drums["nan_frames"]) == ("3", "36", "3")
    assert drums["data_hash"] == "ab" * 32


def test_json_is_strict_and_holds_definitions_tracks_and_sources(files: dict[str, str]) -> None:
    board = json.loads(files["leaderboard.json"], parse_constant=pytest.fail)
    assert [s["name"] for s in board["systems"]] == ["my_net", "mixture"]
    assert len(board["systems"][0]["tracks"]) == 3
    assert "SiSEC" in board["definitions"]["median"]
    assert board["published"]["comparable"] is False
    assert all(t["source"] and t["url"] and t["metric"] for t in board["published"]["tables"])


def test_other_songs_are_never_put_beside_published_figures(files: dict[str, str]) -> None:
    html = files["index.html"]
    board = html[html.index('class="sorts board"') : html.index("</table>")]
    assert "as published" not in board
    assert "must not be compared" in html
    assert "D3Net" not in files["leaderboard.md"]
    assert "D3Net" not in files["leaderboard.tex"]


def test_on_musdb18_published_rows_stand_in_the_board_marked(musdb18: dict[str, str]) -> None:
    html = musdb18["index.html"]
    board = html[html.index('class="sorts board"') : html.index("</table>")]
    rows = [row for row in board.split("<tr")[2:] if "D3Net" in row]
    assert len(rows) == 1
    assert "as published" in rows[0]
    assert "KUILAB" not in board  # the challenge's metric is another one
    markdown = musdb18["leaderboard.md"]
    assert "D3Net *(as published, 2)*" in markdown
    assert "2. LaSAFT, table 2" in markdown
    assert "KUILAB" not in markdown
    latex = musdb18["leaderboard.tex"]
    assert "D3Net$^{\\dagger 2}$ & 7.24" in latex
    assert "2: LaSAFT, table 2 (n\\_fft 4096): Choi et al." in latex
    assert MUSDB18.hash[:12] in markdown
    assert MUSDB18.hash[:12] in latex


def test_a_row_is_shown_where_it_has_a_figure(musdb18: dict[str, str]) -> None:
    html = musdb18["index.html"]
    rows = re.findall(r'<tr data-has="([^"]*)"[^>]*>\s*<th scope="row">([^<]*)<', html)
    views = {name: has.split() for has, name in rows}
    assert views["D3Net"] == ["SDR-median"]
    assert views["MDX23C"] == ["uSDR-mean"]
    assert len(views["net 1"]) == 10 * 2
    hidden = "[data-metric=SDR][data-aggregation=median] [data-has]:not([data-has~=SDR-median])"
    assert f"{hidden} {{ display: none; }}" in html


def test_the_best_system_leads_where_none_is_named(tmp_path: Path) -> None:
    save_summary(tmp_path / "scores", scored_summary("a", 3, TRACKS))
    save_summary(tmp_path / "scores", scored_summary("b", 9, TRACKS))
    save_summary(tmp_path / "scores", scored_summary("mixture", 20, TRACKS, kind="mixture"))
    assert "<title>b on " in write_report(RunConfig(output_dir=tmp_path)).page.read_text()


def test_songs_show_no_gain_over_a_mixture_scored_against_other_sources(tmp_path: Path) -> None:
    lead = scored_summary("net", 5, TRACKS)
    mixture = scored_summary("mixture", -3, TRACKS, kind="mixture")
    mixture = mixture.model_copy(update={"scenario": "vocals_accompaniment"})
    board = board_of(lead, mixture)
    gains = {key: gain for key, (_, gain) in _tracks(board)[0]["cells"].items()}
    assert gains["drums", "SIR"] is None
    assert gains["drums", "SAR"] is None
    assert gains["drums", "SDR"] is not None


def test_many_sources_have_their_average_in_front_and_plots_that_can_be_read(
    tmp_path: Path,
) -> None:
    sources = [f"instrument {number}" for number in range(17)]
    lead = scored_summary("net", 5, ["a"], sources=sources)
    save_summary(tmp_path / "scores", lead)
    journal = tmp_path / "training/metrics.jsonl"
    save_journal(journal)
    record = json.loads(journal.read_text().splitlines()[0])
    values = [{f"valid/{name}/SDR": step + place for place, name in enumerate(sources)}
              for step in (1, 2)]  # fmt: skip
    lines = [{**record, "step": step, "values": each} for step, each in enumerate(values)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(RunConfig(output_dir=tmp_path)).page.read_text()
    assert html.count('class="card"') == 1
    board = html[html.index('class="sorts board"') :]
    assert 0 < board.index("average</button>") < board.index("instrument 0</button>")
    assert "<summary>Frames without a number</summary>" in html
    (plot,) = read_curves(journal)
    assert plot.names == ["highest", "mean of 17", "lowest"]
    table = score_table(lead).splitlines()
    assert all(len(line) < 170 for line in table)
    heads = next(line for line in table if line.split()[-2:] == ["silent", "NaN"])
    assert heads.split()[:2] == ["uSDR", "SI-SDR"]
    assert len(table[-2]) == len(heads)
    assert table[-2].split()[-2:] == ["0", str(lead.nan_frames["instrument 16"])]


def test_published_averages_are_those_of_their_rows() -> None:
    for table in read_published():
        for row in table.rows:
            if "average" in row and all(source in row for source in SOURCES):
                mean = sum(row[source] for source in SOURCES) / 4
                # Two decimals each, and an average that its authors may have cut off.
                assert row["average"] == pytest.approx(mean, abs=0.011), row


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    config = _run(tmp_path, listen=True)
    first = {path: path.read_bytes() for path in write_report(config).files}
    for path in first:
        path.unlink()
    assert {path: path.read_bytes() for path in write_report(config).files} == first


def test_without_scores_the_report_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no summary\.json.*run jobs\.evaluate first"):
        write_report(RunConfig(output_dir=tmp_path))


def test_a_damaged_excerpt_is_named(tmp_path: Path) -> None:
    config = _run(tmp_path, listen=True)
    (tmp_path / "estimates/excerpts/test/x/mixture.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"mixture\.wav: cannot read this excerpt"):
        write_report(config)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_scores_that_a_summary_is_not_about_are_named(tmp_path: Path, damage: str) -> None:
    save_summary(tmp_path / "scores", scored_summary("my_net", 5, ["a song", "another"]))
    file = tmp_path / "scores" / "my_net" / "another.json"
    reason = "is missing" if damage == "missing" else "not the scores that"
    file.unlink() if damage == "missing" else file.write_text("other scores")
    with pytest.raises(DataError, match=rf"another\.json: {reason}.*; run jobs.evaluate again"):
        write_report(RunConfig(output_dir=tmp_path))
    assert not (tmp_path / "report").exists()


def test_without_excerpts_and_journal_the_page_still_stands(tmp_path: Path) -> None:
    save_summary(tmp_path / "scores", scored_summary("my_net", 5, ["only song"]))
    elements = _Elements(write_report(RunConfig(output_dir=tmp_path)).page.read_text())
    assert not any(tag == "audio" for tag, _ in elements.tags)
    assert not any(attributes.get("id") == "training" for _, attributes in elements.tags)
    assert "1 track," in "".join(elements.text)


def test_systems_scored_on_other_songs_are_left_out_by_name(tmp_path: Path) -> None:
    config = _run(tmp_path)
    other = scored_summary("other run", 9, TRACKS, data=MUSDB18)
    save_summary(tmp_path / "scores", other)
    text = "".join(_Elements(write_report(config).page.read_text()).text)
    assert "Left out: other run: scored on other songs" in text


def test_the_run_named_in_the_config_leads(tmp_path: Path) -> None:
    _run(tmp_path)
    save_summary(tmp_path / "scores", scored_summary("another", 9, TRACKS, seed=5))
    config = RunConfig(output_dir=tmp_path, tracking=TrackingConfig(run_id="my_net"))
    assert "<title>my_net on" in write_report(config).page.read_text()


def test_no_secret_of_an_address_reaches_the_report(tmp_path: Path) -> None:
    base = _run(tmp_path)
    secret = TrackingConfig(tracking_uri="https://ann:hunter2@mlflow.example/x")
    _be_made_by_one_run(tmp_path, base.model_copy(update={"tracking": secret}))
    assert "mlflow.example" in write_report(base).page.read_text()
    for file in write_report(base.model_copy(update={"tracking": secret})).files:
        assert "hunter2" not in file.read_text()
        assert "ann:" not in file.read_text()


def _be_made_by_one_run(root: Path, config: RunConfig) -> None:
    (root / "checkpoint").mkdir()
    (root / "checkpoint" / "config.json").write_text(json.dumps({"hash": "ef" * 32}))
    (root / "config.json").write_text(to_json(config))


def test_the_command_and_the_configuration_are_those_that_made_the_scores(tmp_path: Path) -> None:
    config = _run(tmp_path)
    trained = {"train": {"lr": 0.25}}
    summary = scored_summary("my_net", 5, TRACKS, seed=1)
    system = summary.system.model_copy(update={"config": trained})
    save_summary(tmp_path / "scores", summary.model_copy(update={"system": system}))
    text = "".join(_Elements(write_report(config).page.read_text()).text)
    assert "python -m jobs.train \\\n    --lr 0.25\n\npython -m jobs.evaluate" in text
    _be_made_by_one_run(tmp_path, RunConfig(output_dir=tmp_path, train=TrainConfig(seed=77)))
    text = "".join(_Elements(write_report(config).page.read_text()).text)
    assert f"python -m jobs.run \\\n    --output_dir {tmp_path} \\\n    --seed 77" in text
    assert '"seed": 77' in text


def test_plots_take_their_colours_from_the_page(files: dict[str, str]) -> None:
    plots = re.findall(r'<svg class="plot".*?</svg>', files["index.html"], re.DOTALL)
    assert len(plots) == 2  # loss and validation
    for plot in plots:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", plot)
        assert "<dc:date>" not in plot
    ids = re.findall(r'\bid="([^"]*)"', files["index.html"])
    assert len(ids) == len(set(ids))


def test_the_journal_gives_curves_and_its_cut_off_last_line_does_no_harm(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    save_journal(journal)
    whole = read_curves(journal)
    assert [plot.title for plot in whole] == ["Loss", "SDR in validation"]
    assert whole[0].names == ["train/loss", "valid/loss"]
    gap = {"kind": "step", "step": 9999, "epoch": 0, "values": {"train/loss": None, "x/loss": None}}
    journal.write_text(journal.read_text() + json.dumps(gap) + '\n{"kind": "step", "st')
    assert read_curves(journal) == whole
    journal.write_text('{"kind": "step"}\n' + journal.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1"):
        read_curves(journal)
    journal.write_bytes(b'{"k\x80nd": "step"}\n' + journal.read_bytes())
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1"):
        read_curves(journal)
    for line in (b"null", b"[" * 200_000, b'{"step": 1%s, "values": {"a": 1}}' % (b"0" * 400)):
        journal.write_bytes(line + b"\n")
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 1"):
            read_curves(journal)
    assert read_curves(tmp_path / "none.jsonl") == []


def test_a_checkpoint_whose_record_is_damaged_does_no_harm(tmp_path: Path) -> None:
    config = _run(tmp_path)
    (tmp_path / "checkpoint").mkdir(exist_ok=True)
    (tmp_path / "checkpoint" / "config.json").write_text("[" * 200_000)
    assert write_report(config).page.is_file()


def test_a_figure_above_all_measure_is_not_drawn_as_a_number(tmp_path: Path) -> None:
    summary: Summary = scored_summary("perfect", 200.0, TRACKS)
    save_summary(tmp_path / "scores", summary)
    text = "".join(_Elements(write_report(RunConfig(output_dir=tmp_path)).page.read_text()).text)
    assert "> 100" in text
    assert "199." not in text


@pytest.mark.parametrize(("rate", "played"), [(4000, 8000), (30_000, 32_000), (96_000, 48_000)])
def test_excerpts_play_at_a_rate_that_mp3_knows(tmp_path: Path, rate: int, played: int) -> None:
    save_excerpt(tmp_path / "x", "song", ["net"], rate)
    (song,) = read_songs(tmp_path, {"net": "net"}, 1, Shelf(None))
    vocals = song.rows["vocals"][0]  # a tone of 110 Hz
    file = io.BytesIO(base64.b64decode(vocals.audio.removeprefix("data:audio/mpeg;base64,")))
    wave, heard = soundfile.read(file)
    assert heard == played
    assert len(wave) / heard == pytest.approx(song.seconds, abs=0.1)  # MP3 pads to whole frames
    spectrum = np.abs(np.fft.rfft(wave[:, 0]))
    assert np.argmax(spectrum) * heard / len(wave) == pytest.approx(110, abs=1)
