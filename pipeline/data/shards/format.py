"""The Arrow format of spectrograms: schema and writer.

A shard is an Arrow IPC *file*, uncompressed. A row is an STFT frame; each source and the mixture
is a column of ``fixed_shape_tensor<float16>[2 * channels, bins]``; a record batch has 256 rows. A
window at any frame and of any length is then a few slices of a memory map.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data.shards.manifest import FRAMES_PER_BATCH, ShardEntry, ShardSettings


def schema(settings: ShardSettings, track: str = "", first_frame: int = 0) -> pa.Schema:
    """Return the Arrow schema of a shard; its metadata says what the file holds."""
    tensor = pa.fixed_shape_tensor(pa.float16(), settings.row_shape)
    about = {
        "settings": settings.model_dump_json(),
        "track": track,
        "first_frame": str(first_frame),
    }
    return pa.schema([(column, tensor) for column in settings.columns], metadata=about)


class _HashingFile:
    """A file that is only appended to, and knows the sha256 of what went through it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class ShardWriter:
    """Write one shard, record batch by record batch; use as a context manager.

    Args:
        path: the file; it must not be read before :meth:`entry`.
        track: ``split/name``, written into the file.
        first_frame: the track's frame that is the first row.
    """

    def __init__(
        self, path: Path, settings: ShardSettings, track: str, first_frame: int = 0
    ) -> None:
        self._path, self._settings = path, settings
        self._schema = schema(settings, track, first_frame)
        self._file = _HashingFile(path)
        options = pa.ipc.IpcWriteOptions(compression=None)
        self._writer = pa.ipc.new_file(self._file, self._schema, options=options)
        self._crc32: dict[str, list[int]] = {column: [] for column in settings.columns}
        self.frames = 0

    def write(self, rows: Tensor) -> None:
        """Append a record batch: float16 [column, frame, 2 * channels, bins], contiguous."""
        assert rows.dtype == torch.float16
        assert rows.is_contiguous()
        arrays, checksums = [], {}
        for field, column in zip(self._schema, rows.numpy(), strict=True):
            checksum = zlib.crc32(column)
            self._crc32[field.name].append(checksum)
            checksums[f"crc32.{field.name}"] = f"{checksum:08x}"
            values = pa.array(column.reshape(-1))
            storage = pa.FixedSizeListArray.from_arrays(values, column[0].size)
            arrays.append(pa.ExtensionArray.from_storage(field.type, storage))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._writer.write_batch(batch, custom_metadata=checksums)
        self.frames += rows.shape[1]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:  # a footer on a half-written file would make it look whole
                self._writer.close()
        finally:
            self._file.close()

    def entry(self, path: str) -> ShardEntry:
        """Return the manifest's entry of the closed file, under the name ``path``."""
        offsets = _value_offsets(self._path)
        size = self._path.stat().st_size
        regions = value_regions(offsets, self.frames, self._settings)
        with self._path.open("rb") as file:
            rest = zlib.crc32(b"")
            for start, end in gaps(regions, size):
                file.seek(start)
                rest = zlib.crc32(file.read(end - start), rest)
        return ShardEntry(
            path=path,
            frames=self.frames,
            size_bytes=size,
            sha256=self._file.sha256,
            offsets=offsets,
            crc32={column: tuple(values) for column, values in self._crc32.items()},
            rest_crc32=rest,
        )


def _value_offsets(path: Path) -> dict[str, tuple[int, ...]]:
    with pa.memory_map(str(path)) as source:
        base = source.read_buffer(1).address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        return {
            name: tuple(
                batch.column(index).storage.flatten().buffers()[1].address - base
                for batch in batches
            )
            for index, name in enumerate(reader.schema.names)
        }


def batch_rows(frames: int) -> list[int]:
    """Return the rows of each record batch of a shard."""
    return [min(FRAMES_PER_BATCH, frames - start) for start in range(0, frames, FRAMES_PER_BATCH)]


def value_regions(
    offsets: dict[str, tuple[int, ...]], frames: int, settings: ShardSettings
) -> list[tuple[int, int]]:
    """Return (first byte, last byte + 1) of the values of each column and batch, sorted."""
    rows = batch_rows(frames)
    return sorted(
        (start, start + count * settings.row_bytes)
        for starts in offsets.values()
        for start, count in zip(starts, rows, strict=True)
    )


def gaps(regions: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a file of ``size`` bytes that lie between the sorted regions."""
    position = 0
    for start, end in [*regions, (size, size)]:
        if start > position:
            yield position, start
        position = max(position, end)
