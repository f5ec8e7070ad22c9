"""What Ray needs of this machine to start here: folders that it can write, with short names."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lasaft.errors import ConfigError, Problem

# Sockets lie below the folder for temporary files; Linux takes so many bytes for the whole name.
_SOCKET = "/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
LONGEST_FOLDER = 107 - len(_SOCKET)
_USUAL_FOLDER = "/tmp"  # noqa: S108 (where Ray puts it if nothing is said)


def prepare_machine() -> None:
    """Let Ray start on this machine; a TMPDIR that is too long for it is not used by Ray.

    Raises:
        ConfigError: names the variable of the environment that is in the way.
    """
    own = os.environ.get("RAY_TMPDIR")
    folder = own or os.environ.get("TMPDIR") or _USUAL_FOLDER
    name, allowed = "RAY_TMPDIR" if own else "TMPDIR", "a folder that can be made and written"
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        allowed += f", with a name of {LONGEST_FOLDER} bytes at most: sockets lie in it"
        if own:
            raise ConfigError(Problem(name, repr(folder), allowed))
        folder = os.environ["RAY_TMPDIR"] = _USUAL_FOLDER
        name = "RAY_TMPDIR"
    _require_writable(name, Path(folder), allowed)
    # There Ray keeps the token without which nobody talks to its processes.
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = Path.home() / ".ray"
    if not token and not (place / "auth_token").is_file():
        _require_writable("HOME", place, "a folder that can be made and written")


def _require_writable(name: str, folder: Path, allowed: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot write there ({error.strerror})"
        raise ConfigError(Problem(name, repr(str(folder)), allowed, reason=reason)) from error
