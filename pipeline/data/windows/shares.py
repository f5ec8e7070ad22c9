"""Which windows of a batch each of several processes gets."""

from __future__ import annotations

from lasaft.errors import ConfigError


def rows_of_process(batch_size: int, micro_batches: int, rank: int, world_size: int) -> list[int]:
    """Return the rows of a batch that one process gets, micro-batch after micro-batch.

    All processes together have a micro-batch of the rows that one process alone would have.

    >>> rows_of_process(8, 2, rank=1, world_size=2)
    [2, 3, 6, 7]
    """
    windows = batch_size // micro_batches
    share = share_of_process(windows, rank, world_size)
    return [first + row for first in range(0, batch_size, windows) for row in share]


def share_of_process(windows: int, rank: int, world_size: int) -> range:
    """Return the rows of a micro-batch of so many windows that one process gets.

    Shares differ by one window at most; the first processes have the larger ones.

    >>> [share_of_process(5, rank, world_size=3) for rank in range(3)]
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    least, larger = divmod(windows, world_size)
    first = rank * least + min(rank, larger)
    return range(first, first + least + (rank < larger))


def require_shares(batch_size: int, micro_batches: int, world_size: int) -> None:
    """Raise ConfigError unless each process has a window of each micro-batch."""
    if batch_size // micro_batches < world_size:
        raise ConfigError(
            f"batch_size: got {batch_size}; allowed: at least {micro_batches * world_size}, a "
            f"window for each of the {world_size} processes in each of the {micro_batches} "
            "micro-batches"
        )
