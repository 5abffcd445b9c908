"""A reward model or sandbox behind an address that answers without an end, too slowly, or with something else."""

import gzip
import json

import httpx
import pytest
from fixtures.chat_server import ChatServer, flood, hang, raw, reset, slow_loris, status

from llmrl.config import Scoring
from llmrl.pool import Pool
from llmrl.scoring import make_scorers, score
from llmrl.types import Group, Prompt, Rollout
from reward_models.posted import posted
from reward_models.sandbox import remote
from reward_models.sandbox.errors import InfrastructureError
from reward_models.sandbox.session import Limits

GROUPS = [Group(Prompt("a", text="2+2="), (Rollout((0,), "4"), Rollout((0,), "5")))]


def slow_headers(handler, body):
    """A byte of the header at a time: no read is late, and the answer never begins."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.ended.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def bomb(handler, body):
    """A hundred kilobytes that would unfold into a hundred megabytes."""
    handler.send(200, gzip.compress(b" " * 10**8), Content_Encoding="gzip")


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (flood, ValueError, "more than 1,048,576 bytes"),
        (slow_loris, TimeoutError, "not answered within 0.5 s"),
        (slow_headers, TimeoutError, "not answered within 0.5 s"),
        (hang, TimeoutError, "not answered within 0.5 s"),
        (reset, httpx.HTTPError, None),
        (status(500), httpx.HTTPStatusError, "500"),
        (raw(b"<html>"), ValueError, None),
        (bomb, ValueError, None),
    ],
)
def test_an_answer_is_bounded_in_time_and_size(fault, kind, says):
    seconds = 60.0 if fault in (flood, bomb) else 0.5
    with ChatServer(lambda body: "", [fault]) as server, pytest.raises(kind, match=says):
        posted(server.url, {}, seconds=seconds, largest=1 << 20)


def test_a_fitting_answer_is_read():
    with ChatServer(lambda body: "", [raw(json.dumps({"a": [1]}).encode())]) as server:
        assert posted(server.url, {"q": 1}, seconds=60.0, largest=100) == {"a": [1]}
        assert server.requests[0]["q"] == 1


def test_a_reward_model_that_floods_or_drips_is_a_score_error_that_says_so():
    with ChatServer(lambda body: "", [flood, slow_loris]) as server, Pool() as pool:
        for timeout, says in ((60.0, "answered more than 1,056,768 bytes"), (0.5, "has not answered within 0.5 s")):
            scorers = make_scorers([{"name": "reward_model", "url": server.url, "timeout": timeout}])
            found = score(GROUPS, scorers, Scoring(max_error_share=1.0), pool)
            errors = [one["reward_model"] for one in found[0].scores]
            assert all(one.value is None and says in one.error for one in errors)


def test_a_sandbox_server_that_floods_is_no_verdict(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0,))
    monkeypatch.setattr(remote, "REPLY", 1 << 20)
    with ChatServer(lambda body: "", [flood, flood]) as server:
        with pytest.raises(InfrastructureError, match="more than 1,048,576 bytes.*2 attempts"):
            remote.run_remotely(server.url, "print(1)", "", Limits())
