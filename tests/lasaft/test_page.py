"""The page that separates in a browser's tab: what onnxruntime-web gives there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from lasaft.separation.separator import Separator
from lasaft.separation.wave_export import export_waves
from tests.helpers import ROOT
from tests.helpers.audio import RATE, noise, read, tiny_model, write
from tests.helpers.browser import Page, find_chromium

# The folder dist of the npm package onnxruntime-web.
_ORT = os.environ.get("LASAFT_ORT_WEB")
pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium"),
    pytest.mark.skipif(_ORT is None, reason="needs LASAFT_ORT_WEB: dist of onnxruntime-web"),
]
_EVERY = 50  # samples that are compared


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A folder with the page and onnxruntime-web, at this address."""
    shutil.copy(ROOT / "docs" / "separate.html", tmp_path)
    (tmp_path / "ort").symlink_to(Path(str(_ORT)).absolute())
    jaxtyping.config.update("jaxtyping_disable", True)  # sizes are symbols while it is traced
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    jaxtyping.config.update("jaxtyping_disable", False)


def test_ten_seconds_are_separated_in_a_tab(tmp_path: Path, served: str) -> None:
    model = tiny_model(n_internal_layers=1)
    export_waves(model, tmp_path / "network.onnx")
    song = write(tmp_path / "song.wav", noise(2, 11 * RATE), subtype="PCM_16")
    address = f"{served}/separate.html?network=network.onnx&song=song.wav"
    with Page(address, tmp_path / "chromium") as page:
        page.wait_for("document.getElementById('status').textContent.match(/done|failed/)", 250)
        assert page.run("document.getElementById('status').textContent") == "done"
        wanted = Separator(model).separate(read(song)[:, : 10 * RATE], RATE)
        assert page.run("document.querySelectorAll('audio').length") == len(wanted)
        for name, stem in wanted.items():
            script = f"stems[{name!r}].map(c => Array.from(c).filter((_, i) => i % {_EVERY} === 0))"
            found = np.array(page.run(script), np.float32)
            # 0.01 dB are 1.2e-3 of an amplitude.
            scale = float(stem.abs().max())
            np.testing.assert_allclose(found, stem[:, ::_EVERY], rtol=0, atol=1e-4 * scale)
        own = (served, "blob:", "data:")
        assert [request for request in page.requests if not request.startswith(own)] == []
