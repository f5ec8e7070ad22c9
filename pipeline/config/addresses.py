"""Addresses: of folders in an object store, and as they are shown; no library is loaded for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from lasaft.errors import ConfigError, Problem

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SECRET = re.compile(r"secret|password|token|credential|access_key|account_key|signature|sas", re.I)

_USER = re.compile(r"(?<=://)[^/\s]+@")
_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:secret|password|token)[^=&\s]*=)[^&\s]+")


def shown(address: str) -> str:
    """Return a text without the names, passwords and tokens of the addresses in it.

    >>> shown("http://me:geheim@host/path"), shown("mysql://host/base?password=geheim&ssl=1")
    ('http://host/path', 'mysql://host/base?password=&ssl=1')
    """
    return _PARAMETER.sub(r"\1", _USER.sub("", address))


def check_place(name: str, value: Any) -> Any:
    """Return ``value`` as a Path, or as the address of a folder in an object store.

    ``file:///a/b`` is the folder /a/b. What is no text stays as it is, for others to refuse.

    Args:
        name: the option, for messages.
        value: a path, an address such as ``s3://bucket/folder?region=eu-west-1``, or None.

    Raises:
        ConfigError: it is neither, or it holds a secret (which the message does not repeat).
    """
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        allowed = "a path, or an address (s3://bucket/folder)"
        raise ConfigError(Problem(name, repr(value or ""), allowed))
    if "://" not in value:
        return Path(value)
    parts = urlsplit(value)
    options = parse_qsl(parts.query, keep_blank_values=True)
    secret = any(_SECRET.search(key) or "@" in text for key, text in options)
    if parts.password is not None or (parts.username and parts.scheme == "s3") or secret:
        allowed = (
            "secrets in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY ...) or in the "
            "store's own files"
        )
        raise ConfigError(Problem(name, reason="the address holds a secret", allowed=allowed))
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        return Path(unquote(parts.path))
    plain = value.partition("?")[0]
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme == "file" or not plain.isprintable():
        allowed = "a path, s3://bucket/folder, file:///a/b"
        raise ConfigError(Problem(name, repr(value), allowed))
    if not (parts.netloc or parts.path.strip("/")) or ".." in parts.path.split("/"):
        raise ConfigError(Problem(name, repr(value), "a folder's address, without .."))
    return value
