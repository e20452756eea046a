"""Watches the metrics of reinforcement learning for the method's known ways to fail, and says what to try.

Every signature is a function of the rows so far, so that a run that was stopped and continued finds the same.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

from igpo_jax.errors import UserError
from igpo_jax.training.files import Growing, spared_when_full

FILE = "health.jsonl"

#: Metric name to its value, for one row.
Values = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class HealthSettings:
    """When a signature counts as seen. Nothing here changes training."""

    window: int = 20  #: rows of metrics that a signature is judged over; 0 switches all of them off
    all_wrong_after: float = 0.4  #: share of groups still all wrong after inpainting
    grad_variance_growth: float = 4.0  #: variance of the gradient norm against the window before
    pass_change: float = 0.02  #: pass@1 up and pass@k down by this much from one window to the next
    zero_spread: float = 0.9  #: share of groups whose rewards are all equal
    entropy_share: float = 0.1  #: entropy of generated tokens against the first window's
    repeated_tokens: float = 0.5  #: share of tokens that repeat the one before
    ratio_gap: float = 0.02  #: distance of the probability ratio from 1 before the first inner update

    def __post_init__(self) -> None:
        """Raises UserError for a value that no run could reach or that every run would."""
        if self.window < 0 or self.window == 1:
            raise UserError(f"health.window is {self.window}, expected 2 rows or more, or 0 to switch the watch off")
        for name in ("all_wrong_after", "pass_change", "zero_spread", "entropy_share", "repeated_tokens"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UserError(f"health.{name} is {getattr(self, name)}, expected a share above 0 and up to 1")
        if self.grad_variance_growth <= 1.0 or self.ratio_gap <= 0.0:
            raise UserError(
                f"health.grad_variance_growth is {self.grad_variance_growth} and health.ratio_gap {self.ratio_gap}, "
                "expected a factor above 1 and a distance above 0"
            )


@dataclasses.dataclass(frozen=True)
class Finding:
    """A signature that has just appeared."""

    stage: str
    step: int
    signature: str
    value: float
    advice: str


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to fail.

    Attributes:
      measure: the rows so far -> the value to compare, None where it cannot be told yet.
      seen: whether a value means trouble.
      advice: one line for the user.
    """

    measure: Callable[[Sequence[Values], HealthSettings], float | None]
    seen: Callable[[float, HealthSettings], bool]
    advice: str


def _series(rows: Sequence[Values], name: str) -> list[float]:
    """The finite values of a metric, in order; rows without it are left out."""
    return [row[name] for row in rows if name in row and math.isfinite(row[name])]


def _mean(rows: Sequence[Values], name: str, window: int) -> float | None:
    """Mean over the last ``window`` values, None before there are that many."""
    values = _series(rows, name)
    return statistics.fmean(values[-window:]) if len(values) >= window else None


