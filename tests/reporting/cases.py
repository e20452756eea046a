"""Folders of runs as igpo_jax.train leaves them, written by hand in milliseconds."""

import json
import pathlib
import random
from typing import Any

from igpo_jax.training.metrics import MetricsLog

WORDS = ("spends", " ten", " 4", "3", "7", "\n", " one", "####", "é", " <b>&amp;")
#: What a model might write to get out of its box.
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>\x1b[31m\u202e"
)


def make_run(
    folder: pathlib.Path, name: str = "igpo", seed: int = 0, shift: float = 0.0, steps: int = 5
) -> pathlib.Path:
    """A finished run with metrics, a configuration and evaluations; no rollouts."""
    with MetricsLog(folder, tensorboard=False) as log:
        log.write("eval", 0, scores(0.1) | {"after_stage": 1.0})
        for step in range(1, 4):
            log.write("sft", step, {"loss": 2 / step})
        log.write("eval", 3, scores(0.3))
        for step in range(1, steps + 1):
            log.write(name, step, rl_values(step, shift))
        log.write("eval", steps, scores(0.5 + shift))
    config = {"name": name, "seed": seed, "rl": {"inner_updates": 2}, "mesh": {"data": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"devices": 4, "platform": "cpu", "jax": "0.10.2"}))
    (folder / "evaluations").mkdir()
    for stage, step, score in (("start", 0, 0.1), ("sft", 3, 0.3), (name, steps, 0.5 + shift)):
        row = {"stage": stage, "step": step, **scores(score), "seconds": 12.0, "correct": [1, 0]}
        (folder / "evaluations" / f"{stage}.json").write_text(json.dumps(row))
    return folder


def scores(value: float) -> dict[str, float]:
    """The metrics of an evaluation."""
    return {"pass_at_1": value, "pass_at_1_low": value - 0.05, "pass_at_1_high": value + 0.05, "questions": 40.0}


def rl_values(step: int, shift: float = 0.0) -> dict[str, float]:
    """The metrics of an RL step."""
    return {
        "reward": 0.1 * step + shift,
        "pass_at_1": 0.05 * step + shift,
        "all_wrong_before": 0.4,
        "all_wrong_after": 0.2,
        "kl": 0.01 * step,
        "grad_norm": 0.5 / step,
        "hint_ratio": 0.4 if step > 1 else float("nan"),
        "rollout_seconds": 3.0,
        "update_seconds": 1.0,
        "judge_seconds": 0.5,
    }


def row(**fields: Any) -> dict[str, Any]:
    """One saved rollout: three tokens, the first a hint that the filter dropped."""
    return {
        "step": 10,
        "id": "q-1",
        "group": 0,
        "question": "Mia has 427 euros.",
        "gold": "437",
        "trace": "finds ten 437",
        "completion": "spends ten",
        "correct": False,
        "answer": "427",
        "reason": "different numbers",
        "timed_out": False,
        "truncated": False,
        "all_wrong": False,
        "rescued": False,
        "replaced": False,
        "round": "first",
        "learnt_from": True,
        "reward": 0.0,
        "advantage": -0.5,
        "hint_ratio": 0.4,
        "pieces": ["spends", " ten", ""],
        "hinted": [1, 0, 0],
        "reveal_step": [-1, 1, 0],
        "kept": [0, 1, 1],
    } | fields


def save_rollouts(folder: pathlib.Path, rows: list[dict[str, Any]], step: int = 10, name: str = "igpo") -> pathlib.Path:
    """Writes rows as a run's file of rollouts."""
    path = folder / "rollouts" / f"{name}_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def many_rows(count: int, length: int, group_size: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Rollouts of ``length`` tokens from a vocabulary of 20,000, as those of a large model."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        pieces = [f" w{draw.randrange(20000)}" for _ in range(length)]
        reveal = [draw.randrange(length // 2) for _ in range(length)]
        rows.append(
            row(
                group=number // group_size,
                id=f"q-{number // group_size}",
                question=f"question {number // group_size}: " + "why " * 60,
                completion="".join(pieces),
                pieces=pieces,
                hinted=[0] * length,
                reveal_step=reveal,
                kept=[1] * length,
                correct=number % 3 == 0,
            )
        )
    return rows
