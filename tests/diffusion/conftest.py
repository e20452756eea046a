"""Models for the diffusion tests, and the denoising loop once more in plain Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import hf
from igpo_jax.models import llada


@pytest.fixture(scope="session")
def tiny(golden_dir):
    """(policy, model) of the golden checkpoint."""
    config, params = hf.load_checkpoint(golden_dir / "tiny_llada", dtype="float32")
    return llada.Policy(params), llada.Model(config)


SMALL = llada.ModelConfig(
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


@pytest.fixture(scope="session")
def small():
    """(policy, model) of a random network with a vocabulary of 40 (mask 38, EOS 39)."""
    params = jax.jit(llada.init, static_argnums=1)(jax.random.key(3), SMALL)
    # A larger head spreads the logits, so that decisions are clear ones.
    params["ff_out"]["weight"] = 4 * params["ff_out"]["weight"]
    return llada.Policy(params), llada.Model(SMALL)


@pytest.fixture(scope="session")
def prompts():
    """Draws (tokens, valid) of a batch of prompts whose lengths differ, padded on a side chosen by the row."""

    def draw(rng, batch, width, vocab=38):
        tokens = rng.integers(0, vocab, (batch, width)).astype(np.int32)
        valid = np.ones((batch, width), bool)
        for row, pad in enumerate(rng.integers(0, width, batch)):
            valid[row, slice(0, pad) if row % 2 else slice(width - pad, width)] = False
        return tokens, valid

    return draw


@jax.jit(static_argnames="model")
def _network(policy, model, tokens, positions, valid):
    hidden = llada.forward(policy, model, tokens, positions=positions, valid=valid)
    return llada.head_logits(policy, model, hidden)


def _row_logits(policy, model, prompt, canvas, width):
    """Logits (C, V) of one row in reading order, padded on the left to a fixed width."""
    pad = width - len(prompt)
    tokens = np.concatenate([np.zeros(pad, np.int32), prompt, canvas])[None]
    valid = np.arange(tokens.shape[1])[None] >= pad
    positions = np.maximum(np.arange(tokens.shape[1]) - pad, 0)[None]
    logits = _network(policy, model, jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(valid))
    return np.asarray(logits, np.float64)[0, width:]


@dataclasses.dataclass
class Loop:
    """What the plain loop returns."""

    tokens: np.ndarray
    reveal_step: np.ndarray
    forwards: int
    steps_needed: np.ndarray
    gap: float  # smallest margin of any decision: below rounding, another result is as good


class _PlainLoop:
    """The algorithm of the reference samplers, one row and one step after the other."""

    def __init__(self, policy, model, sampler, tokens, valid, hints, temperature, gumbels, uniforms, bias, pairs):
        self.policy, self.model, self.sampler = policy, model, sampler
        self.prompts = [row[ok] for row, ok in zip(tokens, valid, strict=True)]
        self.width, self.hints = tokens.shape[1], hints
        self.temperature, self.gumbels, self.uniforms, self.bias = temperature, gumbels, uniforms, bias
        self.pairs = pairs
        self.mask, self.eos = model.config.mask_token_id, model.config.eos_token_id
        self.canvas = np.where(hints >= 0, hints, self.mask)
        self.reveal_step = np.where(hints >= 0, -1, -2)
        self.gap = np.inf

    def run(self):
        forwards, needed = 0, np.zeros(len(self.canvas), int)
        for block in range(self.sampler.blocks):
            start = block * self.sampler.block_length
            cells = range(start, start + self.sampler.block_length)
            open_before = [sum(row[c] == self.mask for c in cells) for row in self.canvas]
            steps = [self._steps(count) for count in open_before]
            reveals = [_spread(count, n) for count, n in zip(open_before, steps, strict=True)]
            for step in range(max(map(len, reveals))):
                counts = [row[step] if step < len(row) else 0 for row in reveals]
                if not any(counts):
                    continue
                forwards += 1
                for row, count in enumerate(counts):
                    if count:
                        needed[row] += 1
                        self._reveal(row, cells, count, block * self.sampler.steps_per_block + step)
            self._exit(cells, open_before)
        if self.sampler.rows_apart:  # no row waits for another one's block
            forwards = max(needed)
        return Loop(self.canvas, self.reveal_step, forwards, needed, self.gap)

    def _steps(self, open_masks):
        full = self.sampler.steps_per_block
        if self.sampler.step_budget == "schedule":
            return full
        return max(1, int(np.ceil(full * open_masks / self.sampler.block_length)))

    def _logits(self, row):
        logits = _row_logits(self.policy, self.model, self.prompts[row], self.canvas[row], self.width)
        if self.sampler.cfg_scale:
            blind = np.where(self.hints[row] >= 0, self.mask, self.canvas[row])
            masks = np.full_like(self.prompts[row], self.mask)
            without = _row_logits(self.policy, self.model, masks, blind, self.width)
            logits = without + (self.sampler.cfg_scale + 1) * (logits - without)
        logits = logits + self.bias
        if self.sampler.forbid_mask:
            logits[:, self.mask] = -np.inf
        if self.sampler.suppress_eos_logits:
            logits[:, self.eos] = -np.inf
        return logits

    def _reveal(self, row, cells, count, step):
        logits = self._logits(row)
        found = []
        for offset, cell in enumerate(cells):
            if self.canvas[row, cell] != self.mask:
                continue
            choice = self._choice(logits[cell], step, row, offset)
            found.append((self._confidence(logits[cell], choice, step, row, offset), -cell, choice))
        found.sort(reverse=True)
        if count < len(found) and found[count][0] > -np.inf:
            self.gap = min(self.gap, found[count - 1][0] - found[count][0])
        for _, cell, choice in found[:count]:
            self.canvas[row, -cell] = choice
            if choice != self.mask:
                self.reveal_step[row, -cell] = step

    def _choice(self, logits, step, row, offset):
        if self.temperature and self.sampler.draw == "inverse_cdf":
            return self._drawn(logits, self.pairs[step, row, offset, 1])
        noise = self.temperature * self.gumbels[step, row, offset] if self.temperature else 0.0
        self._margin(logits + noise)
        return int(np.argmax(logits + noise))

    def _drawn(self, logits, uniform):
        """The token whose interval holds ``uniform``; so small a vocabulary is one chunk, picked by any number."""
        weights = np.exp((logits - logits.max()) / self.temperature)
        edges = np.cumsum(weights) / weights.sum()
        # Logits that move by d move an edge by at most d / (2 T): as a margin of logits like the others.
        self.gap = min(self.gap, 2 * self.temperature * np.abs(edges[:-1] - uniform).min())
        return int(np.searchsorted(edges[:-1], uniform, side="right"))

    def _margin(self, values):
        best, second = np.sort(values)[[-1, -2]]
        self.gap = min(self.gap, best - second)

    def _confidence(self, logits, choice, step, row, offset):
        """The logarithm of the probability: the order is the same, and margins below rounding show everywhere."""
        if self.sampler.selection == "random":
            return self.uniforms[step, row, offset]
        if self.sampler.suppress_eos_confidence:
            logits = logits.copy()
            logits[self.eos] = -np.inf
        highest = logits.max()
        return logits[choice] - highest - np.log(np.exp(logits - highest).sum())

    def _exit(self, cells, open_before):
        done = np.array([all(row[c] == self.eos for c in cells) for row in self.canvas])
        if self.sampler.eos_exit == "row":
            done &= np.array(open_before) > 0
        elif self.sampler.eos_exit == "batch":
            everyone = all(done | (self.hints >= 0).all(1)) and sum(open_before) > 0
            done = np.full(len(done), everyone)
        else:
            done[:] = False
        self.canvas[(self.canvas == self.mask) & done[:, None]] = self.eos


def _spread(count, steps):
    """Splits count into steps parts, the larger ones first."""
    base, rest = divmod(count, steps)
    return [base + 1] * rest + [base] * (steps - rest)


@pytest.fixture(scope="session")
def plain_loop():
    """Runs the plain loop; arguments as denoise, noise as recorded arrays."""

    def run(
        policy,
        model,
        sampler,
        tokens,
        valid,
        hints=None,
        temperature=0.0,
        gumbels=None,
        uniforms=None,
        bias=0.0,
        pairs=None,
    ):
        hints = np.full((len(tokens), sampler.length), -1) if hints is None else hints
        draws = (gumbels, uniforms, bias, pairs)
        return _PlainLoop(policy, model, sampler, tokens, valid, hints, temperature, *draws).run()

    return run


@pytest.fixture(scope="session")
def assert_same():
    """Compares a Denoised with a Loop, everything equal."""

    def check(out, loop):
        np.testing.assert_array_equal(np.asarray(out.tokens), loop.tokens)
        np.testing.assert_array_equal(np.asarray(out.reveal_step), loop.reveal_step)
        np.testing.assert_array_equal(np.asarray(out.steps_needed), loop.steps_needed)
        assert int(out.forwards) == loop.forwards

    return check


@pytest.fixture(scope="session")
def scripted():
    """Gumbel values (S, B, K, V) that decide every choice: the tokens ``want`` (S, B, K), far above all logits."""

    def make(want, vocab=SMALL.embedding_size):
        return np.where(np.arange(vocab) == want[..., None], np.float32(1e4), np.float32(0))

    return make


def _equations(jaxpr, path=()):
    for equation in jaxpr.eqns:
        yield equation, path
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, (*path, equation.primitive.name))


@pytest.fixture(scope="session")
def equations():
    """Every equation of a program with the names of those around it: inside loops and rematerialised parts too."""
    return _equations
