"""Attacks on every tier, judged by what stands outside; and the same attacks on no sandbox, so that the judge is judged."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from reward_models.sandbox import tiers
from reward_models.sandbox.errors import Fault, SandboxError
from reward_models.sandbox.judge import tier_for
from reward_models.sandbox.session import Limits, Session

ATTACKS = tomllib.loads((Path(__file__).parents[1] / "fixtures" / "attacks" / "escapes.toml").read_text())["attack"]
LIMITS = Limits(seconds=5, memory_gb=0.15)
SHORT = Limits(seconds=0.4, memory_gb=0.15)


def works(tier):
    try:
        return tier_for(tier) == tier
    except SandboxError:
        return False


TIERS = [
    pytest.param(tier, marks=pytest.mark.skipif(not works(tier), reason=f"{tier} does not work here"))
    for tier in tiers.TIERS
]
pytestmark = pytest.mark.sandbox


@pytest.fixture
def world():
    """Files, listeners, a process and a secret, all open to an ordinary user."""
    base = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    here = base / "checkout" / "outside"
    here.mkdir(parents=True)
    for step in (base, here.parent, here):
        step.chmod(0o777)
    token = secrets.token_hex(8)
    folder = here / "d"
    folder.mkdir()
    folder.chmod(0o777)
    for name, text in (("secret", token + "-secret"), ("canary", "alive")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o666)
    (folder / "own").write_text("mine")
    if os.geteuid() == 0:
        os.chown(folder / "own", tiers.NOBODY, tiers.NOBODY)
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    path = str(here / "u")
    unix.bind(path)
    os.chmod(path, 0o777)
    abstract.bind(f"\0{token}")
    for one in (tcp, udp, unix, abstract):
        one.setblocking(False)
    victim = subprocess.Popen(["/bin/sleep", "60"], **tiers.user())
    descriptor = os.open(folder / "secret", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    os.environ["LLMRL_TEST_SECRET"] = token + "-secret"
    names = dict(dir=folder, token=token, tcp=tcp.getsockname()[1], udp=udp.getsockname()[1], unix=path)
    names |= dict(victim=victim.pid, parent=os.getpid(), checkout=base / "checkout.py")
    names["checkout"].write_text("x = 1")
    names["checkout"].chmod(0o644)
    yield SimpleNamespace(
        names=names, folder=folder, victim=victim, sockets=(tcp, udp, unix, abstract), before=snapshot(folder)
    )
    del os.environ["LLMRL_TEST_SECRET"]
    os.close(descriptor)
    victim.kill()
    victim.wait()
    for one in (tcp, udp, unix, abstract):
        one.close()
    shutil.rmtree(base)


def snapshot(folder):
    found = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        found[path.name] = (
            status.st_mode,
            status.st_nlink,
            status.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
    return found


def damage(world, answer):
    """What an attack has done outside, in words."""
    if world.names["token"] + "-secret" in str(answer):
        yield "a secret was read"
    if answer is True:
        yield "it says so itself"
    if snapshot(world.folder) != world.before:
        yield "files have changed"
    for one in world.sockets:
        try:
            one.accept() if one.type == socket.SOCK_STREAM else one.recv(10)
            yield f"something came in by {one.getsockname()}"
        except BlockingIOError:
            pass
    if world.victim.poll() is not None or "T" in Path(f"/proc/{world.victim.pid}/stat").read_text().split()[2]:
        yield "another process was hit"


def attacked(attack, world, tier):
    """(what attack() returned or how it ended, seconds)"""
    start = time.monotonic()
    with Session("candidate", SHORT if attack.get("late") else LIMITS, tier) as session:
        try:
            session.ask("run", attack["code"] % world.names)
            answer = session.ask("evaluate", "attack()")
            answer = answer[1] if answer[0] == "value" else SimpleNamespace(raised=answer)
        except Fault as fault:
            answer = fault
    return answer, time.monotonic() - start


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["name"])
def test_no_attack_gets_out(attack, tier, world):
    if attack["name"] == "thread bomb" and tier == "landlock" and os.geteuid() != 0:
        pytest.skip("there the number of threads is bounded by memory alone")
    answer, seconds = attacked(attack, world, tier)
    assert list(damage(world, answer)) == []
    assert left_over() == []
    if attack.get("late"):
        assert isinstance(answer, Fault) and seconds < 5


def left_over():
    """Processes that this one started as drivers, or that have lost their parent, and still run."""
    for _ in range(50):  # what was killed takes a moment to go
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_left_over(pid)]
        if not found:
            return []
        time.sleep(0.02)
    return found


def is_left_over(pid):
    """Whether a process is a driver, or a wall around one, and its parents are the same up to this one or to none."""
    while "marshal.loads(read(" in text_of(f"/proc/{pid}/cmdline"):
        pid = int(text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
        if pid in (0, 1, os.getpid()):
            return True
    return False


def text_of(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ") ? 0"


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.get("control")], ids=lambda attack: attack["name"])
def test_the_same_attack_succeeds_without_a_sandbox(attack, world):
    code = attack["code"] % world.names + "\nprint(attack())\n"
    ran = subprocess.run(
        [tiers.python().path, "-I", "-S", "-c", code],
        capture_output=True, text=True, timeout=10, cwd="/", close_fds=False, **tiers.user(),
    )  # fmt: skip
    time.sleep(0.3 if "daemon" in attack["name"] else 0)
    assert list(damage(world, ran.stdout.strip() == "True" or ran.stdout)) != [], ran.stderr


def test_the_suite_is_large_enough():
    assert len(ATTACKS) >= 40 and sum(attack.get("control", False) for attack in ATTACKS) >= 20


@pytest.mark.parametrize("tier", TIERS)
def test_a_sandbox_dies_with_the_process_that_made_it(tier):
    reader, writer = os.pipe()
    maker = os.fork()
    if maker == 0:
        session = Session("candidate", Limits(seconds=60), tier)
        os.write(writer, str(session.process.pid).encode())
        time.sleep(60)
    made = int(os.read(reader, 20))
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(made):
        time.sleep(0.02)
    assert not alive(made)
    os.close(reader)
    os.close(writer)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
