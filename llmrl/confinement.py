"""Taking rights away from the calling process for good: Landlock for files, seccomp for system calls. No packages.

Imports nothing of llmrl: the sandbox also ships this file, as text, into processes that have no checkout to read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

# Landlock (linux/landlock.h): access rights on files, by the interface version that brought them
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
READING = EXECUTE | READ_FILE | READ_DIR
HANDLED = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15  # the rights that a rule on a single file may name
TCP, SCOPES = 3, 3  # ABI 4: bind and connect; ABI 6: abstract sockets and signals
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/zero": READ_FILE, "/dev/urandom": READ_FILE}

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
CAPABILITY_VERSION = 0x20080522
KEPT_CAPABILITIES = 1 << 2  # CAP_DAC_READ_SEARCH: else root could not read what others own
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes
CLONE_THREAD, O_TRUNC = 0x10000, 0x200

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column of the table below
# name: (x86_64, aarch64); None where the architecture has no such call
NETWORK = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
PROCESSES = {"fork": (57, None), "vfork": (58, None)}
PROGRAMS = {"execve": (59, 221), "execveat": (322, 281)}
ALWAYS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "personality": (135, 92),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # memory and objects that outlive the process or escape its address-space limit
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # signals to others by roads that carry no process id to compare
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    # scheduling and memory placement, of any process of the same user
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # changes to files that Landlock does not watch
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "mknod": (133, None), "mknodat": (259, 33),
}  # fmt: skip
CLONE, CLONE3, SENDTO, PRLIMIT64 = (56, 220), (435, 435), (44, 206), (302, 261)
KILL_CALL, TGKILL = (62, 129), (234, 131)
OPEN, OPENAT, OPENAT2, TRUNCATE, CREAT = (2, None), (257, 56), (437, 437), (76, 45), (85, None)


def available() -> str | None:
    """None where `confine` works; else what is missing, as half a sentence."""
    here = os.uname()
    if here.sysname != "Linux" or here.machine not in ARCHITECTURES or struct.calcsize("P") != 8:
        return f"Linux on x86_64 or aarch64 (this is {here.sysname} on {here.machine})"
    if landlock_abi() < 1:
        return "Landlock in the kernel (Linux 5.13 or later, with lsm=landlock,... on its command line)"
    return None


def confine(
    *, read: Sequence[str] | None, write: Sequence[str] = (), network: bool = False, processes: bool = False
) -> None:
    """Take from the calling process, its later threads and children, irrevocably, all but what is named here.

    read: files and folders that may still be read, and run; None: all. write: files and folders that may be changed.
    Paths that do not exist are passed over. network: sockets may be opened; socket pairs may always. processes: programs
    may be started; threads may always. Files opened before stay open. Never allowed: tracing, signalling or rescheduling
    other processes, mounts, namespaces, kernel interfaces such as io_uring and bpf, changing modes, owners or times of
    files, memory that outlives the process.
    What is denied fails with EPERM or EACCES. Other threads of the process stay as they were: call it before any starts.
    Raises OSError where the kernel refuses or lacks something; part of it may then be in force.
    """
    missing = available()
    if missing:
        raise OSError(errno.ENOSYS, f"cannot confine this process: no {missing}")
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    drop_capabilities(libc)
    abi = landlock_abi()
    restrict_files(libc, abi, read, write, network)
    pid = None if processes else os.getpid()  # a child has another number, and may signal its own
    program = seccomp_program(denied(network, processes), threads_only=not processes, pid=pid, no_truncation=abi < 3)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)), 16)
    check(libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header, 0, 0), "seccomp")


def denied(network: bool, processes: bool) -> dict[str, tuple[int | None, int | None]]:
    """The calls that are refused whatever their arguments."""
    return ALWAYS | ({} if network else NETWORK) | ({} if processes else PROCESSES | PROGRAMS)


def seccomp_program(
    calls: dict[str, tuple[int | None, int | None]],
    *,
    threads_only: bool,
    pid: int | None = None,
    no_truncation: bool = False,
) -> bytes:
    """A classic BPF filter that refuses `calls` with EPERM and kills on a foreign architecture's calls.

    threads_only: clone makes threads, never processes. pid: signals and resource limits go to this process only; None:
    to any. no_truncation: also refuse to empty files by opening them, which the first Landlock versions let pass.
    """
    audit, column = ARCHITECTURES[os.uname().machine]
    refuse, absent = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS  # ENOSYS makes the C library fall back to an older call
    code = [op(LOAD, 4), op(EQUAL, audit, 1, 0), op(RETURN, KILL), op(LOAD, 0)]
    if column == 0:
        code += [op(AT_LEAST, 0x40000000, 0, 1), op(RETURN, KILL)]  # the x32 interface
    for number in sorted({call[column] for call in calls.values()} - {None}):
        code += [op(EQUAL, number, 0, 1), op(RETURN, refuse)]

    def when(call: tuple[int | None, int | None], test: Iterable[bytes]) -> None:
        """Behind `call`, `test` ends with an answer; every other call goes on."""
        if call[column] is not None:
            body = list(test)
            code.extend([op(EQUAL, call[column], 0, len(body)), *body])

    def argument(index: int, high: bool = False) -> bytes:
        return op(LOAD, 16 + 8 * index + 4 * high)

    answers = [op(RETURN, refuse), op(RETURN, ALLOW)]
    if threads_only:
        when(CLONE, [argument(0), op(ANY_BIT, CLONE_THREAD, 1, 0), *answers])
        when(CLONE3, [op(RETURN, absent)])  # its flags stand in memory, out of a filter's sight
    if "socket" in calls:  # a datagram socket pair could send to any address
        when(SENDTO, [argument(4), op(EQUAL, 0, 0, 2), argument(4, True), op(EQUAL, 0, 1, 0), *answers])
    if pid is not None:
        for call in (KILL_CALL, TGKILL):
            when(call, [argument(0), op(EQUAL, pid, 1, 0), *answers])
        when(PRLIMIT64, [argument(0), op(EQUAL, 0, 2, 0), op(EQUAL, pid, 1, 0), *answers])
    if no_truncation:
        when(OPEN, [argument(1), op(ANY_BIT, O_TRUNC, 0, 1), *answers])
        when(OPENAT, [argument(2), op(ANY_BIT, O_TRUNC, 0, 1), *answers])
        when(OPENAT2, [op(RETURN, absent)])
        for call in (TRUNCATE, CREAT):
            when(call, [op(RETURN, refuse)])
    return b"".join([*code, op(RETURN, ALLOW)])


def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction; jumps count instructions to pass over."""
    return struct.pack("HBBI", code, if_true, if_false, value)


