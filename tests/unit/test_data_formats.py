import hashlib

import pytest

from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.errors import DataError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def convert(row, **options):
    return to_prompt(row, Data(source="x", **options), 3)


def refused(row, **options):
    with pytest.raises(DataError) as caught:
        convert(row, **options)
    return str(caught.value)


def test_prompt_as_text_stays_raw():
    prompt = convert({"prompt": "2+2=", "level": 1})
    assert (prompt.text, prompt.messages, prompt.completions) == ("2+2=", None, ())
    assert prompt.columns == {"level": 1} and prompt.reference is None


def test_prompt_as_messages():
    prompt = convert({"prompt": [user("2+2") | {"name": None}], "reference": "4"})
    assert prompt.messages == (user("2+2"),) and prompt.text is None
    assert prompt.reference == "4" and prompt.columns == {"reference": "4"}
    assert "ends with an assistant turn" in refused({"prompt": [user("a"), assistant("b")]})


def test_the_id_is_the_hash_of_the_rows_canonical_json():
    expected = hashlib.sha256(b'{"n":1,"prompt":"a"}').hexdigest()[:16]
    assert convert({"prompt": "a", "n": 1}).id == convert({"n": 1, "prompt": "a"}).id == expected
    assert convert({"prompt": "a", "n": 2}).id != expected


def test_prompt_and_completion():
    (raw,) = convert({"prompt": "2+2=", "completion": "4"}).completions
    assert (raw.text, raw.messages, raw.label) == ("4", None, None)
    for completion in ("4", [assistant("4")]):
        (turn,) = convert({"prompt": [user("2+2")], "completion": completion}).completions
        assert (turn.text, turn.messages) == ("4", (assistant("4"),))
    assert "expected text, as the prompt is raw text" in refused({"prompt": "2+2=", "completion": [assistant("4")]})
    assert "expected one assistant turn" in refused({"prompt": [user("a")], "completion": [user("b")]})


def test_messages_end_with_the_completion():
    prompt = convert({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]})
    assert prompt.messages == (user("a"), assistant("b"), user("c"))
    assert [c.text for c in prompt.completions] == ["d"]
    assert "row 3: messages has the turns user;" in refused({"messages": [user("a")]})
    assert "not text only" in refused({"messages": [user("a"), {"role": "assistant", "content": None}]})


def test_text_is_a_document_only_when_that_is_certain():
    prompt = convert({"text": "once"})
    assert prompt.text == "" and prompt.completions[0].text == "once"
    row = {"text": "write a function", "code": "def f"}
    assert "no format fits the columns text, code" in refused(row)
    assert convert(row, format="demonstration").completions[0].text == "write a function"
    assert convert(row, columns={"text": "code"}).completions[0].text == "def f"
    assert convert(row, columns={"prompt": "text"}).text == "write a function"
    assert "no format fits" in refused({"prompt": "a", "text": "b"}, format="demonstration")


