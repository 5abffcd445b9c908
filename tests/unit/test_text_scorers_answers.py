"""Answers as strings, choices, numbers and JSON: what is read, what equals what, and what does not fool them."""

import json
import time

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.choice_answer import choice_answer
from reward_models.exact_answer import exact_answer
from reward_models.json_answer import json_answer
from reward_models.json_schema import JsonError, canonical, parse, problem
from reward_models.numeric_answer import numeric_answer


def ask(reference=None, **columns):
    return Prompt("p", text="?", reference=reference, columns=columns)


def say(text):
    return Rollout(ids=(), text=text)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("<answer> the  Eiffel Tower! </answer>", "Eiffel tower"),
        ("\\boxed{Paris}", ["London", "Paris"]),
        ("The answer is Paris.", "paris"),
        ("#### 42", 42),
        ("<answer>The</answer>", "the"),  # nothing but an article: compared with case alone
        ("<answer>!</answer>", "!"),
        ("<answer>cafe\u0301</answer>", "café"),
        ("Straße is not it. #### STRASSE", "straße"),
    ],
)
def test_exact_answers(text, reference):
    assert exact_answer(ask(reference), say(text)).value == 1.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Paris", "Paris"),  # no mark
        ("<answer>Paris or London</answer>", "Paris"),
        ("<answer>Paris</answer> <answer>London</answer>", "Paris"),
        ("<answer>London Paris</answer>", ["London", "Paris"]),
        ("<answer>Раris</answer>", "Paris"),  # Cyrillic
        ("<answer></answer>", "The"),
        ("<answer>a an the</answer>", "The"),
        ("<answer>x²</answer>", "x2"),
        ("<answer>" + "Paris" * 10_000 + "</answer>", "Paris"),
    ],
)
def test_answers_that_are_not_exact(text, reference):
    assert exact_answer(ask(reference), say(text)).value == 0.0


def test_what_counts_is_an_option_and_is_recorded():
    score = exact_answer(ask("The Cat."), say("<answer>the cat</answer>"))
    assert score.value == 1.0 and score.evidence["ignored"] == ["case", "punctuation", "articles"]
    strict = {"ignore_case": False, "ignore_punctuation": False, "ignore_articles": False}
    for option, text in [("ignore_case", "The cat."), ("ignore_punctuation", "The Cat"), ("ignore_articles", "Cat.")]:
        rollout = say(f"<answer>{text}</answer>")
        assert exact_answer(ask("The Cat."), rollout).value == 1.0
        assert exact_answer(ask("The Cat."), rollout, **{option: False}).value == 0.0
    assert exact_answer(ask("The Cat."), say("<answer>The  Cat.</answer>"), **strict).value == 1.0
    wrong = exact_answer(ask("dog"), say("<answer>cat</answer>"))
    assert wrong.feedback == "The answer cat is wrong." and wrong.evidence["expected"] == ["dog"]


def test_other_places_to_read_an_exact_answer():
    text = say("<think>Rome?</think>Let me see.\nParis\n")
    assert exact_answer(ask("Paris"), text, read="last_line").value == 1.0
    assert exact_answer(ask("Paris"), text, read="whole").value == 0.0
    assert exact_answer(ask("Paris"), say("<think>Rome?</think> Paris "), read="whole").value == 1.0
    assert exact_answer(ask("Paris"), say("<think>Paris</think>"), read="whole").value == 0.0


@pytest.mark.parametrize(
    "reference", [None, "", " ", [], ["a", ""], True, {"a": 1}, [["a"]], float("nan"), [float("inf")]]
)
def test_exact_answer_needs_a_usable_reference(reference):
    with pytest.raises(ValueError, match="reference is"):
        exact_answer(ask(reference), say("<answer>a</answer>"))


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (B).",
        "The correct option is \\boxed{\\text{B}}.",
        "<answer>B</answer>",
        "Answer: **B**",
        "The answer to the question is B because A is wrong.",
        "The answer is B, not A.",
        "I first thought the answer is A.\n\nBut no: the answer is B.",
        "B",
        "B) Paris",
        "Let me see.\n\n(B)",
        "<think>The answer is A. The answer is C.</think>the answer is b",
        "A. Rome\nB. Paris\nC. Bonn\n\nAnswer: B. Paris",
    ],
)
def test_choices(text):
    score = choice_answer(ask("B"), say(text))
    assert score.value == 1.0 and score.evidence["read"] == ["B"]
    assert choice_answer(ask("A"), say(text)).value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A or B.",
        "The answer is both A and B.",
        "Answer: A, B",
        "Answer: (A)(B)",
        "\\boxed{A/B}",
        "\\boxed{A} and \\boxed{B}",
        "The answer is A. The answer is B.",
        "A\nB\nC\nD",
        "A. Rome\nB. Paris",
        "The answer is A dog.",
        "Answer: I don't know",
        "В",  # Cyrillic
        "The answer is \u0392.",  # Greek
        "Beware",
        "",
    ],
)
def test_no_choice_and_several_choices_are_wrong(text):
    assert [choice_answer(ask(letter), say(text)).value for letter in "AB"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("reference", "letter"), [("B", "B"), ("(b)", "B"), ("b.", "B"), (1, "B"), (0, "A"), ("D", "D")]
)
def test_references_of_choices(reference, letter):
    assert choice_answer(ask(reference), say(f"Answer: {letter}"), num_choices=4).value == 1.0


