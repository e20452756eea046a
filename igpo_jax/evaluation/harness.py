"""A model class for lm-evaluation-harness: its tasks, prompts and metrics, with this package's sampler and likelihood.

Importing this module registers the class under the name "igpo_jax"; ``python -m igpo_jax.harness`` does so and then
runs the harness's own command line. Needs the extra ``lm-eval``.
"""

import dataclasses
import inspect
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from igpo_jax.commands import checkpoint as checkpoints
from igpo_jax.diffusion import denoise, monte_carlo
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError, nearest
from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rl import sampling
from igpo_jax.training import console

_ROOM = 64
#: What the harness and its flags give to every model, of no use here.
_NOT_OURS = frozenset({"device", "max_batch_size", "trust_remote_code"})


@register_model("igpo_jax")
class DiffusionModel(LM):
    """A checkpoint of any kind, asked by the harness.

    Args:
      checkpoint: folder of an imported model, a Hugging Face folder, or a run directory.
      length: tokens of every completion; what a task says in max_gen_toks is not looked at, as in LLaDA's evaluation.
      steps: denoising steps; 0 = one for every two tokens.
      block_length: tokens of a block.
      temperature: of the sampler; a task's own counts where it asks for do_sample.
      samples: Monte Carlo samples of a likelihood; 1 for an answer of one token.
      group: of them in one forward.
      cfg: guidance in likelihoods and completions.
      check_greedy: find out whether greedy denoising gives the continuation; else that is reported as False.
      batch_size: completions sampled together.
      dtype: "auto", "float32" or "bfloat16".
      tensor: devices that share each matrix; the others hold copies.
      seed: of all draws.
      **others: what the harness passes to every model (device, max_batch_size); any other name is refused.

    Raises:
      UserError: the checkpoint cannot be opened, lacks a tokenizer, or a value does not fit.
    """

    def __init__(
        self,
        checkpoint: str = "",
        length: int = 256,
        steps: int = 0,
        block_length: int = 32,
        temperature: float = 0.0,
        samples: int = 128,
        group: int = 16,
        cfg: float = 0.0,
        check_greedy: bool = False,
        batch_size: int | str = 16,
        dtype: str = "auto",
        tensor: int = 1,
        seed: int = 0,
        **others: Any,
    ):
        super().__init__()
        _check_names(checkpoint, others)
        _check_numbers(length=length, steps=steps, block_length=block_length, temperature=temperature)
        _check_numbers(samples=samples, group=group, cfg=cfg, tensor=tensor, seed=seed)
        outline = checkpoints.read_outline(checkpoint)
        if outline.tokenizer is None:
            raise UserError(f"{checkpoint} has no tokenizer files, without which the harness cannot ask it anything")
        checkpoints.check_tensor(outline.config, tensor)
        self._words = outline.tokenizer
        self._mesh = make_mesh(MeshSettings(tensor=tensor))
        self._shards = self._mesh.shape["data"]
        self._sampler = Sampler(
            length=length,
            steps=steps or max(1, length // 2),
            block_length=block_length,
            temperature=temperature,
            cfg_scale=cfg,
        )
        self._monte_carlo = monte_carlo.MonteCarlo(samples, group)
        self._check_greedy, self._seed, self._cfg = bool(check_greedy), seed, cfg
        wanted = int(batch_size) if str(batch_size).isdigit() else 16
        self._batch = -(-wanted // self._shards) * self._shards
        self._templated = False
        self._policy, self._model = checkpoints.load_policy(outline, dtype, self._mesh)
        self._name = str(outline.path)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its caches apart by."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, which its reports store."""
        return str(self._words.fast.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, special tokens spelled out; from then on contexts are read that way."""
        if not self._words.has_chat:
            raise UserError(f"{self._name} has no chat template whose tokens it knows; leave --apply_chat_template out")
        self._templated = True
        return str(
            self._words.fast.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Completions, cut at the end token and at the first of the task's stop strings."""
        texts = [""] * len(requests)
        asked = [self._encode(instance.args[0]) for instance in requests]
        for temperature, places in self._by_temperature(requests).items():
            for place, text in zip(
                places, self._complete([asked[p] for p in places], places, temperature), strict=True
            ):
                texts[place] = _cut(text, requests[place].args[1].get("until"))
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Lower bounds of log p(continuation | context) in nats, and whether greedy denoising gives it."""
        progress = console.Progress(len(requests), "bound", stream=sys.stderr, unit="pair")
        results = []
        for place, instance in enumerate(requests, start=1):
            prompt, answer = self._pair(*instance.args[:2])
            greedy = self._check_greedy and self._is_greedy(prompt, answer)
            results.append((self._bound(prompt, answer), greedy))
            if place % 50 == 0 or place == len(requests):
                progress.update(place, {})
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Lower bounds of log p(text) in nats; a text longer than a row is the sum of its rows, each by itself."""
        longest = self._model.config.max_sequence_length
        totals = []
        for instance in requests:
            tokens = self._encode(instance.args[0])
            rows = [tokens[start : start + longest] for start in range(0, len(tokens), longest)]
            totals.append(sum(self._bound([], row) for row in rows))
        return totals

    def _encode(self, text: str) -> list[int]:
        return self._words.encode_marked(text) if self._templated else self._words.encode(text)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both encoded as one text; blanks between them belong to the continuation (LLaDA ``eval_llada.py``)."""
        before = context.rstrip()
        whole, prompt = self._encode(context + continuation), self._encode(before) if before else []
        return prompt, whole[len(prompt) :]

    def _by_temperature(self, requests: Sequence[Instance]) -> dict[float, list[int]]:
        places: dict[float, list[int]] = {}
        for place, instance in enumerate(requests):
            given = instance.args[1]
            own = float(given.get("temperature") or 0.0) if given.get("do_sample") else self._sampler.temperature
            places.setdefault(own, []).append(place)
        return places

    def _complete(self, prompts: list[list[int]], rows: list[int], temperature: float) -> list[str]:
        """Texts of completions; draws depend on the seed and the request's number."""
        sampler = dataclasses.replace(self._sampler, temperature=temperature)
        context = sampling.SamplerContext(self._model, sampler, self._mesh, self._batch, self._seed)
        longest = self._model.config.max_sequence_length - sampler.length
        widest = max(len(prompt) for prompt in prompts)
        if not 0 < widest <= longest:
            raise UserError(
                f"a prompt of the task has {widest} tokens, but beside a completion of {sampler.length} the model's "
                f"rows have room for {longest}; give a smaller length in --model_args, or fewer examples"
            )
        width = min(-(-widest // _ROOM) * _ROOM, longest)
        tokens, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
        for place, prompt in enumerate(prompts):
            tokens[place, : len(prompt)], mask[place, : len(prompt)] = prompt, True
        free = np.full((len(prompts), sampler.length), -1, np.int32)
        progress = console.Progress(len(prompts), "text", stream=sys.stderr, unit="completion")
        done = 0

        def consume(numbers: np.ndarray, _: np.ndarray) -> None:
            nonlocal done
            done += len(numbers)
            progress.update(done, {})

        with jax.set_mesh(self._mesh):
            requests = sampling.Requests(tokens, mask, free, np.asarray(rows, np.int64))
            result, _ = sampling.sample(self._policy, requests, context, "harness", 0, consume)
        return [self._words.decode(row, until_eos=True) for row in result.tokens]

    def _bound(self, prompt: list[int], answer: list[int]) -> float:
        """The mean of the samples; rows that fill up the devices are copies and do not count."""
        if not answer:
            return 0.0
        settings = self._monte_carlo.of(len(answer))
        rng = np.random.default_rng([self._seed, zlib.crc32(np.asarray([*prompt, -1, *answer], np.int32).tobytes())])
        rows = -(-settings.group // self._shards) * self._shards
        groups = []
        for _ in range(settings.samples // settings.group):
            masked = monte_carlo.draw_masked(rng, len(answer), settings.group)
            masked = np.resize(masked, (rows, len(answer)))
            groups.append((masked, masked.mean(axis=1, keepdims=True) * np.ones_like(masked)))
        with jax.set_mesh(self._mesh):
            found = monte_carlo.bound_samples(self._policy, self._model, prompt, answer, groups, cfg_scale=self._cfg)
        return float(found.reshape(-1, rows)[:, : settings.group].mean())

    def _is_greedy(self, prompt: list[int], answer: list[int]) -> bool:
        """Whether denoising one token a step, the most confident first, gives exactly the answer."""
        sampler = Sampler(length=len(answer), steps=len(answer), block_length=len(answer), eos_exit="none")
        width = max(1, len(prompt))
        tokens, mask = np.zeros((self._shards, width), np.int32), np.zeros((self._shards, width), bool)
        tokens[:, : len(prompt)], mask[:, : len(prompt)] = prompt, True
        with jax.set_mesh(self._mesh):
            rows = sharding.shard_batch((tokens, mask), self._mesh)
            done = denoise.denoise(self._policy, self._model, sampler, rows[0], rows[1], None)
        return sharding.to_host(done.tokens)[0].tolist() == list(answer)


def _check_names(checkpoint: str, others: dict[str, Any]) -> None:
    """Raises UserError for an argument that a typing error would leave without effect, and where there is no model."""
    known = list(inspect.signature(DiffusionModel).parameters)[:-1]
    for name in sorted(others.keys() - _NOT_OURS):
        raise UserError(f"--model_args has '{name}', which is not one of its names{nearest(name, known)}")
    if not checkpoint:
        raise UserError("--model_args names no checkpoint; add checkpoint=DIR")


def _check_numbers(**values: Any) -> None:
    """Raises UserError where the harness read a word: it takes ``length=1k`` for text."""
    for name, value in values.items():
        if isinstance(value, str):
            raise UserError(f"--model_args has {name}={value}, expected a number")


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first stop string."""
    stops = [until] if isinstance(until, str) else list(until or [])
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
