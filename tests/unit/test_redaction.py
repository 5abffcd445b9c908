"""What counts as a secret, and that errors, recipes and files of a run never hold one. Every value here is made up."""

import io
import json
import traceback

import pytest

from llmrl import cli
from llmrl.calls import checked, reason
from llmrl.errors import LlmrlError, RecipeError
from llmrl.recipe import resolve
from llmrl.redaction import HIDDEN, Guarded, exact, redact
from llmrl.rescoring import named
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.panel import Plain
from llmrl.types import Score

DIGITS = "0123456789abcdefGHIJKLMNOPqrstuvwxyz"
SHAPED = {
    "hub": "hf_" + DIGITS[:34],
    "openai": "sk-proj-" + DIGITS[:30],
    "anthropic": "sk-ant-api03-" + DIGITS[:30],
    "github": "ghp_" + DIGITS[:36],
    "github, fine": "github_pat_" + DIGITS[:30],
    "gitlab": "glpat-" + DIGITS[:20],
    "slack": "xoxb-" + DIGITS[:20],
    "aws": "AKIA" + "ABCDEFGH01234567",
    "google": "AIza" + DIGITS[:35],
    "jwt": f"eyJ{DIGITS[:12]}.eyJ{DIGITS[:12]}.{DIGITS[:12]}",
}
IN_TEXT = {
    "bearer": ("Authorization: Bearer {}", "abc123def456"),
    "basic": ("{{'Authorization': 'Basic {}'}}", "dXNlcjpwYXNz"),
    "header": ("{{'X-Api-Key': '{}', 'a': 1}}", "abcdefghij"),
    "password": ("connect(password='{}', port=1)", "hunter2hunter2"),
    "query": ("GET https://host/x?access_token={}&y=1", "abcdefghij"),
    "userinfo": ("cannot reach https://{}@host:80/x", "user:p@ss-word"),
    "token alone before a host": ("git+https://{}@host/x", "abcdefghij"),
    "private key": ("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA"),
}
INNOCENT = [
    "max_tokens: 256, tokens_per_micro_batch: 8192, added_tokens: [<EF>]",
    "service: {key_env: JUDGE_API_KEY}",
    "a task-something-very-long-indeed with sk-learn, and the bearer of bad news",
    "write to a.b@example.org or look at https://example.org/x?y=1#z",
    "hf_transformers and ghp_ and AKIA are prefixes",
    "commit eac39ce8b1c3d4e5f60718293a4b5c6d7e8f9012, sha256 " + "0a" * 32,
    "The secret: there is none. Its password is a password.",
]


@pytest.mark.parametrize("value", SHAPED.values(), ids=SHAPED)
def test_values_of_a_secrets_shape_go(value):
    for text in (value, f"({value})", f"a='{value}', b", f'{{"k": "{value}"}}', f"https://x/{value}/y"):
        assert value not in redact(text) and HIDDEN in redact(text)


