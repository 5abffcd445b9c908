"""`llmrl eval` and `llmrl score`: answers on disk, resumed, judged again, compared."""

import importlib
import json
import math
import sys

import pytest
import torch

from llmrl import api, completions, evaluation, results
from llmrl.errors import LlmrlError, RecipeError, ScoringError
from llmrl.evaluation import Judged
from llmrl.policy.tiny import tiny
from llmrl.pool import Pool
from llmrl.rollout.scripted import ScriptedEngine
from llmrl.tracking.jsonl import append_lines, read_lines

SCRIPTED = 'engine={name: scripted, answers: ["It is 2.", "No: 3", "I do not know.", "It is two."]}'


TOY, WORD = "eval_toy:toy", "eval_toy:last_word"  # light to import, as every process of a pool does


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    return tiny(
        folder, hidden=16, layers=1, heads=2, kv_heads=1, feed_forward=32, vocabulary="bytes", max_positions=2048
    )


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"question": f"{i} + {2 - i}?", "answer": "#### 2"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "data.source=rows.jsonl"


def run(model, rows, *more, out="out"):
    words = [rows, SCRIPTED, "num_samples=4", "temperature=1.0", "max_tokens=64", *more]
    return api.evaluate(model, [TOY], words, out=out)


def test_eval_writes_answers_verdicts_and_a_card(model, rows, tmp_path):
    said = run(model, rows)
    folder = tmp_path / "out" / "toy"
    assert "toy, toy/word@1: 4 a prompt, temperature 1, top_p 1" in said and "2 problems of the benchmark" in said
    header, *answers = read_lines(folder / "completions.jsonl")
    assert len(answers) == 20 and [a["sample"] for a in answers[:5]] == [0, 1, 2, 3, 0]
    assert header["llmrl"] == completions.KIND and header["protocol"] == "toy/word@1"
    assert answers[0]["text"] == "It is 2." and answers[0]["reference"] == "2" and answers[0]["ids"]
    card = json.loads((folder / "results.json").read_text())
    numbers = card["numbers"]
    assert (numbers["accuracy"], numbers["num"], numbers["num_prompts"], numbers["unanswered"]) == (0.5, 20, 5, 0.25)
    # two right answers that are equal, one wrong, one none. pass@2: 1 - 1/6. maj@2 over pairs: rr 1, rw 2 · 1/2, rn 2 · 1,
    # wn 0 of 6 -> 4/6. maj@4: 1
    assert numbers["pass_at"]["2"]["mean"] == pytest.approx(5 / 6) and numbers["pass_at"]["4"]["mean"] == 1.0
    assert numbers["majority_at"]["2"]["mean"] == pytest.approx(4 / 6) and numbers["majority_at"]["4"]["mean"] == 1.0
    assert numbers["tokens"] == sum(len(a["ids"]) for a in answers) and numbers["truncated"] == 0
    assert card["setting"]["sampling"] == {"max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert card["rows"]["kept"] == 5 and len(card["rows"]["digest"]) == 64 and len(card["data"]["sha256"]) == 64
    assert (
        card["changed"] == []
        and card["chat_template"]
        and {"torch", "transformers"} <= set(card["setting"]["versions"])
    )
    _, *verdicts = read_lines(folder / "scores.jsonl")
    assert [v["value"] for v in verdicts[:4]] == [1.0, 0.0, 0.0, 1.0]
    assert verdicts[3]["scores"]["last_word"]["evidence"] == {"read": "two"}


def test_a_killed_evaluation_goes_on_to_the_same_files(model, rows, tmp_path, monkeypatch):
    run(model, rows, out="whole")
    generate, asked = ScriptedEngine.generate, []

    def dies(self, prompts, *rest):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return generate(self, prompts, *rest)

    with monkeypatch.context() as killed:
        killed.setattr(evaluation, "AT_ONCE", 4)  # one prompt at a time
        killed.setattr(ScriptedEngine, "generate", dies)
        with pytest.raises(KeyboardInterrupt):
            run(model, rows)
    file = tmp_path / "out/toy/completions.jsonl"
    whole = (tmp_path / "whole/toy/completions.jsonl").read_bytes().splitlines(keepends=True)
    assert file.read_bytes() == b"".join(whole[:9])  # a header and two prompts of four
    file.write_bytes(b"".join(whole[:11]) + whole[11][:20])  # a third prompt cut short, in a line
    asked.clear()
    monkeypatch.setattr(ScriptedEngine, "generate", lambda self, p, *rest: asked.extend(p) or generate(self, p, *rest))
    said = run(model, rows)
    assert len(asked) == 3 and file.read_bytes() == b"".join(whole)
    assert run(model, rows) == said and len(asked) == 3  # nothing is sampled twice


def test_another_setting_is_refused_in_the_same_folder_and_has_its_own_without_one(model, rows, tmp_path):
    run(model, rows)
    with pytest.raises(LlmrlError, match=r"completions.jsonl was begun with another sampling. Give .*--out"):
        run(model, rows, "max_tokens=32")
    with pytest.raises(LlmrlError, match="another seed"):
        run(model, rows, "seed=1")
    run(model, rows, out=None)
    run(model, rows, "seed=1", out=None)
    assert len(list((tmp_path / "evals").glob("*/toy-*/results.json"))) == 2


def test_a_changed_protocol_is_said(model, rows):
    said = run(model, rows, "data.user='What is {question}'", "limit=2")
    assert "toy/word@1 changed in data.user" in said


def test_two_evaluations_do_not_write_one_folder(tmp_path):
    with completions.alone(tmp_path / "a"), pytest.raises(LlmrlError, match="in use by another process"):
        with completions.alone(tmp_path / "a"):
            pass


WRONG = [
    (["engine={max_rows: 3}"], r"engine: \{'max_rows': 3\} has no name"),
    (["seed=abc"], "seed: found 'abc' .a string., expected a whole number"),
    (["limt=3"], "limt is not a key here. Did you mean limit"),
    (["data.colums={a: b}"], "data.colums is not a key here. Did you mean columns"),
    (["num_samples=0"], "num_samples: found 0"),
    (["data=3"], "data: found 3, expected a mapping"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_overrides_are_named(model, words, message):
    with pytest.raises(RecipeError, match=message):
        api.evaluate(model, ["gsm8k"], words)


def test_a_wrong_scorer_is_refused_before_the_model_is_looked_for(rows):
    with pytest.raises(RecipeError, match="scorers.math_answer.protocl is not an option"):
        api.evaluate("nowhere", [TOY], [rows, "scorers=[{name: math_answer, protocl: x}]"])


def test_a_folder_that_is_not_there_is_not_asked_of_a_hub(tmp_path):
    (tmp_path / "sums").mkdir()
    with pytest.raises(LlmrlError, match="has no sum. Did you mean sums?"):
        api.evaluate(str(tmp_path / "sum"), ["gsm8k"])


def test_one_source_for_two_benchmarks_is_refused(model, rows):
    with pytest.raises(RecipeError, match="Say whose it is: gsm8k.data.source=FILE"):
        api.evaluate(model, ["gsm8k", "math500"], [rows])


def test_greedy_answers_are_those_of_transformers(make_policy):
    from llmrl.data.render import render, stop_ids
    from llmrl.pool import Pool
    from llmrl.run import make_engine
    from llmrl.scoring import make_scorers
    from llmrl.types import Prompt, Sampling

    policy = make_policy()
    prompts = [Prompt(str(i), text=f"{i} + 1 =", reference="2") for i in range(3)]
    prompts = [Prompt(p.id, text=p.text, reference="2", ids=tuple(render(p, policy.tokenizer))) for p in prompts]
    engine = make_engine("transformers", policy, (16, 12))
    engine.sync(policy, 0)
    with Pool(workers=1) as pool:
        found = evaluation.evaluate(
            engine,
            prompts,
            make_scorers([WORD]),
            Sampling(12, 0.0),
            num_samples=1,
            seed=0,
            decode=str,
            pool=pool,
        )
    for prompt, record in zip(prompts, found.records, strict=True):
        stops = list(stop_ids(policy.tokenizer))
        with torch.no_grad():
            reference = policy.model.generate(
                torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=0
            )
        assert record["ids"] == reference[0, len(prompt.ids) :].tolist()


def test_stored_answers_are_judged_again(model, rows, tmp_path):
    run(model, rows)
    file = tmp_path / "out/toy/completions.jsonl"
    assert "accuracy 50.0 %" in api.score(file)
    lines = api.score(file, scorers=[WORD, "format_tags"], out="again").splitlines()
    assert lines[2].split()[:3] == [WORD, "50.0", "%"]
    assert lines[3].split()[:3] == ["format_tags", "0.0", "%"] and lines[3].split()[-1] == "10"  # verdicts that differ
    card = json.loads((tmp_path / "again/format_tags/results.json").read_text())
    assert card["protocol"] is None and card["numbers"]["accuracy"] == 0.0 and card["setting"]["seed"] == 0


def test_protocols_differ_on_the_same_answers(tmp_path):
    answers = ("\\boxed{2}", "#### 2", "It is 2")
    rows = [{"question": "1+1?", "solution": one, "answer": "It is. #### 2"} for one in answers]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "data.columns={prompt: question, completion: solution, reference: answer}"
    protocols = ["llmrl/boxed@1", "gsm8k/strict", "gsm8k/flexible"]
    said = api.score(file, scorers=["math_answer"], protocols=protocols, overrides=[columns], out=tmp_path / "o")
    shares = {line.split()[0]: line.split()[1] for line in said.splitlines()[2:5]}
    assert shares == {"llmrl/boxed@1": "66.7", "gsm8k/strict": "33.3", "gsm8k/flexible": "100.0"}
    assert json.loads((tmp_path / "o/gsm8k_strict/results.json").read_text())["protocol"] == "gsm8k/strict"
    with pytest.raises(
        RecipeError, match="math_answer.protocol: no protocol named 'gsm8k/strikt'. Did you mean gsm8k/strict"
    ):
        api.score(file, scorers=["math_answer"], protocols=["gsm8k/strikt"], overrides=[columns])


def test_rows_of_other_toolkits_are_read(tmp_path):
    rows = [{"prompt": "1+1?", "completion": c, "answer": "2", "extra": 1} for c in ("It is 2", "It is 3")]
    rows.append({"prompt": "1+2?", "completion": "3", "answer": "3", "extra": 2})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = list(completions.read_groups(file))
    assert [len(g.rollouts) for g in groups] == [2, 1] and groups[0].prompt.columns == {"answer": "2", "extra": 1}
    file.write_text("".join(json.dumps(row | {"extra": i}) + "\n" for i, row in enumerate(rows)))
    assert [len(g.rollouts) for g in completions.read_groups(file)] == [1, 1, 1]  # each is judged by its own columns
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "accuracy 66.7 %" in (said := api.score(file, scorers=[WORD])) and "pass@2 100.0 %" in said
    chat = [
        {
            "prompt": [{"role": "user", "content": "1+1?"}],
            "completion": [{"role": "assistant", "content": "<answer>2</answer>"}],
            "answer": "2",
        }
    ]
    file.write_text(json.dumps(chat[0]) + "\n")
    assert "accuracy 100.0 %" in api.score(file, scorers=["{name: answer_tag}"])


def test_what_cannot_be_judged_is_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1+1?", "answer": "2"}\n')
    with pytest.raises(LlmrlError, match="does not say who judges it"):
        api.score(file)
    with pytest.raises(LlmrlError, match="row 1: no stored answer among the columns prompt, answer"):
        api.score(file, scorers=[WORD])
    with pytest.raises(LlmrlError, match=r"no file nowhere.jsonl"):
        api.score("nowhere.jsonl", scorers=[WORD])
    with pytest.raises(RecipeError, match="is there twice"):
        api.score(file, scorers=[WORD, WORD])
    with pytest.raises(RecipeError, match="seed: `llmrl score FILE` takes data"):
        api.score(file, scorers=[WORD], overrides=["seed=1"])


def test_nothing_judged_is_an_error_with_the_most_frequent_reason(tmp_path):
    file = tmp_path / "answers.jsonl"
    append_lines(file, [{"prompt": "1+1?", "completion": "2"}, {"prompt": "1+2?", "completion": "3"}])
    with pytest.raises(ScoringError, match=r"nothing could be judged. Most often \(2 times\): ValueError: "):
        api.score(file, scorers=["math_answer"])


def test_hostile_text_survives_the_file_and_the_scorer(tmp_path):
    texts = ["\ud800 \x00 2", "x" * 1_000_000, "\u2028 2 \u2028"]
    prompt = evaluation.Prompt("p", text="\udfff?", reference="2", columns={"a": float("nan")})
    group = evaluation.Group(prompt, tuple(evaluation.Rollout((1,), text) for text in texts))
    file = tmp_path / "answers.jsonl"
    completions.resume(file, {"llmrl": completions.KIND, "setting": {}})
    completions.append_group(file, group)
    (back,) = completions.read_groups(file)
    assert [one.text for one in back.rollouts] == texts and back.prompt.text == "\udfff?"
    assert "accuracy 66.7 %" in api.score(file, scorers=[WORD])


def test_judging_that_was_cut_short_goes_on(model, rows, tmp_path, monkeypatch):
    run(model, rows)
    source, folder = tmp_path / "out/toy/completions.jsonl", tmp_path / "again"
    folder.mkdir()
    judge, seen = results.judge, []

    def counting(groups, scorers, pool):
        for number, group in enumerate(judge(groups, scorers, pool)):
            if number == 2 and not seen.count("killed"):
                seen.append("killed")
                raise KeyboardInterrupt
            seen.append(group.prompt.id)
            yield group

    monkeypatch.setattr(results, "judge", counting)
    with Pool(workers=1) as pool:

        def judged(scorers):
            return results.judge_into(folder, "toy", source, completions.read_groups(source), scorers, pool)

        with pytest.raises(KeyboardInterrupt):
            judged([WORD])
        found = judged([WORD])
        assert len(seen) == 6 and found.numbers.num == 20 and found.numbers.accuracy == 0.5  # five and the kill
        assert judged([WORD]) == found and len(seen) == 6
        assert judged(["format_tags"]).numbers.accuracy == 0 and len(seen) == 11


def test_a_mended_scorer_and_a_service_that_is_back_judge_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file, mine = tmp_path / "rows.jsonl", tmp_path / "mended_scorer.py"
    file.write_text('{"prompt": "a", "completion": "up"}\n{"prompt": "b", "completion": "down"}\n')
    text = "from pathlib import Path\nfrom llmrl.types import Score\n\n\ndef mine(prompt, rollout):\n"
    failing = "    if not Path(rollout.text).exists():\n        raise RuntimeError('away')\n"
    mine.write_text(f"{text}{failing}    return Score(0.0)\n")
    (tmp_path / "up").touch()
    assert "1 errors" in api.score(file, scorers=["mended_scorer:mine"], out="o")
    (tmp_path / "down").touch()
    said = api.score(file, scorers=["mended_scorer:mine"], out="o")
    assert "accuracy 0.0 %" in said and "2 answers to 2 prompts" in said and "0 errors" in said
    kept = read_lines(tmp_path / "o/scores.jsonl")
    assert sorted(row["group"] for row in kept[1:]) == [0, 1]
    mine.write_text(f"{text}    return Score(1.0)\n")
    monkeypatch.delitem(sys.modules, "mended_scorer")
    importlib.invalidate_caches()
    assert "accuracy 100.0 %" in api.score(file, scorers=["mended_scorer:mine"], out="o")


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"prompt_id"', "line 2: not JSON"),
        ('{"foo": 1}', "line 2: no stored"),
        ('{"prompt_id": "b", "text": 5}', "line 2: no"),
    ],
)
def test_a_broken_line_of_our_own_files_is_named(tmp_path, line, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt_id": "a", "prompt": "1+1?", "reference": "2", "text": "2"}}\n{line}\n')
    with pytest.raises(LlmrlError, match=said):
        api.score(file, scorers=[WORD])


def test_a_last_answer_without_line_end_counts_and_a_torn_one_does_not(tmp_path):
    file, answer = tmp_path / "rows.jsonl", '{"prompt_id": "%s", "prompt": "1+1?", "reference": "2", "text": "2"}'
    file.write_text(f"{answer % 'a'}\n\n{answer % 'b'}")
    assert len(list(completions.read_groups(file))) == 2
    with pytest.raises(RecipeError, match="data.limit: .* is read as it stands"):
        api.score(file, scorers=[WORD], overrides=["data.limit=1"])
    file.write_text(f"{answer % 'a'}\n{answer[:20]}")
    assert len(list(completions.read_groups(file))) == 1


def scores(folder, values, scorers=("x",)):
    folder.mkdir(parents=True)
    header = {"llmrl": results.KIND, "name": "toy", "setting": {"scorers": list(scorers)}}
    rows = [vars(Judged(str(p), v, None, 1, False, True, None)) for p, some in enumerate(values) for v in some]
    append_lines(folder / "scores.jsonl", [header, *rows])
    return folder


def test_compare_says_whether_two_results_differ(tmp_path):
    a = scores(tmp_path / "a", [[1.0]] * 40 + [[0.0]] * 60)
    scores(tmp_path / "b" / "deeper", [[1.0]] * 39 + [[0.0]] * 41 + [[1.0]] * 20)
    said = api.compare(a, tmp_path / "b")
    # 1 only in a, 20 only in b: McNemar 2 (1 + 21) / 2^21; differences: mean 0.19, s² = (21 - 100 · 0.19²) / 99
    half = 1.959964 * math.sqrt((21 - 100 * 0.19**2) / 99 / 100)
    assert said == (
        "toy: the second is better. 40.0 % against 59.0 %, difference +19.0 points "
        f"(+{100 * (0.19 - half):.1f} to +{100 * (0.19 + half):.1f}) over 100 problems; the first is ahead on 1, the second "
        "on 20, McNemar p = 2.1e-05"
    )
    same = scores(tmp_path / "c", [[1.0]] * 42 + [[0.0]] * 58)
    assert api.compare(a, same).startswith("toy: not distinguishable. 40.0 % against 42.0 %")


def test_compare_with_several_samples_goes_by_the_interval_and_refuses_what_does_not_compare(tmp_path):
    a = scores(tmp_path / "a", [[0.0, 1.0]] * 30 + [[0.0, 0.0]] * 10)
    b = scores(tmp_path / "b", [[1.0, 1.0]] * 30 + [[0.0, 0.0]] * 10 + [[1.0]])
    said = api.compare(a, b)
    assert said.startswith("toy: the second is better. 37.5 % against 75.0 %") and "McNemar" not in said
    assert said.endswith("1 problems are in one of them only")
    tiny_gain = api.compare(scores(tmp_path / "e", [[0.0, 1.0]] * 2), scores(tmp_path / "f", [[1.0, 1.0]] * 2))
    assert "not distinguishable" in tiny_gain  # two problems without spread are no evidence
    with pytest.raises(LlmrlError, match="judged by different scorers"):
        api.compare(a, scores(tmp_path / "d", [[1.0]], scorers=("y",)))
    with pytest.raises(LlmrlError, match="nothing of both"):
        api.compare(a, tmp_path / "nothing")
    with pytest.raises(LlmrlError, match="holds two results of toy"):
        api.compare(tmp_path, a)
