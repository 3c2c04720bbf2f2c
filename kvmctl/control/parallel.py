"""The same deed for many guests at once; one that fails does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from kvmctl.control.wait import interrupted
from kvmctl.model.errors import KvmctlError

Item = TypeVar("Item")
Value = TypeVar("Value")

WORKERS = max(4, min(16, 2 * (os.cpu_count() or 1)))
"""libvirtd serves 5 requests of one connection at a time; more threads keep it busy between them."""


def each(
    deed: Callable[[Item], Value],
    items: Sequence[Item],
    progress: Callable[[], None] = lambda: None,
    workers: int = WORKERS,
) -> list[Value | KvmctlError]:
    """Results in the order of `items`, a KvmctlError standing for each that failed; `workers` at a time.

    On an interrupt what has not begun is left out, and what has begun is finished first, without
    waiting for what a guest is to do. Even one deed has a thread, so that Ctrl-C cannot cut it in two.
    """
    interrupted.clear()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            futures = [pool.submit(_caught, deed, item) for item in items]
            for _done in as_completed(futures):
                progress()
        except BaseException:
            interrupted.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _caught(deed: Callable[[Item], Value], item: Item) -> Value | KvmctlError:
    try:
        return deed(item)
    except KvmctlError as error:
        return error