@pytest.mark.parametrize("reference", ["E", 4, -1, True, None, "1", "AB", ""])
def test_choice_answer_needs_a_letter_for_reference(reference):
    with pytest.raises(ValueError, match="expected a letter of A to D, or its index from 0"):
        choice_answer(ask(reference), say("A"), num_choices=4)


def test_feedback_on_choices_keeps_the_reference_to_itself():
    assert choice_answer(ask("B"), say("Answer: A")).feedback == "The final choice A is wrong."
    assert choice_answer(ask("B"), say("A or so")).feedback == "There is no final choice in the response."
    assert choice_answer(ask("C"), say("Answer: A or B")).feedback == "There are several final choices: A, B."


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("\\boxed{1,234.50}", 1234.5),
        ("so 3 + 4 = 7", 7),
        ("The answer is -3/4.", -0.75),
        ("\\boxed{\\dfrac{3}{4}}", "0.75"),
        ("#### 6.02e23", "6.02 \\times 10^{23}"),
        ("Answer: 6.02 × 10^23", 6.02e23),
        ("The answer is $1.5 million dollars.", 1_500_000),
        ("\\boxed{1{,}234\\text{ cm}^2}", 1234),
        ("\\boxed{x = −5}", -5),
        ("\\boxed{- 5}", "-5"),
        ("The answer is **18** eggs.", "She sold 9 * 2.\n#### 18"),
        ("\\boxed{5\\text{ cm}^2}", "5 cm²"),
        ("\\boxed{10}", "10 cm"),
        ("50%", "50%"),
        ("50%", 50),
        ("<think>8</think> so 7", 7),
    ],
)
def test_numbers(text, reference):
    assert numeric_answer(ask(reference), say(text), last_number=True).value == 1.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("\\boxed{10 m}", "10 cm"),
        ("\\boxed{10 cm}", "10 cm^2"),
        ("\\boxed{4 or 5}", 4),
        ("\\boxed{4, 5}", 5),
        ("\\boxed{1,2}", 12),
        ("\\boxed{5x}", 5),
        ("\\boxed{5 x}", 5),
        ("\\boxed{\\sqrt{5}}", 5),
        ("\\boxed{2\\pi}", 2),
        ("\\boxed{< 5}", 5),
        ("\\boxed{5!}", 5),
        ("\\boxed{-(5)}", 5),
        ("\\boxed{x - 5}", -5),
        ("\\boxed{10:30}", 10),
        ("\\boxed{2^5}", 5),
        ("\\boxed{٣}", 3),
        ("\\boxed{5²}", 5),
        ("\\boxed{1/0}", 0),
        ("\\boxed{nan}", 0),
        ("\\boxed{1e9999}", 1),
        ("\\boxed{" + "9" * 500 + "}", 9),
        ("\\boxed{5 and a half}", 5),
        ("7, no, 8", 7),
        ("\\boxed{5} or not, the answer is 5x", 6),
        ("seven", 7),
    ],
)
def test_what_is_not_that_number(text, reference):
    assert numeric_answer(ask(reference), say(text), last_number=True).value == 0.0


def test_tolerances_are_exact_and_the_larger_one_counts():
    def value(text, **options):
        return numeric_answer(ask(100), say(f"\\boxed{{{text}}}"), **options).value

    assert [value(text, absolute=0.1) for text in ("100.1", "99.9", "100.1000001")] == [1, 1, 0]
    assert [value(text, relative=0.01) for text in ("101", "99", "101.01")] == [1, 1, 0]
    assert value("102", absolute=0.5, relative=0.02) == 1.0
    assert value("100.5") == 0.0
    assert numeric_answer(ask(0), say("#### 0.001"), relative=0.5).value == 0.0
    assert numeric_answer(ask("0.3"), say("#### 0.30000000000000004")).value == 0.0
    with pytest.raises(ValueError, match="expected finite numbers of at least 0"):
        value("1", absolute=-1.0)


