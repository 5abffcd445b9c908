"""A real run with secrets wherever they get in: none is in its folder or in what it prints. All values are made up."""

import json
import os
import subprocess
import sys

import pytest
from helpers import write_recipe

from llmrl.serving.fleet import free_ports

DIGITS = "0123456789abcdefGHIJKLMNOPqrstuvwxyz"
ENVIRONMENT = {  # as a user has them
    "HF_TOKEN": "hf_" + DIGITS[:34],
    "OPENAI_API_KEY": "sk-proj-" + DIGITS[4:34],
    "WANDB_API_KEY": "00112233445566778899aabbccddeeff00112233",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYz",
    "DEPLOY_PASSWORD": 'correct "horse" \\ staple',
    "HTTPS_PROXY": "http://me:proxy-pass-phrase@127.0.0.1:9",
}
ELSEWHERE = {  # in what scorers, sources and libraries say; this process knows nothing of them
    "exception": "ghp_" + DIGITS[:36],
    "scorer's error": "AKIA" + "QWERTYUI76543210",
    "address": "user:address-pass",
    "header": "header-key-value",
    "printed": "glpat-" + DIGITS[:20],
    "warned of": "xoxb-" + DIGITS[:20],
    "logged": "github_pat_" + DIGITS[:30],
}
SCORER = f"""
import json, logging, os, warnings
from llmrl.types import Score

EVERY = {{k: os.environ.get(k, "") for k in {sorted(ENVIRONMENT)}}}

def leaky(prompt, rollout) -> Score:
    print("{ELSEWHERE["printed"]}", *EVERY.values())
    warnings.warn("{ELSEWHERE["warned of"]}")
    logging.getLogger("x").warning("{ELSEWHERE["logged"]}")
    kind = int(prompt.reference) % 4
    if kind == 0:
        raise ValueError("{ELSEWHERE["exception"]} " + " ".join(EVERY.values()))
    if kind == 1:
        return Score(None, error="GET https://{ELSEWHERE["address"]}@host {{'X-Api-Key': '{ELSEWHERE["header"]}'}}")
    if kind == 2:
        return Score(None, error="{ELSEWHERE["scorer's error"]}" + json.dumps(EVERY))
    return Score(float(len(rollout.ids)), feedback=" ".join(EVERY.values()), evidence=EVERY)

def rows():
    for n in range(32):
        yield {{"prompt": f"{{n}}: " + list(EVERY.values())[n % len(EVERY)], "reference": str(n), **EVERY}}

def broken():
    raise RuntimeError("cannot reach https://{ELSEWHERE["address"]}@host with {ELSEWHERE["exception"]}")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "leaks.py").write_text(SCORER)
    return folder


def llmrl(place, *words):
    """The finished command, in an environment with the secrets."""
    code = "import sys; from llmrl.cli import main; sys.exit(main())"
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def leaks(*texts):
    """Which secrets stand in the texts, as they are or as JSON writes them."""
    known = ENVIRONMENT | {"HTTPS_PROXY": "proxy-pass-phrase"} | ELSEWHERE
    forms = {name: {value, json.dumps(value)[1:-1]} for name, value in known.items()}
    return {name for name, some in forms.items() for text in texts if any(form in text for form in some)}


def contents(folder):
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]


def test_a_run_keeps_and_prints_no_secret(place):
    data = {"source": {"name": "leaks:rows"}, "max_prompt_tokens": 1024}
    scoring = {"max_error_share": 1.0}
    path = write_recipe(
        place, data=data, scorers=["leaks:leaky"], scoring=scoring, rollout={"prompts_per_step": 8},
        tracking={"panel": "plain"}, algorithm={"name": "grpo"}, training={"steps": 2},
    )  # fmt: skip
    done = llmrl(place, "train", str(path))
    assert done.returncode == 0, done.stderr
    folder = place / "runs" / "run"
    said = done.stdout + done.stderr
    files = contents(folder)
    assert len(files) > 8 and any("[redacted]" in text for text in files)
    assert "[redacted]" in said and not leaks(said, *files)
    assert not leaks(llmrl(place, "show", str(path)).stdout, llmrl(place, "report", str(folder)).stdout)


def test_what_this_test_looks_for_is_there_without_the_redaction(place, monkeypatch):
    """The same data and scorer through the run folder with the redactor switched off: the search finds them."""
    from llmrl.tracking import folder as folders
    from llmrl.tracking import jsonl

    for module, name in ((jsonl, "exact"), (folders, "redact")):
        monkeypatch.setattr(module, name, lambda data: data)
    run = folders.RunFolder.create(place / "open", json.dumps(ENVIRONMENT))
    run.write_rollouts(1, [{"text": text} for text in ELSEWHERE.values()])
    assert leaks(*contents(place / "open")) == set(ENVIRONMENT) | set(ELSEWHERE)


SERVING = """
import sys
from llmrl.serving import fleet
fleet.PROGRAM = "fixtures.fake_replica"
from llmrl.cli import main
sys.exit(main(["serve", "model", "--port", sys.argv[1]]))
"""


@pytest.mark.processes
def test_what_servers_print_has_no_secret_and_not_their_token(tmp_path):
    """They say their whole environment, on several lines and on one, and die of it."""
    told = f"a line {{'X-Api-Key': '{ELSEWHERE['header']}'}} https://{ELSEWHERE['address']}@host "
    told += " ".join(v for k, v in ELSEWHERE.items() if k not in ("header", "address"))
    places = {"PYTHONPATH": f"{os.getcwd()}:{os.path.join(os.getcwd(), 'tests')}"}
    environment = os.environ | ENVIRONMENT | places | {"LLMRL_FAULT": "print", "LLMRL_PRINTED": told}
    environment.pop("LLMRL_SERVER_TOKEN", None)
    command = [sys.executable, "-c", SERVING, str(free_ports(1)[0])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    said, log = done.stdout + done.stderr, (tmp_path / "servers" / "server-0.log").read_text()
    assert done.returncode == 2 and "3 times in a row" in said and "a line" in log and log.count("[redacted]") > 20
    assert not leaks(said, log) and (tmp_path / "servers" / "token").read_text() not in said + log


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data.source=leaks:broken",), "cannot reach https://[redacted]@host"),
        (("data.source=https://" + ELSEWHERE["address"] + "@host/x.jsonl",), "looks like a secret"),
        (("model.path=https://" + ELSEWHERE["address"] + "@host/m", "model.make=null"), "looks like a secret"),
        (("model.hub_token=" + ELSEWHERE["header"],), "looks like a secret"),
        (("name=" + ENVIRONMENT["WANDB_API_KEY"],), "looks like a secret"),
        (("scorers=[{name: leaks:leaky, api_key: " + ELSEWHERE["header"] + "}]",), "looks like a secret"),
    ],
)
def test_what_goes_wrong_says_no_secret(place, words, says):
    sections = {"data": {"source": {"name": "leaks:rows"}}, "scorers": ["leaks:leaky"], "algorithm": {"name": "grpo"}}
    path = write_recipe(place, "wrong", **sections)
    done = llmrl(place, "train", str(path), *words)
    assert done.returncode and says in done.stderr and not leaks(done.stdout, done.stderr)
