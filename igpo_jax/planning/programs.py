"""The real programs of a run, ready to be lowered for devices that are not here: shapes with shardings, no arrays."""

import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from convert.source import read_config
from igpo_jax.data import pipeline, splits, templates, tokenizers
from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.estimators import ESTIMATORS, Masks
from igpo_jax.models import flops, llada, lora
from igpo_jax.models.config import SHAPES
from igpo_jax.parallel import sharding
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.training import optimizers, rl, sft, state
from igpo_jax.training.run import fresh_config
from igpo_jax.training.run_settings import RunSettings


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a run."""

    name: str
    lower: Callable[[], Any]  # -> jax.stages.Lowered; call it under the mesh
    runs: float  # executions in one outer step (RL) or update (SFT)
    rows: int  # rows that one execution works on
    flops: float  # model FLOPs of one execution, all devices together
    unknown_trips: int  # times that a loop runs whose end depends on data
    passes: int  # times that one execution reads every weight: a forward is one, an update three for each micro-batch
    logits: float  # float32 logits that one execution makes, all devices together
    beside: Any  # tree of what stays on the devices while it runs and is no argument of it
    optimizes: Any  # state that one execution rewrites, None for programs that do not train


def model_config(settings: RunSettings, tensor: int) -> llada.ModelConfig:
    """The model's shape without its weights: the named shape, the checkpoint's config.json, or the fields.

    Args:
      settings: the whole configuration.
      tensor: devices on the tensor axis.
    """
    named, checkpoint = settings.model.shape, settings.model.checkpoint
    if named and not pathlib.Path(checkpoint or "-").exists():
        return SHAPES[named]
    if checkpoint:
        return read_config(checkpoint)
    return fresh_config(settings, _tokenizer(settings), tensor)


def _tokenizer(settings: RunSettings) -> tokenizers.Tokenizer:
    """The tokenizer that a run from scratch would build from its first split."""
    split = "sft" if settings.sft.steps else "rl" if settings.rl.steps else "test"
    with tempfile.TemporaryDirectory() as folder:
        rows = splits.open_split(settings.data, split, pathlib.Path(folder))
        texts = pipeline.tokenizer_texts(settings.data, rows, templates.get_template(settings.template))
        return tokenizers.build_tokenizer(settings.tokenizer, texts)


@dataclasses.dataclass(frozen=True)
class Abstract:
    """Shapes of a run's arrays on a mesh."""

    settings: RunSettings
    model: llada.Model
    mesh: jax.sharding.Mesh

    def rows(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """An array whose first dimension is split over the batch axes."""
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=sharding.named(self.mesh, ("batch", *[None] * (len(shape) - 1)))
        )

    def params(self, dtype: Any = jnp.float32) -> llada.Params:
        """Parameters, sharded as a run has them."""
        return llada.abstract(self.model.config, dtype, self.mesh)

    def policy(self, adapters: lora.LoraSettings | None = None) -> llada.Policy:
        """The compute copy that sampling and scoring take, with adapters where they are trained."""
        policy = llada.Policy(self.params())
        if adapters is not None and adapters.rank:
            policy = llada.Policy(self.params(), self.adapters(adapters))
        cast = jax.eval_shape(lambda tree: llada.cast(tree, self.model), policy)
        return _placed(cast, jax.tree.map(lambda leaf: leaf.sharding, policy))

    def adapters(self, settings: lora.LoraSettings) -> lora.Adapters:
        """Adapters in float32."""
        make = functools.partial(lora.init_adapters, settings=settings, config=self.model.config)
        shapes = jax.eval_shape(lambda: make(jax.random.key(0)))
        return _placed(shapes, lora.adapter_shardings(settings, self.model.config, self.mesh))

    def state(self, settings: lora.LoraSettings, optimizer: Any) -> state.TrainState:
        """The training state that ``state.create`` makes."""
        config, mesh = self.model.config, self.mesh
        make = functools.partial(state.create, settings=settings, config=config, optimizer=optimizer, mesh=mesh)
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(lambda params, key: make(params, key=key), self.params(), _key())
        shardings: Any = llada.shardings(config, mesh)
        if settings.rank:
            shardings = lora.adapter_shardings(settings, config, mesh)
        moments = optimizers.optimizer_shardings(optimizer, shapes.trainable, shardings)
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        replicated = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            dataclasses.replace(shapes, trainable=None, opt_state=None, frozen=None),
        )
        return dataclasses.replace(
            replicated,
            trainable=_placed(shapes.trainable, shardings),
            opt_state=_placed(shapes.opt_state, moments),
            frozen=self.params() if settings.rank else None,
        )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def programs(abstract: Abstract) -> list[Program]:
    """Every program that costs something: an RL run's rollout, scoring and update, an SFT run's update."""
    found = []
    if abstract.settings.sft.steps:
        found.append(_sft(abstract))
    if abstract.settings.rl.steps:
        found += _rl(abstract)
    if not found:
        found.append(_rollout(abstract, lora.LoraSettings(), (), abstract.settings.evaluation.rows_per_program, 1.0))
    return found


