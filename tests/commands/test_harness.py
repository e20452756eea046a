"""The adapter inside a real lm-evaluation-harness: a task of generation and one of likelihoods, on a random model.

Collected only where the harness is installed (the extra ``lm-eval``), see conftest.py.
"""

import json

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from igpo_jax.commands import checkpoint as checkpoints
from igpo_jax.diffusion import monte_carlo
from igpo_jax.errors import UserError
from igpo_jax.evaluation import harness

TASKS = {
    "sums": """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["q"], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "choice": """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def model(chat_dir):
    return harness.DiffusionModel(
        checkpoint=str(chat_dir), length=16, steps=8, block_length=8, samples=16, group=4, batch_size=8
    )


def instance(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_tasks_run_through_the_harness(model, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("FILE", str(data)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=10)
    assert set(found["results"]) == set(TASKS)
    assert 0 <= found["results"]["choice"]["acc,none"] <= 1
    replies = [sample["resps"][0][0] for sample in found["samples"]["sums"]]
    assert len(replies) == 3 and all(isinstance(reply, str) and "q" not in reply for reply in replies)


def test_the_name_is_registered():
    assert get_model("igpo_jax") is harness.DiffusionModel


def test_a_bound_is_the_librarys_own(model, chat_dir):
    """The same draws, on one device: rows that fill up the eight devices do not count."""
    outline = checkpoints.read_outline(str(chat_dir))
    policy, network = checkpoints.load_policy(outline, "auto", None)
    context, answer = "What is it? ", "It is a hat."
    (found, greedy), (again, _) = model.loglikelihood([instance("loglikelihood", context, answer)] * 2)
    prompt, rest = outline.tokenizer.encode("What is it?"), outline.tokenizer.encode(" It is a hat.")
    draws = np.random.default_rng([0, harness.zlib.crc32(np.asarray([*prompt, -1, *rest], np.int32).tobytes())])
    wanted = monte_carlo.draw_bound(policy, network, prompt, rest, monte_carlo.MonteCarlo(16, 4), draws)
    assert found == again == pytest.approx(float(wanted.mean()), abs=1e-3) and greedy is False


def test_likelihoods_without_context_and_of_long_texts(model):
    ((alone, _),) = model.loglikelihood([instance("loglikelihood", "", "x")])
    assert alone < 0 and np.isfinite(alone)
    short, long = model.loglikelihood_rolling(
        [instance("loglikelihood_rolling", "abc " * 10), instance("loglikelihood_rolling", "abc " * 60)]
    )
    assert long < short < 0


def test_greedy_is_found_out_where_it_is_asked_for(chat_dir):
    model = harness.DiffusionModel(
        checkpoint=str(chat_dir), length=16, steps=8, block_length=8, samples=1, group=1, check_greedy=True
    )
    prompt = model._encode("What is it?")
    sampler = harness.Sampler(length=3, steps=3, block_length=3, eos_exit="none")
    policy, network = checkpoints.load_policy(checkpoints.read_outline(str(chat_dir)), "auto", None)
    done = harness.denoise.denoise(
        policy, network, sampler, np.array([prompt], np.int32), np.ones((1, len(prompt)), bool), None
    )
    answer = np.asarray(done.tokens)[0].tolist()
    assert model._is_greedy(prompt, answer) and not model._is_greedy(prompt, [*answer[:2], (answer[2] + 1) % 200])


def test_a_chat_template_reaches_the_model_as_tokens(chat_dir):
    model = harness.DiffusionModel(checkpoint=str(chat_dir), length=16, steps=8, block_length=8)
    text = model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert model._encode(text) == checkpoints.read_outline(str(chat_dir)).tokenizer.encode_prompt("hi")
    assert model.chat_template(True) and model.tokenizer_name.endswith("model")


def test_stop_strings():
    assert harness._cut("one\nQ: two", ["Q:", "\n"]) == "one"
    assert harness._cut("one", "Q:") == "one" and harness._cut("one", None) == "one"


def test_what_does_not_fit_is_said(model, chat_dir):
    with pytest.raises(UserError, match="a prompt of the task has 300 tokens"):
        model.generate_until([instance("generate_until", "a" * 300, {"until": []})])
    with pytest.raises(UserError, match=r"has 'lenght', which is not one of its names \(did you mean 'length'\?\)"):
        harness.DiffusionModel(checkpoint=str(chat_dir), lenght=16, device="cpu")
    with pytest.raises(UserError, match="has length=1k, expected a number"):
        harness.DiffusionModel(checkpoint=str(chat_dir), length="1k")
    with pytest.raises(UserError, match="names no checkpoint"):
        harness.DiffusionModel(length=16)
    with pytest.raises(UserError, match="not a folder"):
        harness.DiffusionModel(checkpoint="nowhere")
