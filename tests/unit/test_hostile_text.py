"""Model text is data: nothing in the packages evaluates, unpickles or shells out, but for the places listed with a reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("llmrl", "reward_models", "eval") for path in (ROOT / package).rglob("*.py"))

# functions that run or rebuild what a text says, by the last two names of the call
BANNED = {
    "eval", "exec", "compile", "__import__", "execfile", "input",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "torch.load", "joblib.load",
    "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "parse_expr", "sympy_parser.parse_expr", "sympify", "sympy.sympify", "sympy.S", "literal_eval", "ast.literal_eval",
    "os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output",
    "subprocess.check_call", "subprocess.getoutput", "os.execv", "os.execve", "os.execvp", "os.execvpe",
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "pty.spawn", "code.interact",
}  # fmt: skip

ALLOWED = {
    ("llmrl/pool/wire.py", "marshal.loads"): "what the trainer wrote for its own processes",
    ("llmrl/pool/worker.py", "marshal.loads"): "what the trainer wrote for its own processes",
    ("llmrl/pool/worker.py", "dill.loads"): "the user's own function, written by the trainer",
    ("llmrl/pool/zygote.py", "marshal.loads"): "what the trainer wrote for its own processes",
    ("llmrl/pool/pool.py", "subprocess.Popen"): "starts the pool's own module",
    ("reward_models/sandbox/driver.py", "exec"): "runs inside the sandbox",
    ("reward_models/sandbox/driver.py", "eval"): "runs inside the sandbox",
    ("reward_models/sandbox/driver.py", "compile"): "runs inside the sandbox",
    ("reward_models/sandbox/driver.py", "__import__"): "runs inside the sandbox",
    ("reward_models/sandbox/driver.py", "marshal.loads"): "runs inside the sandbox, on what the trainer sent in",
    ("reward_models/sandbox/calls.py", "ast.literal_eval"): "literals in the tests that came with the data",
    ("reward_models/sandbox/tiers.py", "subprocess.run"): "has the sandbox's interpreter compile our own driver",
    ("reward_models/sandbox/tiers.py", "marshal.loads"): "the compiled driver, before any answer is there",
    ("reward_models/sandbox/tiers.py", "subprocess.Popen"): "starts the sandbox",
    ("llmrl/training/launch.py", "subprocess.Popen"): "starts the processes of a run",
    ("llmrl/serving/fleet.py", "subprocess.Popen"): "starts the servers that a run samples from",
    ("llmrl/trials.py", "subprocess.Popen"): "starts the runs of a comparison",
    ("llmrl/tracking/versions.py", "subprocess.run"): "asks git for the checkout's commit",
}


def calls(source):
    """(line, name) of every call, the name's last two steps; aliases of imports are followed."""
    tree, real = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            real |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            last = node.module.rpartition(".")[2]
            real |= {alias.asname or alias.name: f"{last}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            head, dot, rest = name.partition(".")
            steps = (real.get(head, head) + dot + rest).split(".")
            yield node.lineno, ".".join(steps[-2:])
            if ast.unparse(node.func) == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield node.lineno, str(node.args[1].value)


def banned(source):
    return [(line, name) for line, name in calls(source) if name in BANNED or name.split(".")[-1] == "parse_expr"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_text_says(path):
    where = str(path.relative_to(ROOT))
    found = [f"{where}:{line} calls {name}" for line, name in banned(path.read_text()) if (where, name) not in ALLOWED]
    assert not found


def test_every_exception_is_still_there():
    used = {(str(p.relative_to(ROOT)), name) for p in FILES for _, name in banned(p.read_text())}
    assert set(ALLOWED) <= used


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import pickle as p\np.loads(x)",
        "from sympy.parsing.sympy_parser import parse_expr as read\nread(x)",
        "import sympy\nsympy.parsing.sympy_parser.parse_expr(x)",
        "from subprocess import run\nrun(x)",
        "import torch\ntorch.load(x)",
        "getattr(builtins, 'exec')(x)",
    ],
)
def test_the_check_sees_what_it_looks_for(text):
    assert banned(text)


# how what a stranger made is loaded: the call's last name, and what it has to be told
LOADED = {
    "from_pretrained": {"trust_remote_code": False},
    "from_config": {"trust_remote_code": False},
    "LLM": {"trust_remote_code": False},
}
LOADED_WEIGHTS = {"use_safetensors": True}  # besides, for classes of models
OWN_LOADERS = {"PeftModel": "takes no such options; the caller sees to it that there is a safetensors file"}


def careless(source):
    """(line, call) of everything that loads a model, a tokenizer or a configuration without saying that it is careful."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, last = name.rpartition(".")
        if last not in LOADED or owner in OWN_LOADERS or (last == "LLM" and owner):
            continue
        weights = LOADED_WEIGHTS if last == "from_pretrained" and "Model" in owner else {}
        said = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if (LOADED[last] | weights).items() - said.items():
            yield node.lineno, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_models_are_loaded_without_their_code_and_pickles(path):
    assert not list(careless(path.read_text()))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("AutoTokenizer.from_pretrained(x)", True),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=True)", True),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=flag)", True),
        ("AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False)", True),
        ("AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False, use_safetensors=True)", False),
        ("LLM(x)", True),
        ("AutoModel.from_config(x)", True),
    ],
)
def test_careless_loading_is_seen(text, wrong):
    assert bool(list(careless(text))) is wrong