def _optimizer(settings: optimizers.OptimizerSettings, updates: int) -> tuple[Any, Any]:
    return optimizers.make_optimizer(settings, updates), optimizers.make_schedule(settings, updates)


def _rl(abstract: Abstract) -> list[Program]:
    """What one outer step runs; everything that lives through it counts beside each program."""
    settings = abstract.settings.rl
    optimizer, schedule = _optimizer(settings.optimizer, settings.updates)
    training = abstract.state(settings.lora, optimizer)
    policy = abstract.policy(settings.lora)
    # Under LoRA the reference is the frozen base, which the state and the policy hold already; otherwise it is a copy
    # of the starting parameters in compute dtype. The policy that sampled is gone before the updates.
    start = None if settings.lora.rank else abstract.policy()
    kept = (training, start)
    rows = settings.rollout.rows_per_program
    runs = math.ceil(settings.rollout.rows / rows)
    return [
        _rollout(abstract, settings.lora, kept, rows, runs),
        _score(abstract, policy, kept),
        _update(abstract, training, start, (optimizer, schedule)),
    ]


def _rollout(abstract: Abstract, adapters: lora.LoraSettings, kept: Any, rows: int, runs: float) -> Program:
    """The denoising loop over ``rows`` prompts, every step of the schedule run."""
    settings, model = abstract.settings, abstract.model
    sampler, prompt = settings.sampler, settings.prompt_length
    config, length = model.config, prompt + sampler.length

    def run(policy: Any, tokens: Any, valid: Any, hints: Any, keys: Any, temperature: Any) -> denoise.Denoised:
        source = noise.KeyNoise(keys)
        return denoise.denoise(policy, model, sampler, tokens, valid, source, hints=hints, temperature=temperature)

    arguments = (
        abstract.policy(adapters),
        *(abstract.rows(rows, prompt, dtype=dtype) for dtype in (jnp.int32, bool)),
        abstract.rows(rows, sampler.length),
        abstract.rows(rows, dtype=_key().dtype),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    passes = sampler.steps * (2 if sampler.cfg_scale > 0 else 1)
    return Program(
        name="rollout",
        lower=lambda: jax.jit(run).lower(*arguments),
        runs=runs,
        rows=rows,
        flops=passes * flops.forward_flops(config, rows, length, sampler.block_length, adapters),
        unknown_trips=sampler.steps if sampler.rows_apart else sampler.steps_per_block,
        passes=passes,
        logits=float(passes * rows * sampler.block_length * config.embedding_size),
        beside=kept,
        optimizes=None,
    )


def _batch(abstract: Abstract, rows: int) -> RolloutBatch:
    prompt, length = abstract.settings.prompt_length, abstract.settings.sampler.length
    of = abstract.rows
    return RolloutBatch(
        prompt_tokens=of(rows, prompt),
        prompt_mask=of(rows, prompt, dtype=bool),
        completion_tokens=of(rows, length),
        completion_mask=of(rows, length, dtype=bool),
        hint_mask=of(rows, length, dtype=bool),
        rewards=of(rows, dtype=jnp.float32),
        correct=of(rows, dtype=bool),
        advantages=of(rows, dtype=jnp.float32),
        group_id=of(rows),
    )


def _masks(abstract: Abstract) -> Masks:
    """What the scoring passes of the config's likelihood estimator hide."""
    settings, prompt = abstract.settings.rl, abstract.settings.prompt_length
    length, rows = abstract.settings.sampler.length, settings.rollout.rows
    estimator, keys = ESTIMATORS[settings.estimator], jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    shapes = jax.eval_shape(lambda keys: estimator.masks(keys, jnp.int32(0), 1, prompt, length), keys)
    return jax.tree.map(lambda leaf: abstract.rows(*leaf.shape, dtype=leaf.dtype), shapes)


def _score(abstract: Abstract, policy: llada.Policy, kept: Any) -> Program:
    """The scoring pass, run for the behaviour policy and for the reference."""
    settings, model, rows = abstract.settings.rl, abstract.model, abstract.settings.rl.rollout.rows
    length = abstract.settings.sampler.length
    scorer: Any = rl.make_score(model, settings.logprob_chunk, settings.score_batches)
    masks = _masks(abstract)
    whole = abstract.settings.prompt_length + length
    return Program(
        name="scoring",
        lower=lambda: scorer.lower(policy, _batch(abstract, rows), masks.completion, masks.prompt),
        runs=2 * settings.mask_draws,
        rows=rows,
        flops=flops.forward_flops(model.config, rows, whole, length, settings.lora),
        unknown_trips=1,
        passes=settings.score_batches,
        logits=float(rows * length * model.config.embedding_size),
        beside=kept,
        optimizes=None,
    )


def _update(abstract: Abstract, training: state.TrainState, beside: Any, optimizer: tuple[Any, Any]) -> Program:
    """One of the mu inner updates."""
    settings, model, rows = abstract.settings.rl, abstract.model, abstract.settings.rl.rollout.rows
    length = abstract.settings.sampler.length
    old, ref = (abstract.rows(rows, length, dtype=jnp.float32) for _ in range(2))
    kept, weight = abstract.rows(rows, length, dtype=bool), abstract.rows(rows, dtype=jnp.float32)
    masks = _masks(abstract) if settings.redraws else None
    batch = UpdateBatch(_batch(abstract, rows), old, ref, kept, weight, masks)
    step: Any = rl.make_rl_step(model, settings, *optimizer)
    whole = abstract.settings.prompt_length + length
    return Program(
        name="update",
        lower=lambda: step.lower(training, batch),
        runs=settings.inner_updates,
        rows=rows,
        flops=flops.update_flops(model.config, rows, whole, length, settings.lora),
        unknown_trips=1,
        passes=3 * settings.micro_batches,
        logits=2.0 * rows * length * model.config.embedding_size,
        beside=beside,
        optimizes=(training.trainable, training.opt_state),
    )


def _sft(abstract: Abstract) -> Program:
    """One update of supervised fine-tuning."""
    settings, model, rows = abstract.settings.sft, abstract.model, abstract.settings.sft.batch_size
    prompt = abstract.settings.prompt_length
    length = settings.completion_length or abstract.settings.sampler.length
    optimizer, schedule = _optimizer(settings.optimizer, settings.steps)
    training = abstract.state(settings.lora, optimizer)
    of = abstract.rows
    batch = sft.SftBatch(of(rows, prompt), of(rows, prompt, dtype=bool), of(rows, length), of(rows))
    step: Any = sft.make_sft_step(model, settings, optimizer, schedule)
    whole = jax.sharding.NamedSharding(abstract.mesh, jax.P())
    key = jax.ShapeDtypeStruct((), _key().dtype, sharding=whole)
    return Program(
        name="sft update",
        lower=lambda: step.lower(training, batch, key),
        runs=1,
        rows=rows,
        flops=flops.update_flops(model.config, rows, prompt + length, length, settings.lora),
        unknown_trips=1,
        passes=3 * settings.micro_batches,
        logits=2.0 * rows * length * model.config.embedding_size,
        beside=None,
        optimizes=(training.trainable, training.opt_state),
    )
