"""Work that is done ahead of the one who asks for it, in other threads: in order, and only so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(items: Iterable[T], most: int) -> Generator[T]:
    """The items in order, made in a thread of their own, at most `most` + 1 of them before they are asked for.

    An exception comes out where its item would have. A generator that is closed early closes `items` and ends the thread.
    """
    made: Queue[tuple[list[T], BaseException | None]] = Queue(most)
    stopped = Event()

    def make() -> None:
        given, error = iter(items), None
        try:
            for item in given:
                made.put(([item], None))
                if stopped.is_set():
                    break
        except BaseException as e:
            error = e
        finally:
            with suppress(AttributeError):
                given.close()  # type: ignore[attr-defined]
        made.put(([], error))

    thread = Thread(target=make, name="graphattr-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item.pop()
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(Empty):
                made.get_nowait()
            thread.join(0.005)


def in_threads(work: Callable[[S], T], items: Iterable[S], threads: int, most: int) -> Iterator[T]:
    """work(item) of each item, in order, by so many threads; at most `most` are begun before they are asked for."""
    begun: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "graphattr-read") as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= most:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


class Behind:
    """What is done behind the one who hands it over: `add` begins it, `done` gives back what has ended, in order.

    At most `most` of size are under way: `done` waits for the oldest as long as there are more.
    """

    def __init__(self, most: int) -> None:
        self.most, self._size = most, 0
        self._waiting: deque[tuple[int, list[Future[Any]], Any]] = deque()

    def add(self, size: int, futures: list[Future[Any]], what: Any) -> None:
        """Take note of work of that size; `what` comes back with its results."""
        self._waiting.append((size, futures, what))
        self._size += size

    def done(self, most: int | None = None) -> Iterator[tuple[list[Any], Any]]:
        """(results, what) of the oldest, until no more than `most` of size are under way."""
        while self._waiting and self._size > (self.most if most is None else most):
            size, futures, what = self._waiting[0]
            results = [f.result() for f in futures]
            self._waiting.popleft()
            self._size -= size
            yield results, what
