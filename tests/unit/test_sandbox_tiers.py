"""Which walls are chosen, and that nothing runs without any."""

import subprocess
import sys

import pytest

from reward_models.sandbox import judge, session, tiers
from reward_models.sandbox.errors import InfrastructureError, SandboxError
from reward_models.sandbox.judge import self_check, tier_for
from reward_models.sandbox.session import Limits, Session


@pytest.fixture(autouse=True)
def forget():
    tiers.choose.cache_clear()
    yield
    tiers.choose.cache_clear()


def test_auto_takes_the_first_that_passes_its_check():
    assert tiers.choose("auto", lambda tier: None) in ("bubblewrap", "landlock")
    tiers.choose.cache_clear()
    if tiers.missing("landlock") is None:
        assert tiers.choose("auto", lambda tier: "leaks" if tier == "bubblewrap" else None) == "landlock"


def test_without_walls_nothing_runs_and_the_next_move_is_named(monkeypatch):
    monkeypatch.setattr(tiers.shutil, "which", lambda name: None)
    monkeypatch.setattr(tiers.confinement, "available", lambda: "Landlock in the kernel")
    monkeypatch.setattr(judge, "self_check", lambda tier: pytest.fail("tried a tier that is missing"))
    with pytest.raises(SandboxError, match="bubblewrap is not installed.*no Landlock.*apt install bubblewrap"):
        tier_for("auto")
    with pytest.raises(SandboxError, match="landlock: no Landlock"):
        tier_for("landlock")


def test_a_tier_that_leaks_or_does_not_start_is_not_used():
    with pytest.raises(SandboxError, match="landlock: does not hold against reading"):
        tiers.choose("landlock", lambda tier: "does not hold against reading")


def test_an_unknown_backend_is_refused():
    with pytest.raises(SandboxError, match="docker.*bubblewrap, landlock"):
        tier_for("docker")


@pytest.mark.sandbox
def test_the_self_check_sees_a_wall_that_is_missing(monkeypatch):
    """The driver without its confinement, in place of the landlock tier."""
    start = tiers.start
    if tiers.missing("landlock"):
        pytest.skip("needs Landlock")
    assert self_check("landlock") is None
    monkeypatch.setattr(session.tiers, "python", lambda: Bare)
    monkeypatch.setattr(tiers, "start", start)
    assert "network" in self_check("landlock") and "reading" in self_check("landlock")


class Bare:
    """The real interpreter; its confinement is a module that does nothing."""

    real = tiers.python()
    path, prefix, driver = real.path, real.prefix, real.driver
    text = "import ctypes\ndef confine(read): pass"
    confinement = subprocess.run(
        [path, "-c", f"import marshal, sys; sys.stdout.buffer.write(marshal.dumps(compile({text!r}, 'c', 'exec')))"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    "command", [["/bin/false"], ["/bin/echo", "hello"], ["/no/such/program"], [sys.executable, "-c", "1/0"]], ids=str
)
def test_walls_that_do_not_stand_are_no_verdict(monkeypatch, command):
    monkeypatch.setattr(session, "PAUSES", (0, 0))
    monkeypatch.setattr(tiers, "dropping", lambda _: (command, {}))
    with pytest.raises(InfrastructureError, match="did not start in 3 attempts"):
        Session("candidate", Limits(), "landlock")


@pytest.mark.sandbox
def test_a_start_that_fails_once_is_tried_again(monkeypatch):
    real, failures = tiers.dropping, [["/bin/false"], ["/no/such/program"]]
    monkeypatch.setattr(session, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(tiers, "dropping", lambda command: (failures.pop(), {}) if failures else real(command))
    with Session("candidate", Limits(), tier_for("auto")) as one:
        assert one.ask("evaluate", "1 + 1") == ("value", 2) and failures == []


@pytest.mark.sandbox
def test_no_descriptor_is_left_behind():
    import os

    tier_for("auto")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with Session("candidate", Limits(), tier_for("auto")) as one:
            one.ask("evaluate", "1")
    assert len(os.listdir("/proc/self/fd")) == before
