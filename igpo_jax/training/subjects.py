"""What the curves of a run are about: each subject with its metrics, one declaration for pictures and pages."""

import dataclasses
import re
from collections.abc import Sequence

from igpo_jax.training.metrics import Row

PERCENT = 100.0


@dataclasses.dataclass(frozen=True)
class Subject:
    """One picture: what it shows and from which rows."""

    name: str  # file name without ".png"
    title: str
    ylabel: str
    stage: str  # "sft", "rl" (every stage that is neither SFT nor evaluation) or "eval"
    series: tuple[tuple[str, str], ...] = ()  # (regular expression of metric names, label; empty = the name itself)
    scale: float = 1.0
    stacked: bool = False
    log: bool = False


SUBJECTS = (
    Subject("sft_loss", "SFT loss", "loss [nats per token]", "sft", (("loss", "loss"),)),
    Subject("reward", "Reward of the batch that is learnt from", "mean reward", "rl", (("reward", "reward"),)),
    Subject(
        "training_accuracy",
        "Plain samples, before any hint",
        "pass@k [%]",
        "rl",
        ((r"pass_at_\d+", ""), ("no_answer", "without an answer")),
        PERCENT,
    ),
    Subject(
        "all_wrong",
        "Groups in which every sample is wrong",
        "share of groups [%]",
        "rl",
        (("all_wrong_before", "before the second batch"), ("all_wrong_after", "after it")),
        PERCENT,
    ),
    Subject(
        "rescue",
        "What inpainting changes",
        "count per step",
        "rl",
        (
            ("all_wrong_groups", "all-wrong groups"),
            ("rescued_groups", "rescued groups"),
            ("replaced_rows", "replaced samples"),
        ),
    ),
    Subject(
        "hint_ratio",
        "How much is shown of the solution",
        "share [%]",
        "rl",
        (("hint_ratio", "hint ratio drawn"), ("hint_share_of_canvas", "hints on the canvas")),
        PERCENT,
    ),
    Subject(
        "entropy",
        "Entropy of the tokens learnt from",
        "entropy [nats]",
        "rl",
        (
            ("entropy_generated", "generated"),
            ("entropy_hint", "hint"),
            ("entropy_hint_kept", "hint, after the entropy filter"),
        ),
    ),
    Subject(
        "clip_fraction",
        "Clipped share",
        "tokens [%]",
        "rl",
        (("clip_low", "below the range"), ("clip_high", "above the range")),
        PERCENT,
    ),
    Subject(
        "hint_gap",
        "What hints in view add to generated tokens",
        "log-prob [nats per token]",
        "rl",
        (("hint_logp_gap", "with hints in view minus without"),),
    ),
    Subject("kl", "KL to the reference", "KL estimate [nats]", "rl", (("kl", "KL"),)),
    Subject("gradient_norm", "Gradient norm before the clip", "norm", "rl", (("grad_norm", "norm"),), log=True),
    Subject("learning_rate", "Learning rate", "rate", "rl", (("learning_rate", "learning rate"),)),
    Subject("length", "Completion length", "tokens", "rl", (("completion_length", "up to the first EOS"),)),
    Subject("evaluation", "Held-out questions", "pass@k [%]", "eval", ((r"pass_at_\d+", ""),), PERCENT),
    Subject("evaluation_length", "Completion length on held-out questions", "tokens", "eval", (("mean_length", ""),)),
    Subject(
        "throughput",
        "Throughput of a device",
        "tokens per second",
        "rl",
        ((r"(rollout|update)_tokens_per_second", ""),),
    ),
    Subject(
        "utilisation",
        "Utilisation",
        "share [%]",
        "rl",
        (("mfu_rollout", "MFU of sampling"), ("mfu_update", "MFU of updates"), ("goodput", "goodput of the run")),
        PERCENT,
    ),
    Subject("time", "Time of a step by phase", "seconds", "rl", ((r".+_seconds", ""),), stacked=True),
)


def kind_of(stage: str) -> str:
    """ "eval", "sft" or "rl": what the rows of a stage are about."""
    if stage == "eval" or stage.endswith("/eval"):
        return "eval"
    return stage if stage == "sft" else "rl"


def metrics_of(subject: Subject, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(metric, label) of everything that the rows have for a subject, in the order of its series."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    found = []
    for pattern, label in subject.series:
        found += [(name, label or readable(name)) for name in names if re.fullmatch(pattern, name)]
    return found


def readable(metric: str) -> str:
    """A metric's name as a label: "pass@8", "rollout"."""
    if match := re.fullmatch(r"pass_at_(\d+)", metric):
        return f"pass@{match[1]}"
    return metric.removesuffix("_seconds").removesuffix("_tokens_per_second").replace("_", " ")


def evaluation_labels(rows: Sequence[Row]) -> list[str]:
    """One name for every row of an evaluation: "start", the stage it followed, or stage and step in its midst.

    Args:
      rows: all rows of a run in file order.
    """
    labels, before = [], "start"
    for row in rows:
        if row.stage == "eval":
            labels.append(before)
        elif row.stage.endswith("/eval"):
            labels.append(f"{row.stage.removesuffix('/eval')} {row.step}")
        else:
            before = row.stage
    return labels
