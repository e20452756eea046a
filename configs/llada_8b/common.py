"""What the LLaDA-8B configs share: the model, the data, and how the work is laid out on each kind of hardware.

A variant is a list of words with commas between them, as in ``configs/llada_8b/igpo.py:h100,from_sft,eta0.4``.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from igpo_jax.data.settings import DataSettings
from igpo_jax.data.tokenizers import TokenizerSettings
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models.config import Compute
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel.mesh import MeshSettings
from igpo_jax.training.run_settings import ModelSettings

#: Written by ``python -m convert import --source GSAI-ML/LLaDA-8B-Instruct --output models/llada-8b-instruct``.
INSTRUCT = "models/llada-8b-instruct"

#: Word -> where RL starts: the published model, or a run directory of ``configs/llada_8b/sft.py``, of which the newest
#: parameters are taken, adapters merged.
STARTS = {
    "from_instruct": INSTRUCT,
    "from_sft": "runs/llada_8b_sft",
    "from_original_sft": "runs/llada_8b_sft_original",
}

#: The paper's rank is not given; these are the released code's. It adapts four of the layers, here all seven.
LORA = LoraSettings(rank=128, alpha=64.0)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """How a run is laid out on a number of equal devices, all of them on one FSDP axis.

    Full fine-tuning keeps 12 bytes for each of 8.0156 billion parameters (float32 master and both moments, 89.6 GiB),
    2 for the reference and 4 to 8 for gradients: 2.6 GiB a device on 64 devices and 20.5 on 8, before activations.
    """

    devices: int  # TPU chips or GPUs
    update_rows: int  # completions a device holds at a time in an RL update, 640 tokens each
    sft_rows: int  # rows a device holds at a time in an SFT update, 1,536 tokens each
    long_rows: int  # rows a device holds at a time in an SFT update on original traces, 4,096 tokens each
    rollout_rows: int  # completions a device denoises at a time
    remat: str  # what the backward pass keeps, see igpo_jax/models/config.py

    def parts(self, rows: int, held: int) -> int:
        """Parts that ``rows`` of an update are cut into, where a device holds ``held`` at a time."""
        return rows // (self.devices * held)


#: Google counts the two cores of a v5p chip: 64 chips are its "v5p-128".
HARDWARE = {
    "v5e-64": Hardware(64, update_rows=8, sft_rows=4, long_rows=2, rollout_rows=8, remat="context"),
    "v5p-64": Hardware(64, update_rows=8, sft_rows=8, long_rows=2, rollout_rows=8, remat="qkv_context"),
    "v6e-8": Hardware(8, update_rows=4, sft_rows=2, long_rows=1, rollout_rows=16, remat="full"),
    "v6e-64": Hardware(64, update_rows=8, sft_rows=4, long_rows=2, rollout_rows=8, remat="qkv_context"),
    "h100-8": Hardware(8, update_rows=8, sft_rows=4, long_rows=1, rollout_rows=32, remat="context"),
    "h100-64": Hardware(64, update_rows=8, sft_rows=8, long_rows=2, rollout_rows=8, remat="qkv_context"),
}

#: Short words for the layouts of the paper's size.
ALIASES = {"tpu": "v6e-64", "h100": "h100-64"}


def choose(variant: str, kinds: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Reads a variant: at most one word of each kind, and the kind's first word where none is given.

    Args:
      variant: words with commas between them; may be empty.
      kinds: kind -> its words, the default first.

    Returns:
      kind -> word.

    Raises:
      UserError: a word is of no kind, or two are of one kind.
    """
    kind_of = {word: kind for kind, words in kinds.items() for word in words}
    chosen: dict[str, str] = {}
    for word in filter(None, variant.split(",")):
        check_choice("the config's variant", word, kind_of)
        if kind_of[word] in chosen:
            raise UserError(
                f"the config's variant has both '{chosen[kind_of[word]]}' and '{word}', which say the same thing "
                "differently; keep one of them"
            )
        chosen[kind_of[word]] = word
    return {kind: next(iter(words)) for kind, words in kinds.items()} | chosen


#: Words for the hardware, the default first.
HARDWARE_WORDS = ("tpu", "h100", *HARDWARE)


def hardware(word: str) -> Hardware:
    """The layout that a word of a variant names."""
    return HARDWARE[ALIASES.get(word, word)]


def model(checkpoint: str) -> ModelSettings:
    """LLaDA-8B from ``checkpoint``; its shape is named too, so that a run can be planned without the weights."""
    return ModelSettings(checkpoint=checkpoint, shape="llada_8b")


def tokenizer() -> TokenizerSettings:
    """LLaDA's own tokenizer, with its chat template."""
    return TokenizerSettings(kind="path", path=f"{INSTRUCT}/tokenizer")


def compute(layout: Hardware) -> Compute:
    """Matrix products in bfloat16; parameters, moments and sums stay float32."""
    return Compute(dtype="bfloat16", remat=layout.remat)


def mesh(layout: Hardware) -> MeshSettings:
    """Everything on the FSDP axis: parameters and rows are split over the same devices."""
    return MeshSettings(data=1, fsdp=layout.devices)


def questions(name: str, path: str = "") -> DataSettings:
    """All of one data set for training, GSM8K's test questions for the evaluations around and within a stage.

    Args:
      name: a name of docs/data.md.
      path: its file or folder; empty downloads it once, into the folder that all runs share.
    """
    return DataSettings(
        name=name,
        path=path,
        test_name="gsm8k",
        cache="data",
        on_shared_question="drop",
    )