def test_percent_and_marks_are_options():
    assert numeric_answer(ask(0.5), say("#### 50%")).value == 0.0
    assert numeric_answer(ask(0.5), say("#### 50\\%"), percent_as_fraction=True).value == 1.0
    assert numeric_answer(ask("50%"), say("#### 0.5"), percent_as_fraction=True).value == 1.0
    assert numeric_answer(ask(7), say("it is 7")).value == 0.0
    assert numeric_answer(ask(7), say("it is 7"), last_number=True).value == 1.0
    assert numeric_answer(ask(7), say("it is 8"), last_number=True).feedback == "The answer 8 is wrong."


@pytest.mark.parametrize("reference", [None, "seven", "4 or 5", float("nan"), float("inf"), True, [7], ""])
def test_numeric_answer_needs_a_number_for_reference(reference):
    with pytest.raises(ValueError, match="expected a finite number"):
        numeric_answer(ask(reference), say("7"))


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADA = '{"name": "Ada", "age": 36}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (ADA, 1.0),
        (f"<think>hm</think>Here it is:\n```json\n{ADA}\n```\nDone.", 1.0),
        (f"```\n{ADA}\n```", 1.0),
        ('{"name": "Ada", "age": 36.0}', 1.0),
        ('{"name": "Ada", "age": "36"}', 0.0),
        ('{"name": "Ada"}', 0.0),
        ('{"name": "", "age": 1}', 0.0),
        ('{"name": "Ada", "age": true}', 0.0),
        ('{"name": "Ada", "age": 36, "x": 1}', 0.0),
        ('{"name": "Ada", "age": 35, "age": 36}', 0.0),
        (f"```json\n{ADA}\n```\nor\n```json\n{ADA}\n```", 0.0),
        (f"```json\n{ADA}", 0.0),
        (f"Here it is: {ADA}", 0.0),
        (f"{ADA} {ADA}", 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ("{'name': 'Ada', 'age': 36}", 0.0),
        ("", 0.0),
    ],
)
def test_json_answers_hold_their_schema(text, value):
    for prompt, options in [
        (ask(), {"schema": PERSON}),
        (ask(schema=PERSON), {}),
        (ask(schema=json.dumps(PERSON)), {}),
    ]:
        assert json_answer(prompt, say(text), **options).value == value


def test_json_feedback_says_where_and_which_keyword():
    schema = {"type": "object", "properties": {"people": {"type": "array", "items": PERSON}}}
    score = json_answer(ask(), say('{"people": [' + ADA + ', {"name": "Bob", "age": -1}]}'), schema=schema)
    assert score.feedback == "The JSON does not hold the schema at $.people[1].age: minimum."
    assert score.evidence == {"schema": True, "compared": False, "valid": False, "problem": "$.people[1].age: minimum"}
    broken = json_answer(ask(), say('{"a": }'))
    assert broken.feedback == "The answer is no valid JSON: Expecting value at line 1, column 7."


def test_json_without_a_schema_and_with_a_reference():
    assert [json_answer(ask(), say(text)).value for text in ("[]", "{}", "7", '"x"', "null")] == [1, 1, 0, 0, 0]
    assert json_answer(ask(), say("```\n{}\n```"), whole=True).value == 0.0
    same = {"b": [1, 2.0], "a": None}
    for reference in (same, json.dumps(same)):
        assert json_answer(ask(reference), say('{"a": null, "b": [1.0, 2]}'), compare=True).value == 1.0
        wrong = json_answer(ask(reference), say('{"a": null, "b": [true, 2]}'), compare=True)
        assert wrong.value == 0.0 and wrong.feedback == "The JSON is valid, but its content is wrong."
    with pytest.raises(ValueError, match="no reference to compare with"):
        json_answer(ask(), say("{}"), compare=True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 33 + "]" * 33,
        "[1e999]",
        "[" + "9" * 5000 + "]",
        "[-Infinity]",
        "[1] // two",
        '{"a": 1,}',
        "[" * 10**5,
        "\ufeff{}",
    ],
)
def test_json_that_is_refused(text):
    with pytest.raises(JsonError):
        parse(text)
    assert json_answer(ask(), say(text)).value == 0.0


