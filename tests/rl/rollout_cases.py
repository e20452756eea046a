"""A small world for rollout tests: a random network, a tokenizer that writes ids, a judge and a sampler that obey."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl import sampling
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.rollout import Question, RewardSettings, RolloutContext, RolloutSettings

CONFIG = llada.ModelConfig(
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    mlp_hidden_size=48,
    vocab_size=40,
    embedding_size=40,
    max_sequence_length=64,
    mask_token_id=38,
    eos_token_id=39,
    pad_token_id=39,
)
MODEL = llada.Model(CONFIG)
SAMPLER = Sampler(length=16, steps=6, block_length=8, temperature=1.0)
HINTS = HintSettings(chunk_min=1, chunk_max=3, answer_room=2)
REWARDS = RewardSettings()
PROMPT = 5


def network() -> llada.Policy:
    """Random weights with a larger head, so that decisions are clear ones."""
    params = jax.jit(llada.init, static_argnums=1)(jax.random.key(3), CONFIG)
    params["ff_out"]["weight"] = 4 * params["ff_out"]["weight"]
    return llada.Policy(params)


def mesh_of(devices: int, settings: MeshSettings | None = None) -> jax.sharding.Mesh:
    return make_mesh(settings, jax.devices()[:devices])


class IdTokenizer:
    """Text is the ids, written out."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(i)) for i in ids)


class RuleJudge:
    """Judges by a rule (gold, text) -> bool and keeps what it was asked."""

    def __init__(self, rule: Callable[[str, str], bool]):
        self.rule = rule
        self.asked: list[tuple[str, str]] = []

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.asked += items
        return [Verdict(self.rule(gold, text), text or None, "rule", False) for gold, text in items]


def question(number: int, trace_length: int = 10, protected: Sequence[int] = ()) -> Question:
    """A question whose trace is ``trace_length`` tokens and whose gold answer is the last of them."""
    rng = np.random.default_rng(number)
    prompt = np.full(PROMPT, CONFIG.pad_token_id, np.int32)
    width = int(rng.integers(1, PROMPT + 1))
    prompt[:width] = rng.integers(0, 38, width)
    trace = rng.integers(1, 10, trace_length).astype(np.int32)
    text = " ".join(map(str, trace))
    marks = np.zeros(trace_length, bool)
    marks[list(protected)] = True
    starts = 2 * np.arange(trace_length)
    return Question(
        id=f"row-{number}",
        text=f"question {number}",
        gold=str(trace[-1]),
        prompt_tokens=prompt,
        prompt_mask=np.arange(PROMPT) < width,
        trace_text=text,
        trace_tokens=trace,
        trace_offsets=np.stack([starts, starts + 1], axis=1),
        protected=marks,
    )


def make_context(
    judge: RuleJudge,
    settings: RolloutSettings,
    *,
    mesh: jax.sharding.Mesh | None = None,
    sampler: Sampler = SAMPLER,
    hints: HintSettings = HINTS,
    rewards: RewardSettings = REWARDS,
    model: llada.Model = MODEL,
    seed: int = 0,
) -> RolloutContext:
    where = sampling.SamplerContext(model, sampler, mesh or mesh_of(1), settings.rows_per_program, seed)
    return RolloutContext(where, settings, hints, rewards, IdTokenizer(), judge)


@dataclasses.dataclass
class Call:
    """One sampling phase as the rollout asked for it."""

    requests: sampling.Requests
    purpose: str
    step: int


class ScriptedSampler:
    """Stands in for ``sampling.sample``: free places of row r get ``write(purpose, r)``, hints stay; programs of 3."""

    def __init__(self, write: Callable[[str, int], Sequence[int]]):
        self.write = write
        self.calls: list[Call] = []

    def __call__(self, policy, requests, context, purpose, step, consume=None):
        self.calls.append(Call(requests, purpose, step))
        wanted = np.array([self.write(purpose, row) for row in range(len(requests.hints))], np.int32)
        tokens = np.where(requests.hints >= 0, requests.hints, wanted)
        # Rows come back in another order than they were asked for, as they do from packed programs.
        order = np.random.default_rng(5).permutation(len(tokens))
        for rows in np.split(order, range(3, len(order), 3)):
            consume(rows, tokens[rows])
        reveal_step = np.where(requests.hints >= 0, -1, np.arange(len(tokens))[:, None])
        return sampling.Samples(tokens, reveal_step), sampling.SamplingCost(programs=1, forwards=7)
