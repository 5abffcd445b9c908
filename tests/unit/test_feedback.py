"""Feedback-conditioned training: which feedback a prompt carries, and what relabelling converges to."""

import json

import pytest
import torch

from llmrl.conditions.feedback import Feedback
from llmrl.errors import RecipeError
from llmrl.selections.contrast import one_right_one_wrong
from llmrl.types import Group, Prompt, Rollout, Score

REFERENCE = (0.2, 0.5, 0.3)  # p(answer) of the starting policy
FEEDBACK = ((0.9, 0.1), (0.2, 0.8), (0.1, 0.9))  # p(feedback | answer)


def ask(id, feedback=None):
    return Prompt(id, text=f"{id}?", ids=(1, 2), feedback=feedback)


def group(prompt, *scores):
    rollouts = tuple(Rollout((i,), f"answer {i}") for i in range(len(scores)))
    return Group(prompt, rollouts, tuple(s if isinstance(s, dict) else {"judge": s} for s in scores))


def good(text, value=1.0, **evidence):
    return Score(value, feedback=text, evidence=evidence)


def round_of(condition, policy):
    """{feedback: p(answer | feedback)} that likelihood training converges to, by enumeration.

    `policy` maps the sampling condition to p(answer); every (answer, feedback) is one rollout weighted by its chance.
    """
    sampling_prompt = ask("p", condition.positive[0] if condition.positive else None)
    chances, scores = [], []
    for answer, chance in enumerate(policy):
        for c, share in enumerate(FEEDBACK[answer]):
            chances.append((answer, chance * share))
            scores.append(good(f"c{c}"))
    (training,), _ = condition.apply(condition.init(), [group(sampling_prompt, *scores)])
    joint = {}
    for (answer, chance), prompt in zip(chances, training, strict=True):
        joint.setdefault(prompt.feedback, [0.0, 0.0, 0.0])[answer] += chance
    return {c: [x / sum(row) for x in row] for c, row in joint.items()}


def test_offline_training_fits_the_posterior_of_the_answer_given_its_feedback():
    fitted = round_of(Feedback(), REFERENCE)
    assert fitted["c0"] == pytest.approx([0.580645, 0.322581, 0.0967742], abs=1e-6)
    assert fitted["c1"] == pytest.approx([0.0289855, 0.579710, 0.391304], abs=1e-6)


def test_one_bootstrap_round_under_positive_feedback():
    asked_for = Feedback(positive=["c0"])
    fitted = round_of(asked_for, round_of(Feedback(), REFERENCE)["c0"])
    assert fitted["c0"] == pytest.approx([0.875676, 0.108108, 0.0162162], abs=1e-6)
    assert fitted["c1"] == pytest.approx([0.144000, 0.640000, 0.216000], abs=1e-6)


def obtained(policy):
    """Chance that an answer of this policy earns feedback c0."""
    return sum(p * row[0] for p, row in zip(policy, FEEDBACK, strict=True))


def test_bootstrapping_earns_the_feedback_that_it_asks_for_more_and_more_often():
    policy, rounds = round_of(Feedback(), REFERENCE)["c0"], []
    for _ in range(6):
        rounds.append(obtained(policy))
        policy = round_of(Feedback(positive=["c0"]), policy)["c0"]
    assert rounds == pytest.approx([0.596774, 0.811351, 0.879747, 0.895577, 0.899033, 0.899787], abs=1e-6)


def test_without_relabelling_it_is_self_imitation_and_learns_nothing():
    start = round_of(Feedback(), REFERENCE)["c0"]
    fitted = round_of(Feedback(positive=["c0"], relabel=False), start)
    assert list(fitted) == ["c0"] and fitted["c0"] == pytest.approx(start)


def test_rollouts_are_trained_under_the_feedback_they_earned_and_not_what_they_were_sampled_under():
    training, _ = Feedback().apply({"pool": []}, [group(ask("a", "asked"), good("earned"), good("other", 0.0))])
    assert [p.feedback for p in training[0]] == ["earned", "other"]
    assert all(p.ids == () and p.text == "a?" for p in training[0])


def test_the_first_scorer_that_speaks_gives_the_feedback_and_silence_drops_the_rollout():
    both = {"format": Score(1.0), "judge": good("first"), "later": good("second")}
    training, _ = Feedback().apply({"pool": []}, [group(ask("a"), both, Score(1.0), good(" "))])
    assert training[0][0].feedback == "first" and training[0][1:] == [None, None]


def test_without_relabelling_the_same_rollouts_are_kept_under_the_sampling_prompt():
    prompt = ask("a", "asked")
    training, _ = Feedback(relabel=False).apply({"pool": []}, [group(prompt, good("earned"), Score(1.0))])
    assert training == [[prompt, None]]