def restrict_files(
    libc: ctypes.CDLL, abi: int, read: Sequence[str] | None, write: Sequence[str], network: bool
) -> None:
    """Landlock: nothing but reading beneath `read` and anything beneath `write`."""
    handled = sum(bits for version, bits in HANDLED.items() if version <= abi)
    attributes = struct.pack("QQQ", handled, TCP if abi >= 4 and not network else 0, SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = check(libc.syscall(CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    rules = [(path, READING) for path in (["/"] if read is None else read)]
    rules += [*DEVICES.items(), *((path, handled) for path in write)]
    try:
        for path, rights in rules:
            try:
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                rights &= handled if os.path.isdir(path) else handled & ON_FILES
                rule = struct.pack("=Qi", rights, beneath)
                check(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule for {path}")
            finally:
                os.close(beneath)
        check(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def landlock_abi() -> int:
    """The version of Landlock's interface; 0 without Landlock."""
    found = ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(found, 0)


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root's privileges go, but for reading what others own."""
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # (effective, permitted, inheritable) of the low and of the high 32 bits
    check(libc.capget(header, held), "capget")
    effective, permitted = (bits & KEPT_CAPABILITIES for bits in struct.unpack("6I", held)[:2])
    check(libc.capset(header, struct.pack("6I", effective, permitted, 0, 0, 0, 0)), "capset")


def check(result: int, call: str) -> int:
    """The result, or OSError where it says that the call failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
