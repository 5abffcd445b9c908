"""The client of a SandboxFusion server, against a server that speaks its protocol on this machine."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.code_humaneval import humaneval
from reward_models.code_stdio import code_stdio
from reward_models.sandbox import remote, tiers
from reward_models.sandbox.calls import Call
from reward_models.sandbox.errors import Fault, InfrastructureError, Late
from reward_models.sandbox.judge import judge_calls
from reward_models.sandbox.remote import run_remotely
from reward_models.sandbox.session import Limits

FAILURES = {
    "not JSON": (200, b"<html>"),
    "a list": (200, b"[]"),
    "server error": (500, b"{}"),
    "its own failure": (200, json.dumps({"status": "SandboxError", "message": "no pod", "run_result": None}).encode()),
    "no result": (200, json.dumps({"status": "Success", "message": ""}).encode()),
}


@pytest.fixture
def server(monkeypatch):
    """(address, requests received, canned replies that are given first)"""
    monkeypatch.setattr(remote, "PAUSES", (0, 0, 0))
    received, canned = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, asked))
            status, body = canned.pop(0) if canned else (200, json.dumps(ran(asked)).encode())
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", received, canned
        http.shutdown()


def ran(asked):
    """What the server's /run_code answers: its models RunCodeResponse and CommandRunResult."""
    assert asked["language"] == "python"
    try:
        done = subprocess.run(
            [tiers.python().path, "-"] if not asked["stdin"] else [tiers.python().path, "-c", asked["code"]],
            input=asked["stdin"] or asked["code"], capture_output=True, text=True, timeout=asked["run_timeout"], env={},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        result = {
            "status": "TimeLimitExceeded",
            "execution_time": None,
            "return_code": None,
            "stdout": "",
            "stderr": "",
        }
        return {"status": "Failed", "message": "", "compile_result": None, "run_result": result, "files": {}}
    result = {"status": "Finished", "execution_time": 0.1, "return_code": done.returncode, "stdout": done.stdout}
    status = "Failed" if done.returncode else "Success"
    return {
        "status": status,
        "message": "",
        "compile_result": None,
        "run_result": result | {"stderr": done.stderr},
        "files": {},
    }


def equal(expected):
    return lambda value: value == expected


def test_calls_go_along_with_the_source_and_nothing_that_is_expected_does(server):
    address, received, _ = server
    calls = [Call(("evaluate", "f(2)"), equal(987_654)), Call(("apply", "f", (3,), {}), equal({"a": (3, [None])}))]
    source = "print('noise')\ndef f(x):\n    print('more')\n    return {'a': (x, [None])} if x == 3 else 987_000 + 654"
    verdict = judge_calls(source, "", calls, Limits(seconds=5), address)
    assert (verdict.passed, verdict.total, verdict.reason, verdict.tier) == (2, 2, None, "remote")
    ((path, asked),) = received
    assert path == "/run_code" and "987654" not in asked["code"] and asked["run_timeout"] == 5
    assert asked["memory_limit_MB"] == 1024


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos._exit(0)", "ended with exit code 0"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(x):\n    raise SystemExit", "SystemExit"),
        ("def f(x):\n    return object()", "not plain data"),
        ("def f(x):\n    return 5", "wrong value"),
        ("import os\nfor n in range(3, 9):\n    os.write(n, b'0000000fforged')\ndef f(x): pass", ""),
    ],
)
def test_programs_that_fail_there_fail_here(server, source, reason):
    verdict = judge_calls(source, "", [Call(("evaluate", "f(1)"), equal(4))], Limits(seconds=5), server[0])
    assert verdict.passed == 0 and reason in verdict.reason


def test_programs_read_and_write_text_and_are_late(server):
    prompt = Prompt("p", text="q", columns={"inputs": ["2 3", "4 5"], "outputs": ["5", "9"]})
    code = "a, b = map(int, input().split())\nprint(a + b)"
    score = code_stdio(prompt, Rollout((), code), backend=server[0])
    assert (score.value, score.evidence["tier"]) == (1.0, "remote")
    assert code_stdio(prompt, Rollout((), "print(5)"), backend=server[0], fraction=True).value == 0.5
    with pytest.raises(Late):
        run_remotely(server[0], "while True: pass", "x", Limits(seconds=0.2))


@pytest.mark.sandbox
def test_tests_that_have_to_run_stay_here_and_their_calls_go_there(server):
    head = "def double(x):\n    '''Twice x.'''\n"
    test = "def check(candidate):\n    for x in (1, 5):\n        assert candidate(x) == x + x\n"
    prompt = Prompt("p", text=head, columns={"prompt": head, "entry_point": "double", "test": test})
    assert humaneval(prompt, Rollout((), "    return 2 * x\n"), backend=server[0]).value == 1.0
    assert humaneval(prompt, Rollout((), "    return x * x * 2\n"), backend=server[0]).value == 0.0
    assert len(server[1]) == 4  # one run for each call that the tests made


@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_fails_is_asked_again_and_then_is_no_verdict(server, failure):
    address, received, canned = server
    canned.extend([FAILURES[failure]] * 2)
    assert run_remotely(address, "print(1)", "x", Limits()).output == "1\n" and len(received) == 3
    canned.extend([FAILURES[failure]] * 9)
    with pytest.raises(InfrastructureError, match="4 attempts"):
        run_remotely(address, "print(1)", "x", Limits())


def test_a_server_that_is_not_there_is_no_verdict(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0,))
    with pytest.raises(InfrastructureError, match="SandboxFusion"):
        run_remotely("http://127.0.0.1:9", "print(1)", "", Limits())


def test_a_wrong_nonce_is_a_fault(server):
    _, _, canned = server
    text = '["0000","value",4]'
    result = {"status": "Finished", "return_code": 0, "stdout": f"{len(text):08x}{text}", "stderr": ""}
    canned.append((200, json.dumps({"status": "Success", "message": "", "run_result": result}).encode()))
    with pytest.raises(Fault, match="not asked"):
        remote.Remote(server[0], Limits()).ask("evaluate", "1")
