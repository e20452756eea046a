"""Scores equal a plain log-softmax, and no array of the whole batch's logits is ever made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import likelihood
from igpo_jax.diffusion.layout import canvas_first
from igpo_jax.errors import UserError
from igpo_jax.models import llada

BATCH, WIDTH, LENGTH = 4, 5, 12

score = jax.jit(likelihood.score, static_argnames=("model", "chunk"))


@pytest.fixture(scope="module")
def batch(prompts):
    rng = np.random.default_rng(3)
    tokens, valid = prompts(rng, BATCH, WIDTH)
    completion = rng.integers(0, 38, (BATCH, LENGTH)).astype(np.int32)
    return tokens, valid, completion, rng.uniform(size=completion.shape) < 0.7


@functools.partial(jax.jit, static_argnames="model")
def naive(policy, model, tokens, valid, completion, masked):
    """Log-softmax over the whole batch's logits, and a gather."""
    canvas = jnp.where(masked, model.config.mask_token_id, completion)
    row = canvas_first(tokens, valid, canvas)
    hidden = llada.forward(policy, model, row.tokens, positions=row.positions, valid=row.valid)
    logp = jax.nn.log_softmax(llada.head_logits(policy, model, hidden[:, : completion.shape[1]]), axis=-1)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return likelihood.Scores(jnp.take_along_axis(logp, completion[..., None], axis=-1)[..., 0], entropy)


@pytest.mark.parametrize("chunk", [1, 5, 6, 64])
def test_equals_a_plain_log_softmax(small, batch, chunk):
    found = score(*small, *batch, chunk=chunk)
    expected = naive(*small, *batch)
    for ours, theirs in ((found.logp, expected.logp), (found.entropy, expected.entropy)):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_a_plain_log_softmax(small, batch):
    policy, model = small
    weights = jax.random.normal(jax.random.key(0), (BATCH, LENGTH))
    grads = [
        jax.jit(jax.grad(lambda policy, f=f: jnp.sum(f(policy, model, *batch).logp * weights)))(policy)
        for f in (functools.partial(likelihood.score, chunk=5), naive)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_no_gradient_flows_through_the_entropy(small, batch):
    policy, model = small
    grads = jax.jit(jax.grad(lambda policy: likelihood.score(policy, model, *batch).entropy.sum()))(policy)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_logits_of_one_chunk_are_the_largest_array_over_the_vocabulary(small, batch, equations, with_gradient):
    policy, model = small
    chunk = 3

    def loss(policy, f):
        scores = f(policy, model, *batch)
        return scores.logp.sum() + scores.entropy.sum()

    def shapes_of(f):
        function = functools.partial(loss, f=f)
        program = jax.make_jaxpr(jax.grad(function) if with_gradient else function)(policy)
        vocabulary = model.config.embedding_size
        weights = {leaf.shape for leaf in jax.tree.leaves(policy)}
        shapes = {value.aval.shape for equation, _ in equations(program.jaxpr) for value in equation.outvars}
        return {shape for shape in shapes if vocabulary in shape} - weights

    over_vocabulary = shapes_of(functools.partial(likelihood.score, chunk=chunk))
    largest = max(over_vocabulary, key=np.prod)
    assert np.prod(largest) == BATCH * chunk * model.config.embedding_size
    assert (BATCH, LENGTH, model.config.embedding_size) in shapes_of(naive)  # the search sees what it looks for


@pytest.mark.parametrize("name", ["logps_d1", "logps_partial"])
def test_equals_the_official_trainer(tiny, golden, name):
    cases = golden("rl")
    case = cases[name]
    prompt, completion = (cases["logps_d1"][key] for key in ("prompt_ids", "completion_ids"))
    for iteration, perturbed in enumerate(case["perturbed"]):
        masked = perturbed[:, prompt.shape[1] :] == tiny[1].config.mask_token_id
        found = score(*tiny, prompt, np.ones_like(prompt, bool), completion, masked, chunk=6)
        np.testing.assert_allclose(found.logp, case["per_token_logps"][iteration], atol=1e-4, rtol=0)
        np.testing.assert_allclose(found.entropy, case["per_token_entropy"][iteration], atol=1e-4, rtol=0)


def test_equals_the_reference_log_likelihood(tiny, golden):
    """Masked rows of an answer, weighted by 1/p: LLaDA's bound of log p(answer | prompt)."""
    case = golden("loglik")["loglik"]
    batches, rows, total = case["perturbed"].shape
    prompt = np.repeat(case["prompt"][None], rows, 0)
    answer = np.repeat(case["answer"][None], rows, 0)
    start = prompt.shape[1]
    bounds = []
    for perturbed, p_mask in zip(case["perturbed"], case["p_mask"], strict=True):
        masked = perturbed[:, start:] == tiny[1].config.mask_token_id
        logp = score(*tiny, prompt, np.ones_like(prompt, bool), answer, masked).logp
        bounds.append(np.sum(np.where(masked, logp / p_mask[:, start:], 0)) / rows)
    assert total == start + answer.shape[1]
    assert np.mean(bounds) == pytest.approx(float(case["log_likelihood"]), abs=1e-4)
    assert len(bounds) == batches


def test_scores_do_not_depend_on_padding(small, batch):
    tokens, valid, completion, masked = batch
    policy, model = small
    together = score(policy, model, *batch)
    for row in range(BATCH):
        prompt = tokens[row][valid[row]][None]
        alone = score(policy, model, prompt, np.ones_like(prompt, bool), completion[[row]], masked[[row]])
        np.testing.assert_allclose(alone.logp[0], together.logp[row], atol=1e-5, rtol=0)


def test_bfloat16_compute_keeps_float32_scores(small, batch):
    policy, model = small
    half = llada.Model(model.config, llada.Compute(dtype="bfloat16"))
    found, exact = score(policy, half, *batch), score(policy, model, *batch)
    assert found.logp.dtype == found.entropy.dtype == jnp.float32
    assert np.abs(np.asarray(found.logp - exact.logp)).mean() < 0.1


def test_prompt_tokens_out_of_view_are_mask_tokens(small, batch):
    """Hidden places of the padding change nothing."""
    tokens, valid, completion, masked = batch
    hidden = np.random.default_rng(5).random(tokens.shape) < 0.4
    assert (hidden & valid).any() and (hidden & ~valid).any()
    shown = np.where(hidden, small[1].config.mask_token_id, tokens)
    expected = score(*small, shown, valid, completion, masked)
    found = likelihood.score(*small, *batch, prompt_masked=hidden)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5, rtol=0)
    assert np.abs(np.asarray(found.logp - score(*small, *batch).logp)).max() > 1e-3


def test_refusals(small, batch):
    tokens, valid, completion, masked = batch
    with pytest.raises(UserError, match=r"masked \(4, 11\)"):
        likelihood.score(*small, tokens, valid, completion, masked[:, :11])
    with pytest.raises(UserError, match="chunk is 0"):
        likelihood.score(*small, *batch, chunk=0)
