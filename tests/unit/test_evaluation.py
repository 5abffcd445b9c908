"""Intervals, and the evaluation of a policy."""

import json
import math
from dataclasses import replace

import pytest

from llmrl import evaluation
from llmrl.errors import DataError, RecipeError
from llmrl.evaluation import Judged, evaluate, interval, judged, measured
from llmrl.ops.intervals import clustered, mcnemar, mean_interval, paired, wilson
from llmrl.pool import Pool
from llmrl.scoring import from_function
from llmrl.types import Group, Prompt, Rollout, Sampling, Score

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
SCORERS = [from_function(exact), from_function(length)]
SAMPLING = Sampling(max_tokens=8)


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=1) as made:
        yield made


@pytest.fixture
def run(pool):
    def evaluated(answers, prompts=PROMPTS, num_samples=1, **changes):
        engine = Parrot(answers)
        settings = {"num_samples": num_samples, "seed": 3, "decode": decode, "pool": pool} | changes
        return evaluate(engine, prompts, SCORERS, SAMPLING, **settings), engine

    return evaluated


def test_accuracy_is_the_first_scorers_mean_with_wilsons_interval(run):
    found, _ = run({"a": ["yes"], "b": ["no"], "c": ["yes"], "d": ["yes, I think"]})
    assert (found.accuracy, found.low, found.high) == wilson(2, 4)
    assert (found.num, found.errors, found.truncated) == (4, 0, 0.25)
    assert found.mean_length == (3 + 2 + 3 + 8) / 4


def test_errors_and_what_does_not_apply_are_neither_right_nor_wrong(run):
    found, _ = run({"a": ["yes"], "b": ["broken"], "c": ["pass"], "d": ["no"]})
    assert (found.accuracy, found.num, found.errors) == (0.5, 2, 1)
    assert [one["correct"] for one in found.records] == [True, None, None, False]
    assert found.records[1]["scores"]["exact"]["error"] == "RuntimeError: cannot read"


def test_where_nothing_could_be_judged_there_is_no_accuracy(run):
    found, _ = run({id: ["broken"] for id in "abcd"})
    assert (found.accuracy, found.low, found.high, found.num, found.errors) == (None, None, None, 0, 4)
    measured = ("num", "num_prompts", "errors", "tokens", "mean_length", "truncated")
    assert set(found.metrics("x")) == {f"eval/x/{key}" for key in measured}


def test_several_samples_cluster_by_prompt(run):
    found, _ = run({"a": ["yes", "yes"], "b": ["no", "no"], "c": ["yes", "no"], "d": ["yes", "no"]}, num_samples=2)
    # deviations by prompt: 1, -1, 0, 0 -> SE = sqrt(4/3 * 2) / 8 = 0.204124
    assert close((found.accuracy, found.low, found.high), (0.5, 0.5 - Z * 0.2041241452, 0.5 + Z * 0.2041241452))
    assert found.num == 8


def test_metrics_are_flat_and_named_after_the_evaluation(run):
    found, _ = run({id: ["yes"] for id in "abcd"})
    assert found.metrics("held_out") == {
        "eval/held_out/accuracy": 1.0,
        "eval/held_out/low": found.low,
        "eval/held_out/high": 1.0,
        "eval/held_out/num": 4,
        "eval/held_out/num_prompts": 4,
        "eval/held_out/errors": 0,
        "eval/held_out/tokens": 12,
        "eval/held_out/mean_length": 3.0,
        "eval/held_out/truncated": 0.0,
    }


def test_records_hold_the_rollouts_as_plain_data(run):
    prompt = replace(PROMPTS[0], feedback="Good.")
    found, _ = run({"a": ["yes"]}, prompts=[prompt])
    (record,) = json.loads(json.dumps(found.records))
    scores = record.pop("scores")
    assert record == {
        "prompt_id": "a",
        "prompt": "a?",
        "messages": None,
        "reference": "yes",
        "columns": {},
        "feedback": "Good.",
        "text": "yes",
        "ids": [121, 101, 115],
        "truncated": False,
        "correct": True,
    }
    assert scores["exact"] == {"value": 1.0, "feedback": "seen", "evidence": {}, "error": None, "steps": []}
    assert scores["length"]["value"] == 3.0


def test_a_prompts_seed_depends_on_neither_batch_nor_neighbours(run, monkeypatch):
    answers = {id: ["yes"] for id in "abcd"}
    _, whole = run(answers)
    with monkeypatch.context() as few:
        few.setattr(evaluation, "AT_ONCE", 3)
        _, cut = run(answers)
    _, alone = run(answers, prompts=PROMPTS[2:3])
    _, other = run(answers, seed=4)
    (ids, seeds, num_samples, sampling), *none = whole.calls
    assert none == [] and ids == tuple("abcd") and (num_samples, sampling) == (1, SAMPLING)
    assert [call[0] for call in cut.calls] == [("a", "b", "c"), ("d",)]
    assert seeds == cut.calls[0][1] + cut.calls[1][1] and seeds[2:3] == alone.calls[0][1]
    assert len(set(seeds)) == 4 and not set(seeds) & set(other.calls[0][1])