SCHEMAS = [
    {"type": ["string", "null"]},
    {"enum": [1, "a", [1], {"a": 1}, None, True]},
    {"const": {"a": [1, 2]}},
    {"const": 1},
    {"type": "number", "multipleOf": 0.5, "exclusiveMinimum": 0, "maximum": 3},
    {"type": "integer", "minimum": -2, "exclusiveMaximum": 5},
    {"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^a"},
    {"type": "array", "minItems": 1, "maxItems": 3, "uniqueItems": True, "items": {"type": "integer"}},
    {"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    {"contains": {"type": "integer"}, "minContains": 2, "maxContains": 3},
    {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
    {"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"propertyNames": {"maxLength": 1}, "minProperties": 1, "maxProperties": 2},
    {"dependentRequired": {"a": ["b"]}},
    {"anyOf": [{"type": "integer"}, {"minLength": 2}]},
    {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "object"}]},
    {"allOf": [{"type": "object"}, {"required": ["a"]}]},
    {"not": {"type": ["object", "array"]}},
    {"if": {"type": "string"}, "then": {"minLength": 3}, "else": {"type": "array"}},
    {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}},
    },
    True,
    False,
    {"title": "anything", "description": "x", "format": "email"},
]
VALUES = [
    None, True, False, 0, 1, 1.0, -1, 0.3, 2.5, 4, 10**20, "", "a", "ab", "abc", "abcd", [], [1], [1, 1], [1, 1.0],
    [1, "a"], [1, "a", 2], [1, 2, 3, 4], [True, 1], [[1], [2, [3]]], [["a"]], {}, {"a": 1}, {"a": "1"}, {"a": 1, "b": 2},
    {"a": [1, 2]}, {"x1": 1, "y": "s"}, {"x1": "s"}, {"ab": 1}, {"a": 1, "b": 2, "c": 3},
]  # fmt: skip


def test_verdicts_equal_those_of_jsonschema():
    jsonschema = pytest.importorskip("jsonschema")
    for schema in SCHEMAS:
        theirs = jsonschema.Draft202012Validator(schema)
        differing = [v for v in VALUES if theirs.is_valid(v) != (problem(v, schema) is None)]
        assert not differing, schema
    assert problem(0.3, {"multipleOf": 0.1}) is None  # in exact arithmetic; jsonschema divides floats and says no


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "https://example.com/schema.json"}, "expected one into the schema"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"type": "strin"}, "type 'strin' is unknown"),
        ({"minimun": 3}, "keyword 'minimun' is not supported"),
        ({"items": [{"type": "string"}]}, "is no schema"),
        ({"items": {"pattern": "("}}, "does not work"),
        ({"items": {"minLength": "3"}}, "does not work"),
        ("[", "Expecting value"),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_and_never_a_zero(schema, reason):
    with pytest.raises(ValueError, match=reason):
        json_answer(ask(schema=schema), say('["x"]'))


def test_references_do_not_multiply_the_work():
    branch = {"type": "array", "items": {"$ref": "#"}}
    schema = {"anyOf": [{"allOf": [branch, branch, False]}, {"allOf": [branch, branch]}, {"type": "integer"}]}
    value = 1
    for _ in range(30):
        value = [value]
    start = time.thread_time()
    assert problem(value, schema) is None
    assert time.thread_time() - start < 0.5


def test_unique_items_takes_linear_time():
    items = parse("[" + ",".join(f'{{"a":{n}}}' for n in range(15_000)) + "]")
    start = time.thread_time()
    assert problem(items, {"uniqueItems": True}) is None
    assert time.thread_time() - start < 1.5


def test_equal_json_values_have_one_form():
    assert canonical({"a": 1.0, "b": [True]}) == canonical(parse('{"b": [true], "a": 1}'))
    assert canonical(True) != canonical(1) and canonical("1") != canonical(1)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10**6,
        '{"a":' * 200_000,
        "[" * 16_000 + "]" * 16_000,
        '"' * 10**6,
        '"\\' * 99_000,
        "```" * 333_000,
        "```json\n" * 125_000,
        "`" * 10**6,
        "\n" * 10**6,
        "A " * 500_000,
        "A\n\n" * 333_000,
        "answer is " * 100_000,
        "answer" + " is" * 333_000,
        "answer " * 140_000,
        "option: (" * 110_000,
        "(" * 10**6,
        "9" * 10**6,
        "1," * 500_000,
        "\\boxed{" + "9," * 450 + "}",
        "\\boxed{" + "\\text{" * 150 + "}",
        "1e" * 500_000,
        "- " * 500_000,
        "<answer>" * 125_000,
        "\ud800\x00" * 500_000,
        "\u0301" * 10**6,
        " " * 10**6,
        "a" * 10**6,
    ],
    ids=lambda text: repr(text[:10]),
)
def test_a_megabyte_of_hostile_text_takes_linear_time(text):
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    for scorer, prompt, options in [
        (exact_answer, ask("a"), {}),
        (exact_answer, ask("a"), {"read": "whole"}),
        (choice_answer, ask("A"), {}),
        (numeric_answer, ask(1), {"last_number": True}),
        (json_answer, ask(), {"schema": schema}),
    ]:
        start = time.thread_time()
        assert scorer(prompt, say(text), **options).value in (0.0, 1.0)
        assert time.thread_time() - start < 1.0, scorer.__name__
