"""Which assertions become calls, what a call's answer is held against, and what the answers may be made of."""

import ast
import json
import math

import pytest

from reward_models.sandbox.calls import as_calls, defined
from reward_models.sandbox.driver import NotPlain, encode
from reward_models.sandbox.wire import decode


def calls(text, own=()):
    return as_calls(ast.parse(text).body, set(own))


@pytest.mark.parametrize(
    ("text", "expression", "right", "wrong"),
    [
        ("assert f(1, 2) == 3", "f(1, 2)", [3, 3.0], [4, "3", None, [3]]),
        ("assert f(0) == 1", "f(0)", [1, True, 1.0], [0, "1"]),
        ("assert f(x=[1]) != 3", "f(x=[1])", [4, None], [3]),
        ("assert f('a') is True", "f('a')", [True], [1, 1.0, "True"]),
        ("assert f() is None", "f()", [None], [0, False, ""]),
        ("assert f(1)", "f(1)", [1, "x", [0]], [0, "", None, []]),
        ("assert not f(1)", "f(1)", [0, "", None], [1, "x"]),
        ("assert f(1) in (2, 3)", "f(1)", [2, 3.0], [4, "2"]),
        ("assert f(1) < 2", "f(1)", [1, -1.5], [2, 3]),
        ("assert set(f(1)) == {1, 2}", "f(1)", [[2, 1, 1], (1, 2)], [[1], [1, 2, 3]]),
        ("assert sorted(f(1)) == [1, 2]", "f(1)", [[2, 1], {1, 2}], [[1]]),
        ("assert int(f(5, 3)) == 35", "f(5, 3)", [35, 35.9, "35"], [36]),
        ("assert abs(f(1.5) - 0.5) < 1e-6", "f(1.5)", [0.5, 0.5000001], [0.6, 0.500002]),
        ("assert abs(f(2) - 4) <= 1", "f(2)", [5, 3], [5.1]),
        ("assert math.isclose(f(2), 4.0, rel_tol=0.01)", "f(2)", [4.03], [4.1]),
        ("assert f(0.1) == 0.30000000000000004", "f(0.1)", [0.1 + 0.2], [0.3]),
        ("assert f(1) == {'a': (1, [2])}", "f(1)", [{"a": (1, [2])}], [{"a": [1, [2]]}]),
        ("assert sum(10, 15) == 6", "sum(10, 15)", [6], [25]),  # MBPP/126: the function under test is called sum
        ("assert f(g(1), int) == 2, 'words'", "f(g(1), int)", [2], [3]),
    ],
)
def test_assertions_that_are_calls(text, expression, right, wrong):
    (call,) = calls(text)
    assert call.request == ("evaluate", expression)
    assert all(call.holds(value) for value in right)
    assert not any(call.holds(value) for value in wrong)


@pytest.mark.parametrize(
    "text",
    [
        "assert f(1) == g(1)",  # the right side needs code to run
        "assert f(1) == 2.0 / 3.0",
        "assert helper(f(1)) == 2",
        "assert 3 == f(1)",
        "assert 1 < f(1) < 3",
        "assert f(1) is 5",
        "assert f(1).x == 2",
        "assert all(x > 0 for x in f(1))",
        "for x in (1, 2):\n    assert f(x) == x",
        "import random\nassert f(1) == 1",
    ],
)
def test_assertions_that_need_the_test_to_run(text):
    assert calls(text, own={"helper"}) is None


def test_statements_that_say_nothing_are_passed_over_and_a_values_own_failure_is_not_hidden():
    assert calls("assert True, 'x'\n'doc'\npass") == []
    (call,) = calls("assert f(1) < 2")
    with pytest.raises(TypeError):
        call.holds("text")


def test_names_that_test_code_brings_along():
    module = ast.parse("import os.path, math as m\nfrom x import y\ndef f(): pass\nclass C: pass\na, b = 1, 2")
    assert defined(module) == {"os", "m", "y", "f", "C", "a", "b"}


PLAIN = [
    None, True, False, 0, -7, 10**30, -(10**400), 1 << 40_000, 0.1, -0.0, math.inf, -math.inf, 1e300, 1 + 2j, "",
    "é\n\"\\\0", "\ud800",
    b"\x00\xff", [], [1, [2, [3]]], (), (1,), set(), {1, "a"}, frozenset({(1, 2)}), {}, {1: 2, (3, 4): [5], None: {"x": b""}},
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_data_comes_out_as_it_went_in(value):
    nonce, kind, back = decode(f'["n","value",{encode(value)}]'.encode())
    assert (nonce, kind) == ("n", "value") and back == value and type(back) is type(value)


def test_not_a_number_and_subclasses_come_out_as_built_in_types():
    from collections import Counter, OrderedDict, defaultdict, namedtuple
    from enum import IntEnum

    class Liar(int):
        def __eq__(self, other):
            return True

        def __repr__(self):
            return "[]"

        __hash__ = int.__hash__

    def back(value):
        return decode(f'["n","value",{encode(value)}]'.encode())[2]

    assert math.isnan(back(math.nan))
    for value, wanted in [
        (Liar(5), 5),
        (IntEnum("E", "a")(1), 1),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (bytearray(b"x"), b"x"),
    ]:
        assert back(value) == wanted and type(back(value)) is type(wanted)


def test_what_is_not_plain_is_refused():
    for value in (object(), range(3), iter([]), print, int, 1 << 2_000_000, "x" * 5_000_000):
        with pytest.raises(NotPlain):
            encode(value)


@pytest.mark.parametrize("depth", [65, 100_000])
def test_deep_values_are_refused(depth):
    value = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(NotPlain):
        encode(value)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b'["n"]', b'["n","k"]', b'[1,"k",2]', b'["n","k",{"a":1}]', b'["n","k",[]]', b'["n","k",[1]]',
        b'["n","k",["z",1]]', b'["n","k",["i","x"]]', b'["n","k",["i",1]]', b'["n","k",["b","0"]]', b'["n","k",["c",1]]',
        b'["n","k",["d",1]]', b'["n","k",["s",["l"]]]', b'["n","k",["d",["l"],1]]', b"\xff", b'["n","k",' + b"[" * 100_000,
        b'["n","k",' + b'["l",' * 90 + b"1" + b"]" * 91, b'["n","k",' + b"9" * 5000 + b"]", b'["n","k",["c","x","y"]]',
    ],
)  # fmt: skip
def test_answers_out_of_form_are_refused(text):
    with pytest.raises(ValueError, match="no answer of the expected form"):
        decode(text)


@pytest.mark.parametrize("tag", ["s", "f", "d"])
def test_colliding_hashes_are_refused_before_they_cost_anything(tag):
    modulus = 2**61 - 1
    values = [["i", f"{modulus * n:x}"] for n in range(1, 100_001)]
    with pytest.raises(ValueError, match="no answer"):
        decode(json.dumps(["n", "value", [tag, *values]]).encode())
    (call,) = calls("assert set(f(1)) == {1}")
    with pytest.raises(ValueError, match="colliding"):
        call.holds([modulus * n for n in range(1, 100_001)])