def test_nothing_to_ask_and_nobody_to_judge_are_refused(run):
    with pytest.raises(DataError, match="no prompts"):
        run({}, prompts=[])
    with pytest.raises(RecipeError, match="no scorers"):
        evaluate(Parrot({}), PROMPTS, [], SAMPLING, num_samples=1, seed=0, decode=decode, pool=None)


def scored(texts, values, **evidence):
    """A group whose only scorer gave these values; evidence: a list of values a key."""
    rollouts = tuple(Rollout((1, 2), text) for text in texts)
    facts = [{key: column[i] for key, column in evidence.items()} for i in range(len(texts))]
    return Group(
        Prompt("p", text="?"), rollouts, tuple({"j": Score(v, evidence=e)} for v, e in zip(values, facts, strict=True))
    )


def test_answers_are_told_apart_by_class_or_by_what_was_read():
    by_read = judged(scored("abc", [1.0, 0.0, 0.0], read=["4", None, "5"]), "j")
    assert [(one.answered, one.answer) for one in by_read] == [(True, "4"), (False, None), (True, "5")]
    both = scored("ab", [1.0, 1.0], **{"class": [0, 0], "read": ["1/2", "0.5"]})
    assert [one.answer for one in judged(both, "j")] == [0, 0]
    assert [(one.answered, one.answer) for one in judged(scored("ab", [1.0, 0.0]), "j")] == [(None, None)] * 2


def verdicts(prompt, *answers):
    """Judged answers out of strings: 'r', right; 'a' or 'b', wrong; '-', none; 'x', an error."""
    return [
        Judged(
            prompt,
            None if a == "x" else float(a == "r"),
            "e" if a == "x" else None,
            5,
            a == "-",
            a != "-",
            a.strip("-") or None,
        )
        for a in answers
    ]


def test_several_samples_give_pass_and_majority_with_intervals():
    found = measured([*verdicts("p", *"rraa"), *verdicts("q", *"abbr"), *verdicts("s", *"----")])
    assert found.accuracy == pytest.approx(3 / 12) and (found.num, found.num_prompts, found.tokens) == (12, 3, 60)
    assert found.unanswered == found.truncated == pytest.approx(4 / 12)
    # pass@2: p 1 - C(2,2)/C(4,2) = 5/6; q 1 - C(3,2)/6 = 1/2; s 0.  pass@4: 1, 1, 0 -> Wilson's of 2 in 3
    assert found.pass_at[2].mean == pytest.approx((5 / 6 + 1 / 2) / 3) and found.pass_at[4] == wilson(2, 3)
    # maj@2: p rr 1/6 + tied ra 4/6 · 1/2 = 1/2; q: r with another 3/6, tied -> 1/4.  maj@4: p tied 1/2; q b wins -> 0
    assert found.majority_at[2].mean == pytest.approx((1 / 2 + 1 / 4) / 3)
    assert found.majority_at[4].mean == pytest.approx(1 / 2 / 3)
    half = Z * math.sqrt(sum((v - 4 / 9) ** 2 for v in (5 / 6, 1 / 2, 0)) / 2 / 3)
    assert close(found.pass_at[2], (4 / 9, 0.0, 4 / 9 + half))


def test_samples_that_failed_leave_the_draw_and_prompts_with_too_few_leave_k():
    found = measured([*verdicts("p", *"rxa"), *verdicts("q", *"aaa")])
    assert (found.num, found.errors) == (5, 1)
    assert found.pass_at[2].mean == pytest.approx((1 + 0) / 2) and found.pass_at[3].mean == 0.0  # q alone has three
    assert list(measured(verdicts("p", *"r")).pass_at) == [] and list(measured(verdicts("p", *"r" * 6)).pass_at) == [
        2,
        4,
        6,
    ]


def test_metrics_of_several_samples_carry_k():
    metrics = measured(verdicts("p", *"rraa")).metrics("x")
    assert metrics["eval/x/pass@2"] == pytest.approx(5 / 6) and metrics["eval/x/maj@4"] == 0.5


def test_paired_interval_and_mcnemar_by_hand():
    # differences 1, 0, 0, 1: mean 0.5, s² = 1/3, SE = sqrt(1/12)
    assert close(paired([0, 1, 0, 0], [1, 1, 0, 1]), (0.5, 0.5 - Z * math.sqrt(1 / 12), 0.5 + Z * math.sqrt(1 / 12)))
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9) and mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 1000) == 2.0**-999 and mcnemar(0, 5000) == 0.0
    assert mcnemar(2450, 2550) == pytest.approx(0.1615, abs=1e-4)  # 100 / sqrt(5000) standard errors