def test_sampling_draws_one_positive_feedback_a_prompt_by_seed_and_prompt():
    condition, state = Feedback(), {"pool": ["good", "right", "clear"]}
    prompts = [ask(str(i)) for i in range(60)]
    drawn = [p.feedback for p in condition.refine(state, prompts, 0)]
    assert set(drawn) == {"good", "right", "clear"}
    assert drawn[30:] == [p.feedback for p in condition.refine(state, prompts[30:], 0)]
    assert drawn != [p.feedback for p in condition.refine(state, prompts, 1)]
    assert all(p.ids == () for p in condition.refine(state, prompts, 0))


def test_sampling_is_unconditioned_without_a_pool_and_under_nothing():
    prompts = [ask("a"), ask("b", "stored")]
    for condition, state in [(Feedback(), {"pool": []}), (Feedback(sample_under="nothing"), {"pool": ["good"]})]:
        plain, stripped = condition.refine(state, prompts, 0)
        assert plain is prompts[0]
        assert stripped.feedback is None and stripped.ids == ()


def test_the_pool_gains_what_scores_high_is_right_and_does_not_speak_of_length():
    scores = [
        good("Right."),
        good("Best.", 0.9, correct=True),
        good("Fair.", 0.89),
        good("Lucky.", 1.0, correct=False),
        Score(None, feedback="Unscored."),
        good("Right and concise."),
        good("Right."),
    ]
    state = {"pool": ["Old."]}
    _, after = Feedback().apply(state, [group(ask("a"), *scores)])
    assert after == {"pool": ["Old.", "Best.", "Right."]}
    assert state == {"pool": ["Old."]}
    assert json.loads(json.dumps(after)) == after


@pytest.mark.parametrize(
    "text",
    [
        "Concise!",
        "a succinct one",
        "rather BRIEF",
        "short",
        "Shorter",
        "long",
        "verbose",
        "of good length",
        "wordiness",
    ],
)
def test_words_of_length_stay_out_of_the_pool(text):
    assert Feedback().apply({"pool": []}, [group(ask("a"), good(text))])[1] == {"pool": []}
    allowed = Feedback(drop_length_words=False).apply({"pool": []}, [group(ask("a"), good(text))])[1]
    assert allowed == {"pool": [text]}


@pytest.mark.parametrize("text", ["belongs here", "no shortcomings", "along the way", "briefcase"])
def test_words_that_only_look_like_it_come_in(text):
    assert Feedback().apply({"pool": []}, [group(ask("a"), good(text))])[1] == {"pool": [text]}


def test_the_pool_is_capped_and_loses_the_oldest():
    groups = [group(ask("a"), good("x"), good("b"), good("y"))]
    _, state = Feedback(pool_size=3).apply({"pool": ["a", "b", "c"]}, groups)
    assert state == {"pool": ["x", "b", "y"]}


def test_a_fixed_pool_stays_as_it_is():
    condition = Feedback(positive=["Good."])
    state = condition.init()
    assert condition.refine(state, [ask("a")], 0)[0].feedback == "Good."
    assert condition.apply(state, [group(ask("a"), good("New."))])[1] == {"pool": ["Good."]}


def test_a_fixed_pool_that_speaks_of_length_is_refused():
    with pytest.raises(RecipeError, match="'Short and right.', which speaks of length.*drop_length_words: false"):
        Feedback(positive=["Right.", "Short and right."])
    assert Feedback(positive=["Short."], drop_length_words=False).init() == {"pool": ["Short."]}


def test_contrast_keeps_the_first_right_and_the_first_wrong_of_every_group():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.2, 0.9, 0.5, 1.0, 0.0])
    groups = torch.tensor([7, 3, 7, 7, 3, 7, 3, 5])  # 7: wrong right wrong right; 3: all right; 5: all wrong
    selected = one_right_one_wrong(rewards, groups)
    assert selected.keep.tolist() == [True, False, True, False, False, False, False, False]
    assert selected.want_more == 0


def test_contrast_goes_by_id_and_threshold():
    rewards, groups = torch.tensor([0.7, 0.9, 0.7]), torch.tensor([1, 1, 2])
    assert one_right_one_wrong(rewards, groups, threshold=0.8).keep.tolist() == [True, True, False]
    assert one_right_one_wrong(rewards, groups).keep.tolist() == [False, False, False]
    order = torch.tensor([2, 1, 0])
    assert one_right_one_wrong(rewards[order], groups[order], threshold=0.8).keep.tolist() == [False, True, True]
    assert one_right_one_wrong(rewards[:0], groups[:0]).keep.tolist() == []
