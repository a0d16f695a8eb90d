"""What a process holds: memory, descriptors, threads, objects by their class, entries by their container."""

import asyncio
import ctypes
import functools
import gc
import queue
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import psutil

_OURS = "jobrunner"
_CONTAINERS = (dict, list, set, frozenset, deque, WeakKeyDictionary, WeakValueDictionary, WeakSet)
_QUEUES = (asyncio.Queue, queue.Queue, queue.SimpleQueue)
_NESTED_MOST = 3
"""Containers in containers are counted so many levels deep."""
_CACHE = type(functools.lru_cache(lambda: None))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds at one moment, and how many jobs have ended by then."""

    jobs: int
    rss_mb: float
    blocks: int
    """Of memory that the interpreter has allocated, for whatever: also for text and numbers."""
    descriptors: Counter[str]
    """Open files by what they are: socket, pipe, a file."""
    threads: Counter[str]
    """By name, without numbers."""
    objects: Counter[str]
    """What the garbage collector knows, by class."""
    entries: Counter[str]
    """How much is in the containers of jobrunner's objects and modules, by where they are."""


def holdings(jobs: int) -> Holdings:
    """Look at this process, after `jobs` jobs. Nothing may be under way: it would be counted."""
    for _ in range(3):  # what a finalizer lets go is found by the next one
        gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free is no leak, wherever glibc keeps it
    blocks = sys.getallocatedblocks()
    everything = gc.get_objects()
    return Holdings(
        jobs=jobs,
        rss_mb=psutil.Process().memory_info().rss / 1024**2,
        blocks=blocks,
        descriptors=Counter(_descriptors()),
        threads=Counter(each.name.rstrip("0123456789_-") for each in threading.enumerate()),
        objects=Counter(_name_of(type(each)) for each in everything),
        entries=_entries(everything),
    )


def _descriptors() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one by which the directory is read
            yield str(descriptor.readlink()).partition(":")[0]


def _name_of(kind: type) -> str:
    return sys.intern(f"{kind.__module__}.{kind.__qualname__}")  # what is told of each look must not add up


def _entries(everything: list[Any]) -> Counter[str]:
    entries: Counter[str] = Counter()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == _OURS:
            for attribute, value in list(vars(module).items()):
                _count(entries, f"{name}.{attribute}", value)
    for each in everything:
        if isinstance(each, _CACHE):
            if str(each.__module__).partition(".")[0] == _OURS:
                entries[sys.intern(f"{each.__module__}.{each.__qualname__}()")] += each.cache_info().currsize
        elif _name_of(type(each)).partition(".")[0] == _OURS:
            for attribute, value in _attributes(each):
                _count(entries, f"{_name_of(type(each))}.{attribute}", value)
    return entries


def _attributes(each: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(each, "__dict__", {}).items())
    for kind in type(each).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with suppress(AttributeError):  # it was never set
                yield name, getattr(each, name)


def _count(entries: Counter[str], where: str, value: Any) -> None:
    if isinstance(value, _CONTAINERS):
        entries[sys.intern(where)] += _size(value)
    elif isinstance(value, _QUEUES):
        entries[sys.intern(where)] += value.qsize()


def _size(container: Any, depth: int = 1) -> int:
    inside = list(container.values() if hasattr(container, "values") else container)
    nested = (each for each in inside if isinstance(each, _CONTAINERS)) if depth < _NESTED_MOST else ()
    return len(inside) + sum(_size(each, depth + 1) for each in nested)
