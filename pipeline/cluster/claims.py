"""Objects that say who may write to a folder of an object store; one process at a time may."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store, from_url

from pipeline.cluster.progress import say
from pipeline.cluster.store import RemoteFile, RemoteFolder, first_line, patiently

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

Result = TypeVar("Result")

_SETTLE_SECONDS = 1.0
_LIMITS: ClientConfig = {"connect_timeout": "5s", "timeout": "30s", "allow_http": True}
_ONCE: RetryConfig = {"max_retries": 0}  # who asks tries again
_STORE_ERRORS = (BaseError, ValueError, OSError)


class Claim:
    """The object that names its owner, and the writing of it on a condition.

    It is written only if it is still what :meth:`owner`, which is called first, has found, so that
    of two processes in the same instant one gets it. The store itself sees to that
    (``If-None-Match`` and ``If-Match`` of S3, generations of Google's, ETags of Azure's). Where it
    cannot, who has written looks again after a moment. Every method raises a DataError where the
    store does not answer.
    """

    def __init__(self, remote: RemoteFolder, name: str) -> None:
        self._remote, self._name = remote, name
        self._file = remote / name
        self._seen: UpdateVersion | None = None  # the version that was found last
        # By a library that writes on conditions; None where that cannot be used.
        self._store: ObjectStore | None = None
        self._opened = False

    def owner(self) -> dict[str, Any] | None:
        """Return who the object says its owner is, None where there is none or it says nothing."""
        if not self._opened:
            self._opened = True
            return self._open()
        return owner_of(self._file) if self._store is None else _owner(self._ask(self._read))

    def take(self, own: dict[str, Any]) -> bool:
        """Become the owner unless the object has changed since; return whether it is ``own``."""
        if self._store is None:
            self._file.write_bytes(_bytes(own))
            time.sleep(_SETTLE_SECONDS)
            return owner_of(self._file) == own
        if not self._write(own):
            return False
        if not self._ask(partial(self._put, _bytes(own), "create")):
            return True
        # It has let a new object take the place of another: the store knows no conditions.
        self._store = None
        return self.take(own)

    def keep(self, own: dict[str, Any]) -> bool:
        """Change what the owner says of itself; return False where somebody else is the owner."""
        if self._store is not None:
            return self._write(own)
        found = owner_of(self._file)
        if found is not None and found.get("id") != own["id"]:
            return False
        self._file.write_bytes(_bytes(own))
        return True

    def drop(self, own: dict[str, Any]) -> None:
        """Leave it to others; only its owner may."""
        found = owner_of(self._file)
        if found is not None and found.get("id") == own["id"]:
            self._file.delete()

    def _open(self) -> dict[str, Any] | None:
        """Return the owner, by the library that writes on conditions if that can be used."""
        try:
            self._store = _conditional(self._remote)
            if self._store is not None:
                return _owner(self._read(self._store))
        except _STORE_ERRORS as error:
            self._store = None
            say(
                f"{self._remote}: no conditional writes ({_said(error)}); what is written "
                "there is looked at again after a moment instead"
            )
        return owner_of(self._file)

    def _ask(self, action: Callable[[ObjectStore], Result]) -> Result:
        def ask() -> Result:
            assert self._store is not None
            try:
                return action(self._store)
            except _STORE_ERRORS as error:
                self._store = _conditional(self._remote)  # which reads the credentials again
                raise OSError(_said(error)) from error

        return patiently(str(self._file), ask)

    def _read(self, store: ObjectStore) -> bytes | None:
        self._seen = None
        try:
            found = obstore.get(store, self._name)
        except FileNotFoundError:
            return None
        self._seen = _version(found.meta["e_tag"], found.meta["version"])
        return bytes(found.bytes())

    def _put(self, data: bytes, mode: PutMode | None, store: ObjectStore) -> bool:
        mode = mode or self._seen or "create"
        try:
            made = obstore.put(store, self._name, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except FileNotFoundError as error:
            if mode != "create":
                return False  # it has been deleted
            raise OSError(_said(error)) from error  # there is no such bucket
        self._seen = _version(made["e_tag"], made["version"])
        return True

    def _write(self, own: dict[str, Any]) -> bool:
        put = partial(self._put, _bytes(own), None)
        if self._ask(put):
            return True
        # A request that is made again, its answer being lost, is refused as well.
        found = self.owner()
        return self._ask(put) if found is None else found.get("id") == own["id"]


def whoami() -> dict[str, Any]:
    """Return what tells this process from all others, on all machines."""
    return {"host": os.uname().nodename, "process": os.getpid(), "id": uuid.uuid4().hex}


def owner_of(file: RemoteFile) -> dict[str, Any] | None:
    """Return who an object says its owner is, None where there is none or it says nothing.

    Raises:
        DataError: the store does not answer or refuses.
    """
    try:
        return _owner(file.read_bytes())
    except FileNotFoundError:
        return None


def is_dead(owner: dict[str, Any]) -> bool:
    """Return whether a process that :func:`whoami` named was of this machine, and is no more."""
    here = owner.get("host") == os.uname().nodename
    return here and not Path(f"/proc/{owner.get('process')}").exists()


def _said(error: Exception) -> str:
    """Return what the store has said, which obstore tells below much that it says itself."""
    found = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", str(error), re.DOTALL)
    return ": ".join(found.groups()) if found else first_line(error)


def _owner(data: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _bytes(own: dict[str, Any]) -> bytes:
    return json.dumps(own).encode()


def _version(tag: str | None, version: str | None) -> UpdateVersion:
    """Return what identifies a version, without what the store does not have."""
    return cast("UpdateVersion", {k: v for k, v in (("e_tag", tag), ("version", version)) if v})


def _conditional(remote: RemoteFolder) -> ObjectStore | None:
    """Return the folder as obstore opens it, None where it has no conditions for the address."""
    url = urlsplit(remote.address)
    given = {key: values[-1] for key, values in parse_qs(url.query).items()}
    if url.scheme == "s3":
        return _s3(url, given, getattr(remote.place("")[0], "region", None))
    if url.scheme in ("gs", "gcs", "abfs", "abfss") and not given:
        address = remote.address.replace("gcs://", "gs://", 1)
        return from_url(address, client_options=_LIMITS, retry_config=_ONCE)
    return None


def _s3(url: SplitResult, given: dict[str, str], region: str | None) -> ObjectStore:
    endpoint = given.get("endpoint_override")
    if endpoint is not None:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint.rpartition('://')[2]}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if url.username:
        options["access_key_id"] = unquote(url.username)
        options["secret_access_key"] = unquote(url.password or "")
    else:
        # AWS's own library, where it is installed, knows more places of credentials.
        with suppress(ImportError):
            from obstore.auth.boto3 import Boto3CredentialProvider

            options["credential_provider"] = Boto3CredentialProvider()
    return S3Store(
        url.hostname, prefix=url.path.strip("/") or None, region=region or "us-east-1",
        client_options=_LIMITS, retry_config=_ONCE, **options,
    )  # fmt: skip
