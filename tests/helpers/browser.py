"""A real Chromium, driven over a pipe: no driver, no port, no package beside the browser."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class Page:
    """One page in a browser of its own; ``requests`` are the addresses that it asked for.

    Args:
        file: the page, opened from disk, or its address.
        profile: an empty folder for the browser.
        width: of the window in pixels.
    """

    def __init__(self, file: Path | str, profile: Path, width: int = 1280) -> None:
        executable = find_chromium()
        assert executable is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        # The browser reads descriptor 3 and writes descriptor 4.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", executable, *_FLAGS, f"--user-data-dir={profile}",
             f"--window-size={width},900"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")
        self.go(file if isinstance(file, str) else file.as_uri())

    def go(self, address: str) -> None:
        """Open an address."""
        self._call("Page.navigate", url=address)
        self.wait_for(
            f"document.readyState === 'complete' && location.href.startsWith({address[:5]!r})"
        )

    def set_cookie(self, name: str, value: str, address: str) -> None:
        """Give the browser a cookie for an address."""
        self._call("Network.setCookie", name=name, value=value, url=address)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not true in {seconds} s: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key of the keyboard, as a user does."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        code = {"Enter": 13, "Space": 32, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}[key]
        name = {"Space": " "}.get(key, key)
        event = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        down = {**event, "text": text} if text else event
        self._call("Input.dispatchKeyEvent", type="keyDown", **down)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def be_narrow(self, width: int) -> None:
        """Show the page as a phone of ``width`` pixels does; 0 ends it."""
        if width:
            self._call(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=800, deviceScaleFactor=2, mobile=True,
            )  # fmt: skip
        else:
            self._call("Emulation.clearDeviceMetricsOverride")

    def screenshot(self, file: Path, *, dark: bool = False) -> None:
        """Write a picture of the whole page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, "the browser ended or does not answer"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(parameters)[:500])
        return message

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
