"""A judge's service that fails in every way: retried, then an error with its reason; counts, budgets, cache, secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import time
from email.utils import formatdate

import pytest
from fixtures.chat_server import (
    ChatServer,
    echo_headers,
    flood,
    hang,
    raw,
    reset,
    says,
    slow_loris,
    status,
    truncated,
    verdict,
)

from llmrl.errors import RecipeError
from llmrl.scoring import make_scorer
from llmrl.types import Prompt, Rollout
from reward_models.judge import client as module
from reward_models.judge.cache import VerdictCache
from reward_models.judge.client import BudgetSpent, JudgeError, client_of, retry_after
from reward_models.judge.judge import judge

QUESTION = Prompt("p", text="What is 2 + 2?", reference="4")
SECRET = "sk-do-not-tell-0123456789"
USAGE = '"usage": {"prompt_tokens": 1, "completion_tokens": 1}'


def good(body):
    return verdict(body, score=6)


def at(server, **options):
    return {"url": server.url, "model": "tester", "backoff": 0.01, "timeout": 10.0} | options


def asked(server, text="It is 4.", **options):
    return asyncio.run(judge(QUESTION, Rollout(ids=(1,), text=text), service=at(server, **options)))


def asked_all(server, texts, **options):
    """A Score or the exception for each, asked at the same time."""

    async def everyone():
        calls = [judge(QUESTION, Rollout(ids=(1,), text=text), service=at(server, **options)) for text in texts]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(everyone())


FAULTS = {
    "429": (status(429, "slow down", Retry_After="0"), "status 429: slow down"),
    "500": (status(500, "oops"), "status 500: oops"),
    "503": (status(503), "status 503"),
    "reset": (reset, "ReadError"),
    "hang": (hang, "no answer within 0.5 s"),
    "slow loris": (slow_loris, "no answer within 0.5 s"),
    "truncated": (truncated, "RemoteProtocolError"),
    "flood": (flood, "larger than 4194304 bytes"),
    "half a JSON": (raw(b'{"choices": [{"mess'), "is not JSON"),
    "not UTF-8": (raw(b"\xff\xfe{}"), "is not JSON"),
    "deep": (raw(b"[" * 200_000), "is not JSON"),
    "a list": (raw(b"[]"), "is not a JSON object"),
    "empty": (raw(b""), "is not JSON"),
    "no choices": (raw(b'{"choices": []}'), r"no choices\[0\].message.content"),
    "no content": (raw(b'{"choices": [{"message": {"content": null}}]}'), r"no choices\[0\].message.content"),
    "NaN usage": (raw(b'{"choices": [], "usage": NaN}'), "NaN is no number"),
    "garbage": (says("I like it."), "expected one JSON object"),
    "wrong nonce": (says('{"key": "0000000000000000", "score": 10}'), "key is '0000000000000000'"),
    "NaN score": (says('{"key": "{nonce}", "score": NaN}'), "NaN is no number"),
    "string": (says('{"key": "{nonce}", "score": "10"}'), "score is '10'"),
    "two objects": (says('{"key": "{nonce}", "score": 1} {"key": "{nonce}", "score": 9}'), "expected one JSON object"),
    "cut short": (says('{"key": "{nonce}", "score": 9}', finish="length"), "cut by service.max_tokens"),
    "filtered": (says('{"key": "{nonce}", "score": 9}', finish="content_filter"), "content filter"),
}


def patience(name):
    return {"timeout": 0.5} if name in ("hang", "slow loris") else {}


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_costs_one_retry(name):
    with ChatServer(good, [FAULTS[name][0]]) as server:
        found = asked(server, **patience(name))
    assert found.value == 0.6 and len(server.requests) == 2
    assert (found.evidence["calls"], found.evidence["retries"]) == (2, 1)


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_is_an_error_with_its_reason_after_exactly_the_retries(name):
    fault, reason = FAULTS[name]
    with ChatServer(good, [fault] * 9) as server:
        with pytest.raises(JudgeError, match=rf"^no verdict after 3 calls: .*{reason}"):
            asked(server, retries=2, **patience(name))
        assert len(server.requests) == 3


def test_requests_of_one_verdict_have_other_seeds_and_keys():
    with ChatServer(good, [status(500)] * 2) as server:
        asked(server)
    assert len({request["seed"] for request in server.requests}) == 3
    assert len({request["messages"][0]["content"] for request in server.requests}) == 3


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 413, 422])
def test_what_another_request_would_not_change_is_not_asked_again(code):
    with ChatServer(good, [status(code, "because", Location="http://127.0.0.1:9/elsewhere")]) as server:
        with pytest.raises(JudgeError, match=f"no verdict after 1 call: status {code}: because"):
            asked(server)
    assert len(server.requests) == 1


def test_nobody_listening():
    with ChatServer(good) as server:
        service = at(server, retries=1)
    with pytest.raises(JudgeError, match="no verdict after 2 calls: ConnectError"):
        asyncio.run(judge(QUESTION, Rollout(ids=(1,), text="4"), service=service))


def test_retry_after_is_waited_for():
    with ChatServer(good, [status(429, Retry_After="1")]) as server:
        began = time.monotonic()
        assert asked(server).value == 0.6
    assert 1.0 <= time.monotonic() - began < 4.0


def test_retry_after_beyond_the_deadline_is_an_error_at_once():
    with ChatServer(good, [status(503, "busy", Retry_After="3600")]) as server:
        began = time.monotonic()
        with pytest.raises(JudgeError, match="busy; no time to ask again within 5 s"):
            asked(server, deadline=5.0)
    assert time.monotonic() - began < 4 and len(server.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("0", 0.0), ("", 0.0), ("soon", 0.0), ("-5", 0.0), ("nan", 0.0), ("1e9", 0.0), ("٣", 0.0)],
)
def test_retry_after_headers(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_dates():
    assert 58 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    assert retry_after("9" * 4000) == float("9" * 9)


def test_the_deadline_bounds_a_verdict_with_all_its_retries():
    with ChatServer(good, [hang] * 99) as server:
        began = time.monotonic()
        with pytest.raises(JudgeError, match="no time to ask again within 0.7 s"):
            asked(server, retries=99, deadline=0.7, timeout=0.3)
        assert time.monotonic() - began < 3 and len(server.requests) <= 3


def test_the_wait_doubles_and_is_the_same_in_every_run(monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def noted(seconds, *rest):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", noted)
    for _ in range(2):
        with ChatServer(good, [status(500)] * 9) as server, pytest.raises(JudgeError):
            asked(server, backoff=1.0, retries=3)
    assert waits[:3] == waits[3:] and all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits[:3]))


# ---- the circuit breaker


def test_the_breaker_opens_after_failures_in_a_row_and_says_why():
    with ChatServer(good, [status(500, "down")] * 4) as server:
        found = asked_all(server, "abcdefgh", breaker=4, retries=0, concurrency=1, pause=60.0)
        assert len(server.requests) == 4
        assert [str(one).split(":")[0] for one in found] == ["no verdict after 1 call"] * 4 + ["not asked"] * 4
        assert "4 requests in a row failed, the last with: status 500: down" in str(found[-1])


def test_one_request_tries_the_service_after_the_pause_and_closes_or_opens_the_breaker():
    options = {"breaker": 2, "retries": 0, "concurrency": 1, "pause": 0.3}
    with ChatServer(good, [status(500)] * 3) as server:
        asked_all(server, "ab", **options)
        time.sleep(0.35)
        again = asked_all(server, "cd", **options)  # c tries and fails, d is not asked
        assert len(server.requests) == 3 and "not asked" in str(again[1])
        time.sleep(0.35)
        assert [one.value for one in asked_all(server, "efg", **options)] == [0.6] * 3


def test_only_one_of_many_tries_the_service_after_the_pause():
    options = {"breaker": 2, "retries": 0, "pause": 0.3}
    with ChatServer(good, [status(500)] * 2, wait=0.1) as server:
        asked_all(server, "ab", **options)
        time.sleep(0.35)
        found = asked_all(server, "cdefgh", **options)
        assert len(server.requests) == 3 and sum("not asked" in str(one) for one in found) == 5


def test_rates_refused_questions_and_unreadable_verdicts_do_not_open_the_breaker():
    faults = [status(429), status(400), says("hm"), says("hm", finish="length")] * 5
    with ChatServer(good, faults) as server:
        found = asked_all(server, [str(n) for n in range(20)], breaker=2, retries=0, concurrency=1)
    assert len(server.requests) == 20 and not any("not asked" in str(one) for one in found)


# ---- budgets


def test_the_call_budget_counts_every_request_and_stops_with_the_reason():
    with ChatServer(good, [status(500)]) as server:
        found = asked_all(server, "abcdef", call_budget=4, concurrency=1)
    assert len(server.requests) == 4
    spent = [one for one in found if isinstance(one, BudgetSpent)]
    assert len(spent) == 3 and str(spent[0]) == (
        "service.call_budget of 4 is spent. Raise it, or train on fewer rollouts."
    )


def test_the_token_budget_stops_once_it_is_reached():
    with ChatServer(good) as server:  # 110 tokens each
        found = asked_all(server, "abcdef", token_budget=300, concurrency=1)
    assert len(server.requests) == 3 and sum(isinstance(one, BudgetSpent) for one in found) == 3


def test_tokens_of_unreadable_verdicts_count():
    with ChatServer(good, [says("hm")]) as server:
        found = asked(server, token_budget=10_000)
        assert (found.evidence["prompt_tokens"], found.evidence["completion_tokens"]) == (200, 20)
        assert client_of(at(server, token_budget=10_000)).tokens == 220


def test_a_token_budget_needs_a_service_that_tells_its_usage():
    without = raw(json.dumps({"choices": [{"message": {"content": "hm"}}]}).encode())
    with ChatServer(good, [without]) as server, pytest.raises(JudgeError, match="does not tell its usage"):
        asked(server, token_budget=1000)


# ---- the cache


def test_a_second_run_makes_no_call(tmp_path, monkeypatch):
    texts = [f"answer {n}" for n in range(20)]
    with ChatServer(good, [status(500)] * 3) as server:
        first = asked_all(server, texts, cache=str(tmp_path / "cache"))
        assert len(server.requests) == 23
        module._client.cache_clear()  # as another process would begin
        second = asked_all(server, texts, cache=str(tmp_path / "cache"))
        assert len(server.requests) == 23
    assert [one.value for one in first] == [one.value for one in second] == [0.6] * 20
    assert [one.evidence["cached"] for one in second] == [1] * 20
    assert {one.evidence["calls"] for one in second} == {0}


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}, {"body": {"top_p": 0.5}}]
)
def test_another_model_seed_or_sampling_is_another_question(tmp_path, other):
    with ChatServer(good) as server:
        asked(server, cache=str(tmp_path))
        asked(server, cache=str(tmp_path), **other)
        asked(server, cache=str(tmp_path), timeout=0.5, retries=9)
    assert len(server.requests) == 2


def test_failures_are_not_kept(tmp_path):
    with ChatServer(good, [says("hm")]) as server:
        with pytest.raises(JudgeError):
            asked(server, cache=str(tmp_path), retries=0)
        assert asked(server, cache=str(tmp_path), retries=0).value == 0.6
    assert len(server.requests) == 2


def test_equal_questions_under_way_are_asked_once():
    with ChatServer(good, wait=0.05) as server:
        found = asked_all(server, ["same"] * 5 + ["other"])
    assert len(server.requests) == 2 and [one.value for one in found] == [0.6] * 6
    assert sum(one.evidence["calls"] for one in found) == 2 and sum(one.evidence["cached"] for one in found) == 4


def test_all_who_wait_for_one_question_get_its_error():
    with ChatServer(good, [status(500)]) as server:
        found = asked_all(server, ["same"] * 3, retries=0)
    assert [str(one) for one in found] == ["no verdict after 1 call: status 500: no"] * 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other", "verdict": {}}', "\ud800", '{"a":' * 50_000])
def test_a_spoiled_file_of_the_cache_is_a_question_asked_again(tmp_path, content):
    cache = VerdictCache(str(tmp_path), 1)
    cache.put("ab12", {"value": 1.0})
    assert cache.get("ab12") == {"value": 1.0} and cache.get("ab13") is None
    cache.path("ab12").write_text(content, errors="surrogatepass")
    assert cache.get("ab12") is None


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path):
    cache = VerdictCache(str(tmp_path), 1)
    keys = [f"{n:02x}{n:04x}" for n in range(64)]
    for n, key in enumerate(keys):
        cache.put(key, {"value": 0.5, "reason": "x" * 15_000})
        if cache.path(key).exists():
            os.utime(cache.path(key), (n, n))
    assert cache.get(keys[0]) is not None  # used: now the newest
    for key in ("ff01", "ff02", "ff03", "ff04", "ff05", "ff06", "ff07"):
        cache.put(key, {"value": 0.5, "reason": "x" * 15_000})
    assert cache.get(keys[0]) is not None and cache.get(keys[1]) is None and cache.get("ff07") is not None
    assert sum(size for _, size, _ in cache.files()) <= 1024**2


def test_half_written_files_are_never_read_and_old_ones_are_swept(tmp_path):
    cache = VerdictCache(str(tmp_path), 1)
    cache.put("ab12", {"value": 1.0})
    old, fresh = tmp_path / "ab" / "x.part", tmp_path / "ab" / "y.part"
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (0, 0))
    assert len(cache.files()) == 1 and not old.exists() and fresh.exists()


def test_a_full_or_read_only_disk_costs_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with ChatServer(good) as server:
        assert asked(server, cache=str(tmp_path)).value == 0.6


def put_many(folder, start):
    cache = VerdictCache(folder, 1)
    for n in range(200):
        cache.put(f"{n % 7:02x}{n:04x}", {"value": n, "by": start, "reason": "x" * 10_000})


def test_processes_may_share_a_cache(tmp_path):
    workers = [multiprocessing.get_context("fork").Process(target=put_many, args=(str(tmp_path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = VerdictCache(str(tmp_path), 1)
    found = [(n, cache.get(f"{n % 7:02x}{n:04x}")) for n in range(200)]
    kept = [(n, verdict) for n, verdict in found if verdict]
    assert len(kept) > 20 and all(verdict["value"] == n for n, verdict in kept)
    assert not list(tmp_path.glob("*/*.part"))


# ---- concurrency


def test_no_more_requests_at_once_than_the_recipe_says():
    with ChatServer(good, wait=0.05) as server:
        found = asked_all(server, [str(n) for n in range(12)], concurrency=3)
    assert server.busiest == 3 and all(one.value == 0.6 for one in found)


def test_waiting_for_a_place_is_not_waiting_for_the_service():
    with ChatServer(good, wait=0.1) as server:  # 1.5 s of queue against a deadline of 1 s
        found = asked_all(server, [str(n) for n in range(15)], concurrency=1, deadline=1.0)
    assert all(one.value == 0.6 for one in found)


def test_a_verdict_given_up_leaves_its_place_to_others():
    async def given_up(server):
        service = at(server, concurrency=1, timeout=5.0)
        first = asyncio.create_task(judge(QUESTION, Rollout(ids=(1,), text="a"), service=service))
        await asyncio.sleep(0.1)
        first.cancel()
        server.ended.set()  # the hanging request comes to its end
        return await judge(QUESTION, Rollout(ids=(1,), text="b"), service=service)

    with ChatServer(good, [hang]) as server:
        assert asyncio.run(given_up(server)).value == 0.6


# ---- secrets


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_TEST_KEY", f"{SECRET}\n")
    caplog.set_level(logging.DEBUG)
    service = {"key_env": "JUDGE_TEST_KEY", "cache": str(tmp_path)}
    repeats = lambda body: verdict(body, score=6, reason=f"the key is {SECRET}")  # noqa: E731
    with ChatServer(repeats, [echo_headers(500), echo_headers(200), reset]) as server:
        found = asked(server, retries=3, **service)
        server.plan[:] = [echo_headers(401)]
        with pytest.raises(JudgeError) as refused:
            asked(server, "other", retries=0, **service)
    assert {request["_headers"]["Authorization"] for request in server.requests} == {f"Bearer {SECRET}"}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "[key]" in found.evidence["reason"] and "[key]" in str(refused.value) and "[key]" in kept
    told = [
        repr(found),
        repr(refused.value),
        kept,
        caplog.text,
        repr(client_of(at(server, retries=3, **service)).__dict__),
    ]
    assert not [text for text in told if SECRET in text]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_the_environment_lacks_is_named_by_its_variable(monkeypatch, value):
    monkeypatch.delenv("JUDGE_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_TEST_KEY", value)
    with ChatServer(good) as server:
        with pytest.raises(RecipeError, match="names JUDGE_TEST_KEY, which the environment does not have"):
            asked(server, key_env="JUDGE_TEST_KEY")
        assert server.requests == []


@pytest.mark.parametrize("value", ["sk-a\nsk-b", "schlüssel", "two words"])
def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown(monkeypatch, value):
    monkeypatch.setenv("JUDGE_TEST_KEY", value)
    with ChatServer(good) as server, pytest.raises(RecipeError) as refused:
        asked(server, key_env="JUDGE_TEST_KEY")
    assert "JUDGE_TEST_KEY" in str(refused.value) and value not in str(refused.value)


@pytest.mark.parametrize(
    "service",
    [
        {"key_env": SECRET},
        {"key_env": "hf_abcdefgh"},
        {"key_env": "AKIAIOSFODNN7EXAMPLE"},
        {"key_env": "0123456789ABCDEF0123456789ABCDEF"},
        {"api_key": SECRET},
        {"body": {"api_key": SECRET}},
        {"body": {"Authorization": SECRET}},
        {"url": f"http://user:{SECRET}@127.0.0.1:9/v1"},
        {"url": f"http://127.0.0.1:9/v1?api_key={SECRET}"},
    ],
)
def test_a_key_in_a_recipe_is_refused_before_anything_runs_and_not_repeated(service):
    whole = {"url": "http://127.0.0.1:9/v1", "model": "m"} | service
    values = [text for text in (SECRET, *service.values()) if isinstance(text, str)]
    with pytest.raises(RecipeError) as refused:
        make_scorer({"name": "judge", "service": whole})
    assert not [value for value in values if value in str(refused.value)]
    with pytest.raises(RecipeError) as refused:  # and where Python calls the scorer itself
        asyncio.run(judge(QUESTION, Rollout(ids=(1,), text="4"), service=whole))
    assert not [value for value in values if value in str(refused.value)]


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"url": "ftp://host/v1"}, "expected http:// or https://"),
        ({"url": "http://"}, "expected http:// or https://"),
        ({"url": "http://[::1"}, "expected http:// or https://"),
        ({"body": {"messages": []}}, "sets messages"),
        ({"retrys": 3}, "Did you mean retries?"),
        ({"timeout": 0}, "found 0"),
        ({"concurrency": 1.5}, "expected a whole number"),
        ({"model": ""}, "at least 1 character"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(service, said):
    with pytest.raises(RecipeError) as refused:
        make_scorer({"name": "judge", "service": {"url": "http://127.0.0.1:9/v1", "model": "m"} | service})
    assert said in str(refused.value)


def test_a_service_without_url_or_model_is_refused():
    with pytest.raises(RecipeError, match="scorers.judge.service: model is missing"):
        make_scorer({"name": "judge", "service": {"url": "http://127.0.0.1:9/v1"}})


def test_fields_of_the_request_can_be_added_and_left_out():
    body = {"max_tokens": None, "max_completion_tokens": 99, "chat_template_kwargs": {"enable_thinking": False}}
    with ChatServer(good) as server:
        asked(server, body=body)
    (request,) = server.requests
    assert "max_tokens" not in request and request["max_completion_tokens"] == 99
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
