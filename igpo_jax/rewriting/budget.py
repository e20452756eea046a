"""Limits on requests and tokens that a run never passes: what is under way counts as spent."""


class Budget:
    """Counts requests and tokens against their limits.

    Args:
        max_requests: 0 = no limit.
        max_tokens: prompt and reply tokens; 0 = no limit.
        requests: made by earlier runs.
        tokens: used by earlier runs.
    """

    def __init__(self, max_requests: int, max_tokens: int, requests: int = 0, tokens: int = 0):
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self.requests, self.tokens = requests, tokens
        self._reserved = 0
        self._under_way = 0

    def reserve(self, tokens: int) -> bool:
        """Takes one request of at most ``tokens`` tokens from what is left; False where it does not fit."""
        full = self._max_requests and self.requests + self._under_way >= self._max_requests
        dear = self._max_tokens and self.tokens + self._reserved + tokens > self._max_tokens
        if full or dear:
            return False
        self._reserved += tokens
        self._under_way += 1
        return True

    def settle(self, reserved: int, used: int) -> None:
        """Replaces a reservation by what the request really used."""
        self._reserved -= reserved
        self._under_way -= 1
        self.requests += 1
        self.tokens += used
