"""Intervals, the evaluation of a policy, benchmarks and their metrics."""

import itertools
import json
import math
from dataclasses import replace

import pytest

from eval import CATALOG
from eval.metrics import pass_at_k
from llmrl import catalog
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.errors import DataError, RecipeError
from llmrl.evaluation import evaluate, interval
from llmrl.ops.intervals import clustered, mean_interval, wilson
from llmrl.scoring import Scorer, make_scorer
from llmrl.types import Prompt, Rollout, Sampling, Score

Z = 1.959963984540054  # two-sided 95 %


def close(a, b):
    return a == pytest.approx(b, abs=1e-6)


def test_wilson_golden():
    # p = 0.8, n = 10: z² = 3.841459; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.00960365) = 0.226577
    assert close(wilson(8, 10), (0.8, 0.490162, 0.943318))
    # 659 of 1,319: z²/n = 0.00291240, centre 0.499622, half 1.954272 * sqrt(1.895374e-4 + 5.5201e-7) = 0.0269441
    assert close(wilson(659, 1319), (0.499621, 0.472678, 0.526566))


def test_wilson_has_width_at_the_ends_and_stays_inside():
    # all right: low = n / (n + z²) = 10 / 13.841459
    assert close(wilson(10, 10), (1.0, 0.722467, 1.0))
    assert close(wilson(0, 10), (0.0, 0.0, 0.277533))
    assert wilson(10, 10).high == 1.0 and wilson(0, 10).low == 0.0


def test_wider_confidence_wider_interval():
    assert wilson(8, 10, 0.99).low < wilson(8, 10, 0.95).low < wilson(8, 10, 0.8).low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson(successes, n)


def test_mean_interval_golden():
    # 1, 2, 3, 4: mean 2.5, s = sqrt(5/3), SE = s / 2 = 0.645497
    assert close(mean_interval([1, 2, 3, 4]), (2.5, 2.5 - Z * 0.6454972244, 2.5 + Z * 0.6454972244))


def test_clustered_golden():
    found = clustered([[1, 1, 1, 1], [0, 0], [1], [0]])
    # mean 5/8; sums of deviations 4*0.375, -2*0.625, 0.375, -0.625 = 1.5, -1.25, 0.375, -0.625; squares 4.34375
    se = math.sqrt(4 / 3 * 4.34375) / 8
    assert close(found, (0.625, 0.625 - Z * se, 0.625 + Z * se))


def test_copies_of_a_sample_do_not_narrow_the_interval():
    once = mean_interval([0, 1, 1, 0, 1])
    assert close(clustered([[v] * 32 for v in [0, 1, 1, 0, 1]]), once)
    assert mean_interval([0, 1, 1, 0, 1] * 32).low > once.low + 0.2


