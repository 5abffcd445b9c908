"""The first thing that runs inside a sandbox. Shipped as text to a bare interpreter: standard library only, any Python 3.10+.

It takes messages from one pipe (marshal, trusted: they come from outside) and answers on another in JSON, which the
outside reads as hostile. Whoever runs in here can write answers too; all that an answer can carry is plain data.
"""

# ruff: noqa: S102, S302, S307 - the one place whose work is to run what it is given; what it loads comes from outside
import marshal
import os
import resource
import sys

DEPTH, SIZE, BITS = 64, 4_000_000, 1_000_000  # nesting, characters of an answer, bits of an integer
LONGEST_REASON = 200


class NotPlain(Exception):
    """A value that plain data cannot carry."""


def encode(value):
    """JSON text of plain data, told apart by type; a subclass counts as the built-in type it holds."""
    from _json import encode_basestring_ascii as quoted

    parts, size = [], 0

    def put(text):
        nonlocal size
        size += len(text)
        if size > SIZE:
            raise NotPlain(f"a value of more than {SIZE} characters")
        parts.append(text)

    def items(tag, values, depth):
        put(f'["{tag}"')
        for one in values:
            put(",")
            write(one, depth + 1)
        put("]")

    def write(value, depth):
        if depth > DEPTH:
            raise NotPlain(f"a value nested more than {DEPTH} deep")
        if value is None or value is True or value is False:
            put({None: "null", True: "true", False: "false"}[value])
        elif isinstance(value, int):
            value = int.__add__(value, 0)
            bits = int.bit_length(value)
            if bits > BITS:
                raise NotPlain(f"an integer of more than {BITS} bits")
            put(int.__repr__(value) if bits < 1000 else f'["i","{value:x}"]')
        elif isinstance(value, float):
            text = float.__repr__(value)
            put({"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text))
        elif isinstance(value, str):
            put(quoted(value))
        elif isinstance(value, complex):
            items("c", [complex.real.__get__(value), complex.imag.__get__(value)], depth)
        elif isinstance(value, (bytes, bytearray)):
            put(f'["b","{(bytes if isinstance(value, bytes) else bytearray).hex(value)}"]')
        elif isinstance(value, dict):
            items("d", [part for pair in dict.items(value) for part in pair], depth)
        else:
            for kind, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f")):
                if isinstance(value, kind):
                    return items(tag, kind.__iter__(value), depth)
            raise NotPlain(f"{type(value).__name__}, which is not plain data")

    write(value, 0)
    return "".join(parts)


class Outside:
    """Both pipes."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies

    def receive(self):
        """The next message; the process ends when there is none."""
        return marshal.loads(self.read(int.from_bytes(self.read(4), "big")))

    def read(self, count):
        held = bytearray()
        while len(held) < count:
            some = os.read(self.requests, count - len(held))
            if not some:
                os._exit(0)
            held += some
        return bytes(held)

    def reply(self, nonce, kind, value):
        """Send one answer; what cannot be sent is answered as 'opaque'."""
        try:
            text = f'["{nonce}","{kind}",{encode(value)}]'
        except NotPlain as error:
            text = f'["{nonce}","opaque",{encode(str(error))}]'
        data = text.encode("ascii")
        data = b"%08x" % len(data) + data
        while data:
            data = data[os.write(self.replies, data) :]


def main(requests, replies):
    """Take the limits, give up what was not given up outside, then play the part asked for."""
    outside = Outside(requests, replies)
    setup = outside.receive()
    for name, value in setup["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if setup["confinement"]:
        confinement = new_module("confinement")
        exec(marshal.loads(setup["confinement"]), confinement.__dict__)
        confinement.confine(read=setup["read"])
        confinement.ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: killed when the process outside dies
        if os.getppid() != setup["parent"]:
            os._exit(1)
    outside.reply(setup["nonce"], "ready", sys.version.split()[0])
    if setup["part"] == "program":
        os.close(requests)
        os.close(replies)
        run_program(setup["source"])
    else:
        {"candidate": be_candidate, "tests": be_tests}[setup["part"]](outside)


def new_module(name):
    """An empty module that imports by `name`."""
    module = sys.modules[name] = type(sys)(name)
    return module


def run_program(source):
    """The source as a main program; its own standard streams are its input and output."""
    namespace = new_module("__main__").__dict__
    exec(compile(source, "solution.py", "exec"), namespace)


def be_candidate(outside):
    """Answer requests one at a time: run source in the candidate's module, evaluate a call, apply a function."""
    namespace = new_module("solution").__dict__
    while True:
        answer(outside, namespace, *outside.receive())


def answer(outside, namespace, nonce, kind, *rest):
    """Answer one request."""
    try:
        if kind == "run":
            value = exec(compile(rest[0], "solution.py", "exec"), namespace)
        elif kind == "evaluate":
            value = eval(compile(rest[0], "call.py", "eval"), namespace)
        else:
            value = eval(compile(rest[0], "call.py", "eval"), namespace)(*rest[1], **rest[2])
    except BaseException as error:
        outside.reply(nonce, "raised", raised(error))
    else:
        outside.reply(nonce, "value", value)


def raised(error):
    """(name of the built-in exception that it is, what it says)"""
    kind = next((base for base in type(error).__mro__ if base.__module__ == "builtins"), Exception)
    try:
        text = str(error)
    except BaseException:
        text = ""
    return (kind.__name__, (type(error).__name__ + (": " + text if text else ""))[:LONGEST_REASON])


def be_tests(outside):
    """Run test code with stand-ins for the candidate's functions, each call relayed outside; then tell the verdict."""
    nonce, prelude, source, entry = outside.receive()
    theirs = []  # exceptions that came out of the candidate

    def stand_in(name):
        def function(*arguments, **named):
            outside.reply(nonce, "call", (name, arguments, named))
            kind, value = outside.receive()
            if kind == "value":
                return value
            if kind == "opaque":
                raise AssertionError("not plain data")
            known = getattr(__import__("builtins"), value[0], Exception)
            theirs.append(known(value[1]) if issubclass(known, Exception) else Exception(value[1]))
            raise theirs[-1]

        function.__name__ = name
        return function

    class Names(dict):
        """Globals in which a module of the standard library, or without an entry point any function, need not be named."""

        def __missing__(self, name):
            if hasattr(__import__("builtins"), name):
                raise KeyError(name)
            if name in sys.stdlib_module_names:
                return __import__(name)
            if entry is None:
                return stand_in(name)
            raise KeyError(name)

    names = Names(__name__="tests")
    try:
        exec(compile(prelude, "prelude.py", "exec"), names)
        if entry is not None:
            names[entry] = stand_in(entry)
        exec(compile(source, "tests.py", "exec"), names)
        if entry is not None:
            names["check"](names[entry])
    except AssertionError:
        return outside.reply(nonce, "failed", "an assertion does not hold")
    except (SyntaxError, NameError, ImportError, NotPlain) as error:
        kind = "failed" if error in theirs else "broken"
        return outside.reply(nonce, kind, raised(error)[1])
    except BaseException as error:
        return outside.reply(nonce, "failed", raised(error)[1])
    outside.reply(nonce, "passed", None)


def be_batch(data):
    """Where there are no pipes: run all of the sources, then answer all of the requests on standard output."""
    sources, requests = marshal.loads(data)
    outside = Outside(-1, os.dup(1))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    namespace = new_module("solution").__dict__
    try:
        for source in sources:
            exec(compile(source, "solution.py", "exec"), namespace)
    except BaseException as error:
        for nonce, *_ in requests:
            outside.reply(nonce, "raised", raised(error))
        return
    for request in requests:
        answer(outside, namespace, *request)
