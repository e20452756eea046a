"""The judge works beside the sampling: neither waits for the other but at the end."""

import threading
import time

import jax
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import clock
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl import rollout, sampling
from igpo_jax.rl.judging import Judging
from igpo_jax.rl.rollout import RolloutSettings
from tests.rl.rollout_cases import CONFIG, IdTokenizer, RuleJudge, make_context, mesh_of, network, question

EOS = CONFIG.eos_token_id


def judging_of(judge, count):
    return Judging(judge, [str(row) for row in range(count)], IdTokenizer().decode, EOS)


def test_verdicts_come_back_in_the_order_of_the_rows():
    judge = RuleJudge(lambda gold, text: gold == text)
    with judging_of(judge, 4) as judging:
        judging.submit(np.array([3, 1]), np.array([[3, EOS], [1, EOS]]))
        judging.submit(np.array([0, 2]), np.array([[7, EOS], [2, EOS]]))
        texts, verdicts = judging.collect()
    assert texts == ["7", "1", "2", "3"]
    assert [verdict.correct for verdict in verdicts] == [False, True, True, True]
    assert judge.asked == [("3", "3"), ("1", "1"), ("0", "7"), ("2", "2")]


def test_what_the_judge_fails_by_is_raised_where_its_verdicts_are_wanted():
    class Broken:
        def judge(self, items):
            raise UserError("judge workers end before they answer")

    with pytest.raises(UserError, match="judge workers end"), judging_of(Broken(), 1) as judging:
        judging.submit(np.array([0]), np.array([[1, EOS]]))
        judging.collect()


def test_a_slow_judge_is_hidden_behind_the_sampling(monkeypatch):
    """Four programs and four judgements of a quarter second each take five quarters, not eight."""
    pause, programs = 0.25, 4

    def slow_sampler(policy, requests, context, purpose, step, consume=None):
        tokens = np.full_like(requests.hints, EOS)
        for rows in np.split(np.arange(len(tokens)), programs):
            time.sleep(pause)
            consume(rows, tokens[rows])
        return sampling.Samples(tokens, tokens), sampling.SamplingCost(programs=programs)

    class SlowJudge:
        def judge(self, items):
            time.sleep(pause)
            return [Verdict(True, None, "", False)] * len(items)

    monkeypatch.setattr(sampling, "sample", slow_sampler)
    settings = RolloutSettings(groups=4, group_size=2)
    context = make_context(SlowJudge(), settings)
    start = time.perf_counter()
    out = rollout.collect(None, [question(number) for number in range(4)], 0, context)
    total = time.perf_counter() - start
    assert out.seconds["judge"] >= programs * pause
    assert total < 2 * programs * pause - pause, "less than the sum, by more than chance"
    assert out.seconds["judge_wait"] < out.seconds["judge"]


def test_programs_run_on_while_the_one_before_is_judged(monkeypatch):
    """The judge of a program answers once the next one has come back from the devices: in turns, it never would."""
    fetched, condition = [], threading.Condition()
    real = sampling.sharding.local_rows

    def spied(tree):
        rows = real(tree)
        with condition:
            fetched.append(rows)
            condition.notify_all()
        return rows

    class WaitingJudge:
        parts = 0

        def judge(self, items):
            self.parts += 1
            # Three arrays are read from each program; there are four of them.
            wanted = min(3 * (self.parts + 1), 12)
            with condition:
                assert condition.wait_for(lambda: len(fetched) >= wanted, timeout=60), "the judge is waited for"
            return [Verdict(True, None, "", False)] * len(items)

    monkeypatch.setattr(sampling.sharding, "local_rows", spied)
    mesh, judge = mesh_of(2), WaitingJudge()
    settings = RolloutSettings(groups=4, group_size=4, rows_per_program=4)
    with jax.set_mesh(mesh):
        policy = jax.device_put(network(), llada.Policy(llada.shardings(CONFIG, mesh)))
        rollout.collect(policy, [question(number) for number in range(4)], 0, make_context(judge, settings, mesh=mesh))
    assert judge.parts == 4 and len(fetched) == 12


def test_phases_keep_compiling_apart():
    phases = clock.Phases()
    with phases.phase("update"):
        jax.block_until_ready(jax.jit(lambda x: jax.numpy.sin(x) * 3.25)(np.ones(7)))
        time.sleep(0.05)
    assert phases.seconds["compile"] > 0
    assert phases.seconds["update"] >= 0.05
    compiled = phases.seconds["compile"]
    with phases.phase("update"):
        time.sleep(0.01)
    assert phases.seconds["compile"] == compiled
    assert phases.seconds["update"] >= 0.06
