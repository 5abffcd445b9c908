"""The walls of a sandbox: which there are, which one works here, and the command line of each."""

from __future__ import annotations

import functools
import marshal
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmrl import confinement
from reward_models.sandbox.errors import SandboxError

NOBODY = 65534
DRIVER = Path(__file__).with_name("driver.py").read_text(encoding="utf-8")
CONFINEMENT = Path(confinement.__file__).read_text(encoding="utf-8")
# compiling the driver takes as long as starting the interpreter, so it comes compiled, ahead of the first message
START = """
import marshal, os
def read(count):
    held = b""
    while len(held) < count:
        some = os.read(%d, count - len(held))
        if not some:
            os._exit(1)
        held += some
    return held
names = {"__name__": "driver"}
exec(marshal.loads(read(int.from_bytes(read(4), "big"))), names)
names["main"](%d, %d)
"""
COMPILE = """
import marshal, sys
texts = marshal.loads(sys.stdin.buffer.read())
codes = [marshal.dumps(compile(text, name, "exec")) for name, text in texts]
sys.stdout.buffer.write(marshal.dumps((tuple(sys.version_info[:2]), codes), 2))
"""
OLDEST = (3, 10)
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")  # what an interpreter needs besides its own prefix
TIERS = ("bubblewrap", "landlock")


@dataclass(frozen=True)
class Python:
    """An interpreter that the sandbox's user can run, the folder that it lives under, and its code for two modules."""

    path: str
    prefix: str
    driver: bytes = field(repr=False)
    confinement: bytes = field(repr=False)


def user() -> dict[str, object]:
    """How a child is started so that it is not root: RLIMIT_NPROC does not bind root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def dropping(command: list[str]) -> tuple[list[str], dict[str, object]]:
    """(command, options of Popen) that start it so, by setpriv where there is one: Popen would copy this whole process."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return command, user()
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command], {}


@functools.cache
def python() -> Python:
    """This process's base interpreter if the sandbox's user may read it, else the system's.

    Raises SandboxError where there is neither.
    """
    tried = []
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        real = os.path.realpath(path)
        prefix = str(Path(real).parents[1])
        if not os.path.exists(real):
            tried.append(f"{path} does not exist")
        elif prefix in ("/", str(Path.home())):
            tried.append(f"{real} has {prefix} for its folder, which would have to be shown")
        elif os.geteuid() == 0 and not open_to_all(real):
            tried.append(f"{real} is open to root alone")
        else:
            version, codes = compiled(real)
            if version >= OLDEST:
                return Python(real, prefix, *codes)
            tried.append(f"{real} is Python {'.'.join(map(str, version))}")
    raise SandboxError(
        f"sandbox: found no Python {'.'.join(map(str, OLDEST))} or later that an ordinary user can run: "
        f"{'; '.join(tried)}. Next: apt install python3"
    )


def compiled(path: str) -> tuple[tuple[int, int], list[bytes]]:
    """(version of an interpreter, its byte code of driver and confinement)"""
    texts = marshal.dumps([("driver.py", DRIVER), ("confinement.py", CONFINEMENT)], 2)
    command = [path, "-I", "-S", "-c", COMPILE]
    try:
        done = subprocess.run(
            command, input=texts, capture_output=True, check=True, timeout=60, env={}, cwd="/", **user()
        )
        return marshal.loads(done.stdout)  # noqa: S302 - written by our own program
    except (OSError, subprocess.SubprocessError, ValueError, EOFError) as error:
        raise SandboxError(f"sandbox: {path} does not run: {error}. Next: apt install python3") from error


def open_to_all(path: str) -> bool:
    """Whether every folder above may be entered, and the file run, by anybody."""
    return all(os.stat(step).st_mode & stat.S_IXOTH for step in [path, *Path(path).parents])


def bubblewrap(seccomp: int, fds: Sequence[int]) -> list[str]:
    """An empty root with the interpreter in it, read-only; own user, process, network, IPC and host-name spaces."""
    home = python()
    walls = "--unshare-user --unshare-all --disable-userns --die-with-parent --new-session --cap-drop ALL --clearenv"
    command = ["bwrap", *walls.split(), "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    command += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/lib", "/lib64", "/bin"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    if not home.prefix.startswith("/usr"):
        command += ["--ro-bind", home.prefix, home.prefix]
    for device in ("null", "zero", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--setenv", "PATH", "/usr/bin", "--remount-ro", "/", "--chdir", "/", "--seccomp", str(seccomp), "--"]
    return [*command, *driver(fds)]


def driver(fds: Sequence[int]) -> list[str]:
    """The interpreter with as little of its own as can be: no environment, no site packages."""
    return [python().path, "-I", "-S", "-c", START % (fds[0], *fds)]


def start(tier: str, fds: Sequence[int], **streams: object) -> subprocess.Popen:
    """The driver behind the walls of `tier`, reading messages from fds[0] and answering on fds[1].

    Raises OSError where the program cannot be started.
    """
    options = dict(env={"PATH": "/usr/bin:/bin"}, cwd="/", start_new_session=True, **streams)
    if tier == "landlock":
        command, drop = dropping(driver(fds))
        return subprocess.Popen(command, pass_fds=fds, **options, **drop)
    calls = confinement.denied(network=False, processes=False)
    program = confinement.seccomp_program(
        {name: numbers for name, numbers in calls.items() if name not in confinement.PROGRAMS}, threads_only=True
    )  # programs: the interpreter itself has still to be started
    seccomp = os.memfd_create("seccomp")
    try:
        os.write(seccomp, program)
        os.lseek(seccomp, 0, os.SEEK_SET)
        command, drop = dropping(bubblewrap(seccomp, fds))
        return subprocess.Popen(command, pass_fds=[*fds, seccomp], **options, **drop)
    finally:
        os.close(seccomp)


def readable() -> list[str]:
    """What the landlock tier may read."""
    return [*SYSTEM, python().prefix]


def missing(tier: str) -> str | None:
    """What keeps a tier from being tried, or None."""
    if tier == "bubblewrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt install bubblewrap)"
    lacking = confinement.available()
    return None if lacking is None or (tier == "bubblewrap" and "Landlock" in lacking) else f"no {lacking}"


@functools.cache
def choose(backend: str, check: Callable[[str], str | None]) -> str:
    """The tier for `backend`: itself, or for 'auto' the first that passes `check` (tier -> what is wrong, or None).

    Asked once a process. Raises SandboxError that says what is wrong with each.
    """
    if backend not in ("auto", *TIERS):
        raise SandboxError(
            f"backend is {backend!r}; expected auto, {', '.join(TIERS)} or a server's address, http://..."
        )
    wanted = TIERS if backend == "auto" else (backend,)
    problems = {}
    for tier in wanted:
        wrong = missing(tier) or check(tier)
        if wrong is None:
            return tier
        problems[tier] = wrong
    told = "; ".join(f"{tier}: {wrong}" for tier, wrong in problems.items())
    raise SandboxError(
        f"no sandbox works here: {told}. Code is never run without one. Next: apt install bubblewrap, allow user "
        "namespaces or Landlock, or set backend to the address of a sandbox server."
    )
