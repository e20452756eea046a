"""The rewriting itself: rows in, a bounded number of requests under way, decisions out; stoppable at any moment."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence

from igpo_jax.data.examples import Example
from igpo_jax.errors import UserError
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rewriting.acceptance import ACCEPTED, REFUSED, Decision, decide
from igpo_jax.rewriting.budget import Budget
from igpo_jax.rewriting.client import Client, Reply, estimated_tokens
from igpo_jax.rewriting.prompt import Prompt, words_bound
from igpo_jax.rewriting.settings import RewriteSettings
from igpo_jax.rewriting.store import Store

#: Rows in a row without any reply after which the endpoint is taken for gone.
_HOPELESS = 10


class _Stop(Exception):
    """No further request is to be made; the words say why."""


class Rewriting:
    """Asks for every undecided row of ``examples`` and stores what comes back.

    Args:
        examples: the rows, with unique ids.
        settings: whom to ask, how and how often.
        prompt: what to ask.
        store: where replies and decisions go; what it has already is not asked again.
        judge: the worker pool, running.
        key: the API key, "" for none.
        on_decision: called after every decision, for the progress line.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        settings: RewriteSettings,
        prompt: Prompt,
        store: Store,
        judge: JudgePool,
        key: str,
        on_decision: Callable[[], None] = lambda: None,
    ):
        self._examples, self._settings, self._prompt = examples, settings, prompt
        self._store, self._judge, self._key, self._on_decision = store, judge, key, on_decision
        past = list(store.all_replies())
        used = sum(reply.prompt_tokens + reply.reply_tokens for reply in past)
        self._budget = Budget(settings.max_requests, settings.max_total_tokens, len(past), used)
        self._silent_rows = 0
        self.stopped = ""

    def run(self) -> str:
        """Works until every row is decided, or no further request can be made.

        Returns:
            "" when all rows were tried, else why it stopped early: a budget, an endpoint that refuses, or a signal.
        """
        asyncio.run(self._run())
        return self.stopped

    async def _run(self) -> None:
        rows = iter([row for row in self._examples if not self.settled(row)])
        async with self._client() as client:
            tasks = [asyncio.ensure_future(self._work(rows, client)) for _ in range(self._settings.concurrency)]
            with self._signals(tasks):
                await asyncio.gather(*tasks, return_exceptions=False)

    def _client(self) -> Client:
        how = self._settings
        return Client(how.endpoint, how.model, self._key, how.temperature, how.max_tokens, how.timeout)

    @contextlib.contextmanager
    def _signals(self, tasks: Sequence[asyncio.Future[None]]) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the requests under way; what was received is stored already."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            self.stopped = f"stopped by {number.name}"
            for task in tasks:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _work(self, rows: Iterator[Example], client: Client) -> None:
        """One of the workers that share the rows."""
        with contextlib.suppress(asyncio.CancelledError):
            for row in rows:
                if self.stopped:
                    return
                try:
                    await self._row(row, client)
                except _Stop as stop:
                    self.stopped = self.stopped or str(stop)

    def settled(self, row: Example) -> bool:
        """Whether nothing more is to be asked for a row."""
        decision = self._store.decisions.get(row.id)
        if decision is None:
            return False
        final = decision.reason in (ACCEPTED, REFUSED)
        return final or len(self._store.useful(row.id)) >= self._settings.asks

    async def _row(self, row: Example, client: Client) -> None:
        """Decides one row, from replies that an earlier run stored but did not decide on, or from new ones."""
        bound = words_bound(row, self._settings.words_low, self._settings.words_high, self._settings.seed)
        waiting = self._store.useful(row.id)
        while True:
            if not waiting:
                reply = await self._reply(row, self._prompt.fill(row, bound), client)
                if reply is None:
                    return
                waiting = [reply]
            decision = await asyncio.to_thread(self._decide, waiting.pop(0), row, bound)
            self._store.add_decision(row.id, decision)
            if decision.reason == ACCEPTED or (not waiting and self.settled(row)):
                break
        self._on_decision()

    def _decide(self, reply: Reply, row: Example, bound: int) -> Decision:
        return decide(reply, row.answer, bound, self._settings.slack, self._judge)

    async def _reply(self, row: Example, prompt: str, client: Client) -> Reply | None:
        """One useful reply for a row, after as many retries as are allowed; None where there was none."""
        reserved = estimated_tokens(prompt) + self._settings.max_tokens
        for attempt in range(self._settings.retries + 1):
            if not self._budget.reserve(reserved):
                raise _Stop("the budget is spent, raise --max_requests or --max_total_tokens to go on")
            reply = Reply("retry")
            try:
                reply = await client.ask(prompt)
            finally:
                self._budget.settle(reserved, reply.prompt_tokens + reply.reply_tokens)
            self._store.add_reply(row.id, reply)
            if reply.kind == "fatal":
                raise _Stop(f"the endpoint refuses all requests ({reply.problem})")
            if reply.kind != "retry":
                self._silent_rows = 0
                return reply
            if attempt < self._settings.retries and not self.stopped:
                await asyncio.sleep(self._pause(attempt, reply.wait))
        self._silent_rows += 1
        if self._silent_rows >= _HOPELESS:
            raise _Stop(f"the endpoint answered none of the last {_HOPELESS} rows ({reply.problem})")
        return None

    def _pause(self, attempt: int, asked_for: float) -> float:
        """Seconds until the next try: what the server asked for, else doubling, spread so that retries do not meet."""
        longest = self._settings.backoff_max
        grown = min(longest, self._settings.backoff * 2**attempt)
        return max(min(longest, asked_for), grown * random.uniform(0.5, 1.0))


def check_rows(examples: Sequence[Example]) -> None:
    """Raises UserError where a row has no trace to rewrite, or two rows have the same id."""
    seen = set()
    for row in examples:
        if not row.reasoning:
            raise UserError(f"the row {row.id} has no reasoning, and there is nothing to rewrite in it; leave it out")
        if row.id in seen:
            raise UserError(f"two rows have the id {row.id}; ids must be unique for a run to be continued")
        seen.add(row.id)