@pytest.mark.parametrize(("text", "value"), IN_TEXT.values(), ids=IN_TEXT)
def test_values_in_a_place_for_secrets_go(text, value):
    clean = redact(text.format(value))
    assert value not in clean and HIDDEN in clean and redact(clean) == clean


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize("value", ["qu\"o'te\\d<&>value", "längliche-geheimzahl", "with spaces and/slashes"])
def test_a_variables_value_goes_however_it_is_written(monkeypatch, value):
    monkeypatch.setenv("DEPLOY_SECRET", value)
    from html import escape
    from urllib.parse import quote

    for written in (value, json.dumps(value), repr(value), escape(value), quote(value, safe="")):
        assert exact(f"a {written} b").strip("a b\"'") == HIDDEN
    assert exact({value: [value, (value, 1)]}) == {HIDDEN: [HIDDEN, (HIDDEN, 1)]}


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "DB_PASSWORD",
        "MY_SECRET",
    ]
    + ["db_pass", "SLACK_WEBHOOK_URL", "GOOGLE_CREDENTIALS", "APIKEY", "SENTRY_DSN", "GH_PAT"],
)
def test_which_variables_hold_secrets(monkeypatch, name):
    monkeypatch.setenv(name, "innocent looking")
    assert exact("x innocent looking y") == f"x {HIDDEN} y"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN_PATH", "innocent looking"),
        ("PWD", "innocent looking"),
        ("KEYBOARD", "innocent looking"),
        ("MAX_TOKENS", "1234567890"),
        ("TOKENIZERS_PARALLELISM", "innocent looking"),
        ("HF_TOKEN", "short"),
    ],
)
def test_which_do_not(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert exact(f"x {value} y") == f"x {value} y"


def test_the_password_of_an_address_in_the_environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%2Dphrase1@proxy:3128")
    assert exact("pass-phrase1, pass%2Dphrase1") == f"{HIDDEN}, {HIDDEN}"


def test_model_text_keeps_what_only_looks_like_a_secret():
    assert exact(SHAPED["hub"]) == SHAPED["hub"]


@pytest.mark.parametrize("kind", [LlmrlError, RecipeError])
def test_errors_do_not_hold_secrets(kind):
    error = kind(f"refused: {SHAPED['hub']}")
    assert HIDDEN in str(error) and SHAPED["hub"] not in repr(vars(error)) + str(error)


def test_a_scorers_reasons_and_feedback_do_not_hold_secrets(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "innocent looking")
    assert "innocent looking" not in reason(ValueError("x" * 290 + "innocent looking"))
    assert "innocent" not in reason(ValueError("x" * 275 + " innocent looking"))  # redacted before it is cut
    score = checked(Score(1.0, "said innocent looking", {"innocent looking": ["innocent looking"]}))
    assert score.feedback == f"said {HIDDEN}" and score.evidence == {HIDDEN: [HIDDEN]}
    assert "innocent" not in str(
        checked(Score(None, "innocent looking", {"a": "innocent looking"}, "innocent looking"))
    )


def test_files_and_messages_of_a_run_do_not_hold_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_API_KEY", 'innocent "looking"')
    folder, value = RunFolder.create(tmp_path / "run", "name: 'innocent \"looking\"'\n"), 'innocent "looking"'
    folder.append_metrics({"stage": value, "step": 1, "global_step": 1})
    folder.write_rollouts(1, [{"text": value, "looks": SHAPED["hub"]}])
    folder.event("start", url="https://me:hidden-pass@host", key=SHAPED["aws"], value=value)
    written = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.*"))
    for secret in ("innocent", "hidden-pass", SHAPED["aws"]):
        assert secret not in written
    assert SHAPED["hub"] in written
    assert folder.metrics()[0]["stage"] == HIDDEN and folder.events()[0]["url"] == f"https://{HIDDEN}@host"
    stream = io.StringIO()
    Plain({}, stream).message(f"{value} {SHAPED['hub']}")
    assert stream.getvalue() == f"{HIDDEN} {HIDDEN}\n"


def test_a_guarded_stream_is_the_stream_but_for_secrets():
    inner = io.StringIO()
    guarded = Guarded(inner)
    assert guarded.write(f"a {SHAPED['hub']}") == 2 + len(SHAPED["hub"]) and not guarded.isatty()
    guarded.writelines([SHAPED["aws"], "b"])
    assert inner.getvalue() == f"a {HIDDEN}{HIDDEN}b"


def test_tracebacks_of_the_command_line_do_not_hold_secrets(monkeypatch, capsys):
    def broken(arguments, overrides):
        raise ZeroDivisionError(f"with {SHAPED['hub']} and \x1b[2J")

    monkeypatch.setattr("llmrl.commands.run_list", broken)
    assert cli.main(["list"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and f"ZeroDivisionError: with {HIDDEN} and" in err and "\x1b" not in err
    assert traceback.format_exc() == "NoneType: None\n"


LITERALS = {
    "a key's name": "scorers: [{name: m:f, api_key: abcdefgh}]",
    "a number": "scorers: [{name: m:f, password: 12345678}]",
    "a header": "scorers: [{name: m:f, headers: {Authorization: abcdefgh}}]",
    "the hub's": "model: {token: abcdefgh}",
    "a shape": f"data: {{system: 'use {SHAPED['hub']}'}}",
    "an address": "data: {source: 'https://me:abcdefgh@host/x.jsonl'}",
    "a judge": "scorers: [{name: m:f, service: {url: 'http://abcdefgh@host/v1'}}]",
    "a key": f"data: {{columns: {{{SHAPED['aws']}: x}}}}",
    "this process's": "name: innocent-looking",
}


@pytest.mark.parametrize("text", LITERALS.values(), ids=LITERALS)
@pytest.mark.parametrize("how", ["recipe", "base", "override"])
def test_secrets_in_a_recipe_are_refused_and_not_shown(monkeypatch, tmp_path, text, how):
    monkeypatch.setenv("SOME_TOKEN", "innocent-looking")
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("base: bad.yaml" if how == "base" else "seed: 1")
    key, _, value = text.partition(": ")
    words = [f"{key}={value}"] if how == "override" else []
    with pytest.raises(RecipeError) as caught:
        resolve(tmp_path / ("bad.yaml" if how == "recipe" else "good.yaml"), words)
    (problem, *_) = [p for p in caught.value.problems if "looks like a secret" in p]
    assert "environment variable" in problem and problem.startswith("override" if how == "override" else str(tmp_path))
    for shown in ("abcdefgh", "12345678", "innocent-looking", SHAPED["hub"], SHAPED["aws"]):
        assert shown not in str(caught.value)


def test_a_secret_on_the_command_line_of_score_is_refused():
    with pytest.raises(RecipeError, match="looks like a secret"):
        named("{name: m:f, api_key: abcdefgh}")


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle", "weights_only", "use_safetensors"])
@pytest.mark.parametrize("how", ["recipe", "base", "override", "stage"])
def test_code_of_others_cannot_be_asked_for(tmp_path, key, how):
    section = f"model: {{path: x, {key}: true}}"
    (tmp_path / "bad.yaml").write_text(f"stages: [{{name: a, {section}}}]" if how == "stage" else section)
    (tmp_path / "good.yaml").write_text("base: bad.yaml" if how == "base" else "seed: 1")
    with pytest.raises(RecipeError) as caught:
        resolve(
            tmp_path / ("bad.yaml" if how in ("recipe", "stage") else "good.yaml"),
            [f"model.{key}=true"] if how == "override" else [],
        )
    assert [p for p in caught.value.problems if f"{key} cannot be set" in p]
