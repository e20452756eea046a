"""Judging beside the sampling: finished programs are judged in a thread while the devices run the next one."""

import concurrent.futures
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from igpo_jax.rewards.verdict import Judge, Verdict
from igpo_jax.rl.sampling import Decode, texts_of


class Judging:
    """Verdicts on R completions that arrive in parts; a context manager.

    One thread judges part after part, in the order they come. The comparisons themselves are made by the pool's worker
    processes, so the thread takes next to nothing from the one that launches programs.

    Args:
      judge: the worker pool.
      golds: R gold answers.
      decode: ids to text.
      eos: the EOS token, where a text ends.
    """

    def __init__(self, judge: Judge, golds: Sequence[str], decode: Decode, eos: int):
        self._judge, self._golds, self._decode, self._eos = judge, golds, decode, eos
        self._texts = [""] * len(golds)
        self._verdicts = [Verdict(False, None, "not judged", False)] * len(golds)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="judging")
        self._parts: list[concurrent.futures.Future[None]] = []
        #: Seconds spent judging, hidden behind the sampling or not.
        self.seconds = 0.0

    def submit(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Hands a finished program in: numbers of its completions (n,) and their tokens (n, C); returns at once."""
        self._parts.append(self._thread.submit(self._judge_part, rows, tokens))

    def collect(self) -> tuple[list[str], list[Verdict]]:
        """Texts and verdicts of all R completions, once everything handed in is judged.

        Raises:
          UserError: the judge failed.
        """
        for part in self._parts:
            part.result()
        return self._texts, self._verdicts

    def _judge_part(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        start = time.perf_counter()
        texts = texts_of(tokens, self._eos, self._decode)
        found = self._judge.judge([(self._golds[row], text) for row, text in zip(rows, texts, strict=True)])
        for row, text, verdict in zip(rows, texts, found, strict=True):
            self._texts[row], self._verdicts[row] = text, verdict
        self.seconds += time.perf_counter() - start

    def __enter__(self) -> "Judging":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nobody wants the verdicts still to come.
        self.close(wait=error is None)

    def close(self, wait: bool = True) -> None:
        """Ends the thread; without ``wait``, what was handed in but not begun stays unjudged."""
        self._thread.shutdown(wait=wait, cancel_futures=not wait)
