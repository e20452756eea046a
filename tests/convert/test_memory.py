"""The bound on memory, measured in processes of their own on a checkpoint much larger than it allows."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from convert import layout, writing
from igpo_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).parents[2]

#: LLaDA-8B's proportions with narrower layers: 48 x 6.8 MB, the largest stacked group 75 MB.
DEEP = ModelConfig(
    d_model=512, n_layers=48, n_heads=8, n_kv_heads=8, mlp_hidden_size=1536, vocab_size=8000, embedding_size=8000,
    mask_token_id=7999, eos_token_id=7998, pad_token_id=7998,
)  # fmt: skip
SHALLOW = ModelConfig(**{**DEEP.__dict__, "n_layers": 1, "vocab_size": 100, "embedding_size": 8000})


def write_random(folder: pathlib.Path, config: ModelConfig) -> int:
    """Writes a bfloat16 checkpoint in shards of 50 MB, tensor by tensor; returns the bytes of its tensors."""
    import json

    folder.mkdir()
    dtype, rng = np.dtype("bfloat16"), np.random.default_rng(0)
    tensors = {name: writing.Tensor(place.shape, dtype) for name, place in layout.places(config).items()}

    def draw(name: str) -> list[np.ndarray]:
        return [rng.integers(0x3C00, 0x3D00, tensors[name].shape, np.uint16).view(dtype)]

    writing.write_checkpoint(folder, tensors, draw, 50_000_000)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return sum(tensor.nbytes for tensor in tensors.values())


def peak(*arguments) -> int:
    """Peak resident bytes of a command."""
    # Not ru_maxrss: that one starts at the resident size of the process that forked, here of a whole test session.
    code = (
        "import sys, re; from convert.__main__ import main; code = main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
def test_memory_stays_within_three_groups_and_does_not_follow_the_size(tmp_path):
    total = write_random(tmp_path / "deep", DEEP)
    write_random(tmp_path / "shallow", SHALLOW)
    group = 48 * 512 * 1536 * 2
    assert total > 4 * group
    for command, source in (("import", ""), ("export", "_import")):
        used = {}
        for name in ("shallow", "deep"):
            output = tmp_path / f"{name}_{command}"
            used[name] = peak(command, "--source", tmp_path / f"{name}{source}", "--output", output)
        assert used["deep"] <= 3 * group + 2**30
        # The gigabyte is for Python and its libraries; what the checkpoint itself adds is within the three groups.
        assert used["deep"] - used["shallow"] <= 3 * group