def all_wrong_after(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """Share of groups still all wrong after inpainting, over the last steps that inpainted."""
    inpainted = [row for row in rows if "hint_ratio" in row]
    return _mean(inpainted, "all_wrong_after", settings.window)


def grad_variance_growth(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """Variance of the gradient norm in the window, against that of the window before it."""
    norms = _series(rows, "grad_norm")
    if len(norms) < 2 * settings.window:
        return None
    before = statistics.pvariance(norms[-2 * settings.window : -settings.window])
    return statistics.pvariance(norms[-settings.window :]) / before if before > 0 else None


def diversity_loss(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """How far pass@k fell, for the largest k, where pass@1 rose as far or more; 0 where it did not."""
    name = _largest_pass(rows[-1]) if rows else None
    if name is None:
        return None
    change = {metric: _change(_series(rows, metric), settings.window) for metric in ("pass_at_1", name)}
    rise, fall = change["pass_at_1"], change[name]
    if rise is None or fall is None:
        return None
    return max(0.0, min(rise, -fall))


def _largest_pass(row: Values) -> str | None:
    ks = [int(match[1]) for name in row if (match := re.fullmatch(r"pass_at_(\d+)", name)) and match[1] != "1"]
    return f"pass_at_{max(ks)}" if ks else None


def _change(values: Sequence[float], window: int) -> float | None:
    if len(values) < 2 * window:
        return None
    return statistics.fmean(values[-window:]) - statistics.fmean(values[-2 * window : -window])


def zero_spread(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """Share of groups whose rewards are all equal, over the window: they teach nothing."""
    return _mean(rows, "zero_spread", settings.window)


def entropy_share(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """Entropy of the generated tokens in the window, as a share of the first window's."""
    values = _series(rows, "entropy_generated")
    if len(values) < 2 * settings.window:
        return None
    first = statistics.fmean(values[: settings.window])
    return statistics.fmean(values[-settings.window :]) / first if first > 0 else None


def repeated_tokens(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """Share of generated tokens that repeat the one before, over the window."""
    return _mean(rows, "repeated_tokens", settings.window)


def ratio_gap(rows: Sequence[Values], settings: HealthSettings) -> float | None:
    """How far the newest row's probability ratio was from 1 before any update, where it must be 1."""
    return rows[-1].get("ratio_gap") if rows else None


#: Field of HealthSettings with the limit -> the signature.
SIGNATURES: dict[str, Signature] = {
    "all_wrong_after": Signature(
        all_wrong_after,
        lambda value, limit: value > limit.all_wrong_after,
        "hints do not rescue the wrong groups: raise rl.hints.ratio_high, or rl.hints.chunk_max for longer chunks",
    ),
    "grad_variance_growth": Signature(
        grad_variance_growth,
        lambda value, limit: value > limit.grad_variance_growth,
        "the gradient is getting noisy: lower rl.objective.entropy_top (tau), to learn from fewer hint tokens",
    ),
    "pass_change": Signature(
        diversity_loss,
        lambda value, limit: value > limit.pass_change,
        "pass@1 rises while pass@k falls (mode collapse): raise rl.objective.kl_coef or sampler.temperature, or stop",
    ),
    "zero_spread": Signature(
        zero_spread,
        lambda value, limit: value > limit.zero_spread,
        "nearly all groups have equal rewards and teach nothing: take harder or easier questions, or a larger "
        "rl.rollout.group_size",
    ),
    "entropy_share": Signature(
        entropy_share,
        lambda value, limit: value < limit.entropy_share,
        "the policy hardly varies any more: raise sampler.temperature or rl.objective.kl_coef, or learn more slowly",
    ),
    "repeated_tokens": Signature(
        repeated_tokens,
        lambda value, limit: value > limit.repeated_tokens,
        "completions repeat single tokens: look at the rollouts, lower the learning rate, and go back to a checkpoint "
        "before it began",
    ),
    "ratio_gap": Signature(
        ratio_gap,
        lambda value, limit: value > limit.ratio_gap,
        "scores and update disagree about the same parameters: check compute.dtype, compute.attention and the masks, "
        "and stop the run",
    ),
}


class Monitor:
    """Sees every finished row of a stage, and reports a signature once each time it appears.

    Args:
      settings: limits and the window.
      stage: name of the stage, for the records.
      directory: the run folder, where findings are added to ``health.jsonl``; None writes nothing.
    """

    def __init__(self, settings: HealthSettings, stage: str, directory: pathlib.Path | None = None):
        self._settings, self._stage = settings, stage
        self._path = directory / FILE if directory else None
        self._rows: list[Values] = []
        self._active: set[str] = set()

    def replay(self, rows: Sequence[tuple[int, Values]]) -> None:
        """Takes in the rows of an earlier start, and makes the records say what those rows say, no more."""
        found = [finding for step, values in rows for finding in self._observe(step, values)]
        if self._path is None:
            return
        others = [line for line in read_findings(self._path.parent) if line.stage != self._stage]
        if others or found or self._path.exists():
            draft = self._path.with_name(FILE + ".partial")
            draft.write_text("".join(map(_line, [*others, *found])), encoding="utf-8")
            draft.replace(self._path)

    def observe(self, step: int, values: Values) -> list[Finding]:
        """The signatures that appear with this row; they are recorded."""
        found = self._observe(step, values)
        if self._path is not None and found:
            # The next start records it again, from the rows.
            with spared_when_full(self._path.name), contextlib.closing(Growing(self._path)) as file:
                file.append("".join(map(_line, found)).encode())
        return found

    def _observe(self, step: int, values: Values) -> list[Finding]:
        if not self._settings.window:
            return []
        self._rows.append(values)
        found = []
        for name, signature in SIGNATURES.items():
            value = signature.measure(self._rows, self._settings)
            seen = value is not None and signature.seen(value, self._settings)
            if seen and value is not None and name not in self._active:
                found.append(Finding(self._stage, step, name, value, signature.advice))
            (self._active.add if seen else self._active.discard)(name)
        return found


def read_findings(directory: pathlib.Path) -> list[Finding]:
    """The findings of a run in the order in which they appeared; a line cut by a kill is left out."""
    path = directory / FILE
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Finding(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _line(finding: Finding) -> str:
    return json.dumps(dataclasses.asdict(finding)) + "\n"