def test_one_cluster_says_nothing_and_none_is_refused():
    assert clustered([[0.0, 1.0]]) == (0.5, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no values"):
        clustered([[], []])


def test_interval_is_wilsons_for_single_samples_and_clustered_for_several():
    assert interval([[1.0], [0.0], [1.0]]) == wilson(2, 3)
    # deviations of the three prompts: 0, 2 * 0.5, -2 * 0.5 -> SE² = 3/2 * 2 / 36
    half = Z * math.sqrt(1 / 12)
    assert close(interval([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), (0.5, max(0, 0.5 - half), min(1, 0.5 + half)))
    assert interval([]) is None


def test_interval_of_all_right_has_width_and_values_beyond_one_are_not_cut():
    assert interval([[1.0, 1.0], [1.0, 1.0]]) == wilson(2, 2)
    assert interval([[0.0] * 8] * 3) == wilson(0, 3)
    assert interval([[0.0, 1.0]]) == (0.5, 0.0, 1.0)
    assert interval([[-3.0], [5.0]]).high > 5.0


class Parrot:
    """Answers with the last digit of its seed's parity, or what it is told; ids are characters, text is left empty."""

    def __init__(self, answers):
        self.answers, self.calls = answers, []

    def generate(self, prompts, sampling, num_samples, seeds):
        self.calls.append((tuple(p.id for p in prompts), tuple(seeds), num_samples, sampling))
        return [[self.rollout(text, sampling) for text in self.answers[p.id][:num_samples]] for p in prompts]

    def rollout(self, text, sampling):
        ids = tuple(map(ord, text))[: sampling.max_tokens]
        return Rollout(ids, "", logprobs=(0.0,) * len(ids), truncated=len(ids) < len(text))


def decode(ids):
    return "".join(map(chr, ids))


def exact(prompt, rollout):
    if rollout.text == "broken":
        raise RuntimeError("cannot read")
    return Score(None if rollout.text == "pass" else float(rollout.text == prompt.reference), feedback="seen")


def length(prompt, rollout):
    return Score(float(len(rollout.text)))


PROMPTS = [Prompt(id, text=f"{id}?", ids=(1,), reference="yes") for id in "abcd"]
SCORERS = [Scorer("exact", exact, "rollout"), Scorer("length", length, "rollout")]
SAMPLING = Sampling(max_tokens=8)


def run(answers, prompts=PROMPTS, num_samples=1, **changes):
    engine = Parrot(answers)
    settings = {"num_samples": num_samples, "seed": 3, "decode": decode} | changes
    return evaluate(engine, prompts, SCORERS, SAMPLING, **settings), engine


def test_accuracy_is_the_first_scorers_mean_with_wilsons_interval():
    found, _ = run({"a": ["yes"], "b": ["no"], "c": ["yes"], "d": ["yes, I think"]})
    assert (found.accuracy, found.low, found.high) == wilson(2, 4)
    assert (found.num, found.errors, found.truncated) == (4, 0, 0.25)
    assert found.mean_length == (3 + 2 + 3 + 8) / 4


def test_errors_and_what_does_not_apply_are_neither_right_nor_wrong():
    found, _ = run({"a": ["yes"], "b": ["broken"], "c": ["pass"], "d": ["no"]})
    assert (found.accuracy, found.num, found.errors) == (0.5, 2, 1)
    assert [one["correct"] for one in found.records] == [True, None, None, False]
    assert found.records[1]["scores"]["exact"]["error"] == "RuntimeError: cannot read"


def test_where_nothing_could_be_judged_there_is_no_accuracy():
    found, _ = run({id: ["broken"] for id in "abcd"})
    assert (found.accuracy, found.low, found.high, found.num, found.errors) == (None, None, None, 0, 4)
    assert set(found.metrics("x")) == {"eval/x/num", "eval/x/errors", "eval/x/mean_length", "eval/x/truncated"}


def test_several_samples_cluster_by_prompt():
    found, _ = run({"a": ["yes", "yes"], "b": ["no", "no"], "c": ["yes", "no"], "d": ["yes", "no"]}, num_samples=2)
    # deviations by prompt: 1, -1, 0, 0 -> SE = sqrt(4/3 * 2) / 8 = 0.204124
    assert close((found.accuracy, found.low, found.high), (0.5, 0.5 - Z * 0.2041241452, 0.5 + Z * 0.2041241452))
    assert found.num == 8


def test_metrics_are_flat_and_named_after_the_evaluation():
    found, _ = run({id: ["yes"] for id in "abcd"})
    assert found.metrics("held_out") == {
        "eval/held_out/accuracy": 1.0,
        "eval/held_out/low": found.low,
        "eval/held_out/high": 1.0,
        "eval/held_out/num": 4,
        "eval/held_out/errors": 0,
        "eval/held_out/mean_length": 3.0,
        "eval/held_out/truncated": 0.0,
    }


def test_records_hold_the_rollouts_as_plain_data():
    prompt = replace(PROMPTS[0], feedback="Good.")
    found, _ = run({"a": ["yes"]}, prompts=[prompt])
    (record,) = json.loads(json.dumps(found.records))
    scores = record.pop("scores")
    assert record == {
        "prompt_id": "a",
        "prompt": "a?",
        "feedback": "Good.",
        "text": "yes",
        "ids": [121, 101, 115],
        "truncated": False,
        "correct": True,
    }
    assert scores["exact"] == {"value": 1.0, "feedback": "seen", "evidence": {}, "error": None}
    assert scores["length"]["value"] == 3.0


def test_a_prompts_seed_depends_on_neither_batch_nor_neighbours():
    answers = {id: ["yes"] for id in "abcd"}
    _, whole = run(answers)
    _, cut = run(answers, batch=3)
    _, alone = run(answers, prompts=PROMPTS[2:3])
    _, other = run(answers, seed=4)
    (ids, seeds, num_samples, sampling), *none = whole.calls
    assert none == [] and ids == tuple("abcd") and (num_samples, sampling) == (1, SAMPLING)
    assert [call[0] for call in cut.calls] == [("a", "b", "c"), ("d",)]
    assert seeds == cut.calls[0][1] + cut.calls[1][1] and seeds[2:3] == alone.calls[0][1]
    assert len(set(seeds)) == 4 and not set(seeds) & set(other.calls[0][1])


def test_nothing_to_ask_and_nobody_to_judge_are_refused():
    with pytest.raises(DataError, match="no prompts"):
        run({}, prompts=[])
    with pytest.raises(RecipeError, match="no scorers"):
        evaluate(Parrot({}), PROMPTS, [], SAMPLING, num_samples=1, seed=0, decode=decode)


@pytest.mark.parametrize("num_samples", [1, 4, 6])
def test_pass_at_k_equals_enumeration(num_samples):
    for correct in range(num_samples + 1):
        outcomes = [i < correct for i in range(num_samples)]
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in itertools.combinations(outcomes, k)]
            assert pass_at_k(num_samples, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_refuses_impossible_counts():
    for wrong in [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]:
        with pytest.raises(ValueError, match="expected both within"):
            pass_at_k(*wrong)


ROWS = {
    "gsm8k": {"question": "1 {x} + 1?", "answer": "It is 2.\n#### 2"},
    "math500": {"problem": "1 {x} + 1?", "solution": "s", "answer": "2", "subject": "Algebra", "level": 1},
    "aime24": {"id": 1, "problem": "1 {x} + 1?", "solution": "s", "answer": "2", "url": "u", "year": "2024"},
    "aime25": {"problem": "1 {x} + 1?", "answer": "2", "id": "0"},
}


@pytest.mark.parametrize("name", CATALOG)
def test_benchmarks_turn_published_rows_into_prompts_that_their_scorers_judge(name):
    benchmark = catalog.get("benchmarks", name)()
    prompt = to_prompt(ROWS[name], Data(**benchmark.data), 1)
    assert prompt.question() == ("1 {x} + 1?\nPlease reason step by step, and put your final answer within \\boxed{}.")
    scorer = make_scorer(benchmark.scorers[0])
    assert scorer.function(prompt, Rollout((1,), r"So \boxed{2}.")).value == 1.0
    assert (
        benchmark.protocol == "llmrl/boxed@1" and benchmark.num_samples >= 1 and benchmark.sampling.max_tokens >= 1024
    )