def test_pairs_with_a_prompt():
    prompt = convert({"prompt": [user("2+2")], "chosen": [assistant("4")], "rejected": "5", "margin": 0.5})
    assert [(c.text, c.label) for c in prompt.completions] == [("4", "chosen"), ("5", "rejected")]
    assert prompt.completions[1].messages == (assistant("5"),) and prompt.columns == {"margin": 0.5}
    raw = convert({"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    assert raw.text == "2+2=" and [c.messages for c in raw.completions] == [None, None]


def test_pairs_with_an_implicit_prompt_in_messages():
    sides = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    for row in (sides, sides | {"prompt": "a"}):  # published pairs often repeat the prompt as text
        prompt = convert(row)
        assert prompt.messages == (user("a"),) and [c.text for c in prompt.completions] == ["b", "c"]
    early = {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]}
    assert "share no first turn" in refused(early)
    assert "chosen is []; expected a list of messages" in refused({"chosen": [], "rejected": []})


def test_pairs_with_an_implicit_prompt_in_text():
    prompt = convert({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (prompt.text, [c.text for c in prompt.completions]) == ("The sky is", [" blue.", " green."])
    nested = convert({"chosen": "yes", "rejected": "yes!"})  # something has to be left for both
    assert (nested.text, [c.text for c in nested.completions]) == ("ye", ["s", "s!"])


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: joke?\n\nAssistant:"


def test_hh_dialogues():
    prompt = convert({"chosen": HH + " No.", "rejected": HH + " Knock\n\nknock. "})
    assert prompt.messages == (user("hi"), assistant("hello"), user("joke?"))
    assert [(c.text, c.label) for c in prompt.completions] == [("No.", "chosen"), ("Knock\n\nknock.", "rejected")]
    as_text = convert({"chosen": HH + " No.", "rejected": HH + " Yes."}, format="pairs")
    assert as_text.text == HH


def test_hh_sides_must_share_their_prompt():
    other = HH.replace("joke", "poem")
    assert "row 3: the turns before the last answer differ" in refused({"chosen": HH + " a", "rejected": other + " b"})
    assert "have to begin with" in refused({"chosen": "a", "rejected": "b"}, format="hh")
    assert "the last has to be the assistant's" in refused({"chosen": HH + " a\n\nHuman: b", "rejected": HH + " b"})


def test_feedback():
    row = {"prompt": [user("a")], "completion": "b", "feedback": "too short", "score": 2}
    prompt = convert(row)
    (completion,) = prompt.completions
    assert (completion.feedback, completion.score, prompt.feedback) == ("too short", 2, None)
    assert prompt.columns == {}
    assert "expected text and a number" in refused(row | {"score": "high"})


def test_columns_are_mapped_and_the_rest_is_kept():
    row = {"question": "2+2", "answer": "4", "level": 1}
    prompt = convert(row, columns={"prompt": "question"})
    assert (prompt.text, prompt.reference, prompt.columns) == ("2+2", "4", {"answer": "4", "level": 1})
    both = convert(row, columns={"prompt": "question", "completion": "answer", "reference": "level"})
    assert (both.completions[0].text, both.reference, both.columns) == ("4", 1, {"level": 1})
    assert convert(row, columns={"prompt": "question", "completion": "answer"}).reference is None


def test_wrong_columns_are_named():
    row = {"question": "2+2", "answer": "4"}
    assert "no column 'questoin'. Did you mean question? Columns: question, answer" in refused(
        row, columns={"prompt": "questoin"}
    )
    assert "promt is no field. Did you mean prompt?" in refused(row, columns={"promt": "question"})


def test_templates_take_values_as_they_are():
    row = {"question": "f{x} {answer}", "answer": "4"}
    prompt = convert(row, user="{question} \\boxed{} {{n}}", system="Be {answer}.")
    assert prompt.messages == ({"role": "system", "content": "Be 4."}, user("f{x} {answer} \\boxed{} {n}"))
    assert prompt.reference == "4" and prompt.columns == {"question": "f{x} {answer}", "answer": "4"}
    assert "column 'quest' is not there. Columns: question, answer" in refused(row, user="{quest}")
    assert "is a list, not text or a number" in refused({"question": ["a"]}, user="{question}")


def test_a_system_turn_needs_a_chat_without_one():
    assert "raw text" in refused({"prompt": "a"}, system="s")
    assert "system turn of its own" in refused({"prompt": [{"role": "system", "content": "t"}, user("a")]}, system="s")


def test_what_is_ambiguous_or_unknown_is_refused():
    both = {"prompt": "a", "messages": [user("a"), assistant("b")]}
    assert "fit the formats prompt and messages. Set data.format" in refused(both)
    assert convert(both, format="prompt").text == "a"
    assert convert(both, format="demonstration").completions[0].text == "b"
    message = refused({"question": "a", "solution": "b"})
    assert "columns question, solution" in message and "{prompt: question}" in message


def test_a_column_without_a_value_does_not_make_a_format():
    prompt = convert({"prompt": "a", "completion": None})
    assert prompt.completions == () and prompt.text == "a"
