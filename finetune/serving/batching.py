"""Images of several requests as one batch."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future

from torch import Tensor

from finetune.inference.predictor import Predictor, probabilities

PAUSE = 0.004  # seconds that the first image of a batch waits for others


class Batcher:
    """A thread that computes what waits in a bounded queue, in batches.

    Batches are padded to one size, as `predict`'s are: an answer does not depend on the images of other requests.
    """

    def __init__(self, predictor: Predictor, batch_size: int, capacity: int) -> None:
        self.predictor, self.batch_size = predictor, batch_size
        self.model_lock = threading.Lock()
        """Held while the model computes. Other uses of it wait: a hook would see these batches too."""
        self._queue: queue.Queue[tuple[Tensor, Future[Tensor]] | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, image: Tensor) -> Future[Tensor]:
        """The probabilities, (classes,), of an image (C, H, W). Raises `queue.Full` above the capacity."""
        answer: Future[Tensor] = Future()
        self._queue.put_nowait((image, answer))
        return answer

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        more = True
        while more:
            batch, more = self._next_batch()
            if not batch:
                continue
            try:
                with self.model_lock:
                    found = probabilities(self.predictor, [image for image, _ in batch], self.batch_size).cpu()
            except Exception as error:  # the requests' own, each of which reports it
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), row in zip(batch, found, strict=True):
                    answer.set_result(row)

    def _next_batch(self) -> tuple[list[tuple[Tensor, Future[Tensor]]], bool]:
        """Up to `batch_size` images, and whether more may follow."""
        batch: list[tuple[Tensor, Future[Tensor]]] = []
        deadline = None
        while len(batch) < self.batch_size:
            try:
                job = self._queue.get(timeout=None if deadline is None else max(0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return batch, False
            if job[1].set_running_or_notify_cancel():  # false for a request that has ended in the meantime
                batch.append(job)
                deadline = deadline or time.monotonic() + PAUSE
        return batch, True
