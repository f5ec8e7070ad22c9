"""Addresses: of folders in an object store, and as they are shown; no library is loaded for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lasaft.errors import ConfigError, Problem
from lasaft.options import MISTYPED

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_WEB = "a web server takes no files"
_NO_RUNS = {"http": _WEB, "https": _WEB, "memory": "no other process sees what one has there"}
_SECRET = re.compile(r"secret|passw|pwd|token|credential|key|sig|sas|auth", re.I)
_HOST = re.compile(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?|[0-9A-Fa-f:.]+(%.+)?")

_WORD = re.compile(r"[^\s\"'<>]+")
_LONGEST_HOST = 300
_PORT = re.compile(r"[^:]*:\d+/")  # in a path behind it there may be an @
_IN_PATH = re.compile(r"(;[^=;?#]*=)[^;?#]*")
_QUERY = re.compile(r"[?#].*")
_OPTION = re.compile(r"([?&;#]+)([^=?&;#]*)(=?)([^?&;#]*)")
# The options whose values are shown: those of pyarrow.fs, of the databases of MLflow, and its own.
_HARMLESS = {
    "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "charset",
    "connect_timeout", "dbname", "driver", "endpoint_override", "host", "port", "region",
    "scheme", "ssl", "sslmode", "timeout", "user", "workflowtype",
}  # fmt: skip


def shown(text: str, *, alone: bool = False) -> str:
    """Return a text without the names, passwords and unknown options of the addresses in it.

    Args:
        text: with any addresses in it, which end at white space.
        alone: it is one address, in which there may be white space.

    >>> shown("http://me:geheim@host/path"), shown("mysql://host/base?password=geheim&ssl=1")
    ('http://host/path', 'mysql://host/base?password=&ssl=1')
    """

    def option(found: re.Match[str]) -> str:
        mark, name, equals, value = found.groups()
        harmless = name.lower() in _HARMLESS and "@" not in unquote(value)
        return found[0] if harmless else mark + (name + equals if equals else "")

    def plain(word: str) -> str:
        if "://" not in word and "?" not in word:
            return word
        before, _, rest = _user(word)
        place = _IN_PATH.sub(r"\1", before + rest)
        return _QUERY.sub(lambda query: _OPTION.sub(option, query[0]), place)

    if alone or len(text.split()) == 1:
        return plain(text)
    return _WORD.sub(lambda found: plain(found[0]), text)


def _user(place: str) -> tuple[str, str, str]:
    """Return what is before name and password in an address, these, and what is behind their @.

    In a password there may be anything.
    """
    start, (head, _, rest) = 0, place.rpartition("@")
    while (start := head.find("://", start) + 3) > 2:
        first, slash, _ = head[start : start + _LONGEST_HOST].partition("/")
        web = head[:start].lower().endswith(("http://", "https://"))  # of a database: a password
        if (":" in first or not slash) and not (web and _PORT.match(head, start)):
            return head[:start], head[start:], rest
    return "", "", place


def impossible(address: str) -> str:
    """Return why no machine can be at an address; empty: one may be."""
    try:
        parts = urlsplit(shown(address))
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that do not match, or no number
        return "its host or port is none"
    if port is not None and not port:
        return "its port is 0"
    return "" if not host or _HOST.fullmatch(host) else "its host is no name of one"


def check_place(name: str, value: Any) -> Any:
    """Return ``value`` as a Path, or as the address of a folder in an object store.

    ``file:///a/b`` is the folder /a/b. What is no text stays as it is, for others to refuse.

    Args:
        name: the option, for messages.
        value: a path, an address such as ``s3://bucket/folder?region=eu-west-1``, or None.

    Raises:
        ConfigError: it is neither, or it holds a secret (which the message does not repeat).
    """
    if value is None:
        return None
    if MISTYPED.match(text := str(value)) and (isinstance(value, Path) or "://" not in text):
        allowed = "s3://bucket/folder, or a path that does not begin like an address"
        raise ConfigError(Problem(name, repr(shown(text)), allowed))
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        allowed = "a path, or an address (s3://bucket/folder)"
        raise ConfigError(Problem(name, repr(value or ""), allowed))
    if "://" not in value:
        return Path(value)
    plain = value.partition("?")[0]
    options = {found[2]: unquote(found[4]) for found in _OPTION.finditer(value)}
    secret = any(_SECRET.search(key) or "@" in text for key, text in options.items())
    user = _user(plain)[1]
    named = ":" in user or (user and value.startswith("s3:"))
    if secret or (named and not _PORT.match(user)):
        allowed = (
            "secrets in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY ...) or in the "
            "store's own files"
        )
        raise ConfigError(Problem(name, reason="the address holds a secret", allowed=allowed))
    for place in (plain, f"//{options.get('endpoint_override', '').rpartition('//')[2]}"):
        if reason := impossible(place):
            raise ConfigError(Problem(name, repr(value), "HOST or HOST:PORT", reason=reason))
    parts = urlsplit(value)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        return Path(unquote(parts.path))
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme == "file" or not plain.isprintable():
        allowed = "a path, s3://bucket/folder, file:///a/b"
        raise ConfigError(Problem(name, repr(value), allowed))
    if name == "output_dir" and (reason := _NO_RUNS.get(parts.scheme)):
        raise ConfigError(Problem(name, repr(value), "s3://bucket/folder", reason=reason))
    if not (parts.netloc or parts.path.strip("/")) or ".." in parts.path.split("/"):
        raise ConfigError(Problem(name, repr(value), "a folder's address, without .."))
    return value
