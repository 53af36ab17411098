"""Work of the model: one piece at a time, in one thread; what a newer request has made needless is dropped."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from t3vis.errors import T3VisError

Work = Generator[None, None, Any]
"""What is done, in steps that each end in a ``yield``; what it returns is the answer."""


class SupersededError(T3VisError):
    """The answer is not wanted any more: whoever asked has asked for something else."""


class ClosedError(T3VisError):
    """The server is going down."""


@dataclass(eq=False)
class _Piece:
    asker: tuple[str, str]
    work: Work
    answer: Future[Any] = field(default_factory=Future)
    is_begun: bool = False


class Worker:
    """Does pieces of work one after the other, in the order in which they came.

    A piece that takes long is done in steps: between two of them those that have come meanwhile go first.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._changed = Condition()
        self._is_closed = False
        self._thread: Thread | None = None

    def submit(self, client: str, kind: str, work: Work) -> Future[Any]:
        """Put a piece into the queue, in place of older ones of the same client and kind that are not answered yet.

        Parameters
        ----------
        client, kind
            Who asks, and for what.
        work
            Is begun later, in the worker's thread.

        Returns
        -------
        Will hold the answer, or what the work raised; ``SupersededError`` if a newer request took its place.
        """
        piece = _Piece((client, kind), work)
        with self._changed:
            if self._is_closed:
                raise ClosedError("the viewer is going down.")
            for older in [older for older in self._pieces if older.asker == piece.asker]:
                self._pieces.remove(older)
                older.answer.set_exception(
                    SupersededError(f"superseded by a newer request for {kind} of the same client.")
                )
            self._pieces.append(piece)
            if self._thread is None:
                self._thread = Thread(target=self._serve, name="t3vis-model", daemon=True)
                self._thread.start()
            self._changed.notify()
        return piece.answer

    def close(self) -> None:
        """Begin nothing more; the step that is being done is the last."""
        with self._changed:
            self._is_closed = True
            for piece in self._pieces:
                piece.answer.set_exception(ClosedError("the viewer is going down."))
            self._pieces.clear()
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._is_closed)
                if self._is_closed:
                    return
                piece = next((piece for piece in self._pieces if not piece.is_begun), self._pieces[0])
                piece.is_begun = True
            self._step(piece)

    def _step(self, piece: _Piece) -> None:
        """One step; where it was the last, the answer, unless it is not wanted any more."""
        error: BaseException | None = None
        answer: Any = None
        try:
            next(piece.work)
        except StopIteration as done:
            answer = done.value
        except BaseException as raised:  # noqa: BLE001 (whoever asked is told)
            error = raised
        else:
            return
        with self._changed:
            if piece in self._pieces:
                self._pieces.remove(piece)
                if error is None:
                    piece.answer.set_result(answer)
                else:
                    piece.answer.set_exception(error)
