"""Makes cluster.md's pictures of MLflow and Ray: ``python docs/screenshots.py FOLDER``.

It trains a small network into ``FOLDER/run`` with Ray's dashboard on, and needs Chromium.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.helpers.browser import Page

_HERE = Path(__file__).resolve().parent
_SMALL = ["--preset", "demo", "--dashboard", "True", "--steps_per_epoch", "12", "--max_epochs", "3"]
_SONGS = ["--synthetic_train", "3", "--synthetic_valid", "1", "--synthetic_test", "1"]
_SONGS += ["--synthetic_seconds", "8", "--save_estimates", "none"]
_SECONDS = 240


def main(folder: Path) -> None:
    """Make both pictures."""
    # By its bare name, which is what the page shows.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = ["python", "-m", "jobs.run", *_SMALL, *_SONGS, "--output_dir", str(folder / "run")]
    with subprocess.Popen(job, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            print(line, end="", flush=True)
            if found := re.search(r"dashboard at (\S+); .* token in (\S+)", line):
                address, token = found[1], Path(found[2]).expanduser().read_text().strip()
            elif line.startswith("training: starting"):
                with Page("about:blank", folder / "chromium", 1000) as page:
                    page.set_cookie("ray-authentication-token", token, address)
                    page.go(f"{address}/#/jobs")
                    _picture(page, "RUNNING", "ray.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = f"sqlite:///{folder.absolute() / 'run' / 'mlflow.db'}"
    ui = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--backend-store-uri", store]
    server = subprocess.Popen(ui, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port)
        with Page("about:blank", folder / "chromium2", 1500) as page:
            page.go(f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning")
            page.wait_for("document.body.innerText.includes('Assistant')", _SECONDS)
            page.run("document.querySelectorAll('[aria-label*=Close]').forEach(b => b.click())")
            _picture(page, "synthetic songs", "mlflow.png")
    finally:
        server.terminate()
        server.wait()


def _await(port: int) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"MLflow does not answer within {_SECONDS} s")


def _picture(page: Page, text: str, name: str) -> None:
    page.wait_for(f"document.body.innerText.includes({text!r})", _SECONDS)
    time.sleep(3)  # what is loaded after the text
    file = _HERE / name
    page.screenshot(file)
    with Image.open(file) as picture:
        small = picture.convert("RGB").crop((0, 0, picture.width, 480)).quantize(48)
    small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
