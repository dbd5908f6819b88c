"""Hostile programs: what each tries, the program, what holds it, and how it fails. docs/sandbox.md has the same list.

A program comes to its end only where it did what it tried; some do harm that the tests look for from outside. PRECIOUS
is a file and FOLDER a folder that all may write, PORT and NAME are where a server listens, VICTIM is a process, KEY is
a key in the caller's session keyring.
"""

from typing import NamedTuple


class Hostile(NamedTuple):
    """fails: a pattern for the reason; None where the program may come to its end without harm. tests: run with it.
    free: harmless enough to be run without a wall, where it succeeds."""

    name: str
    held_by: str
    program: str
    fails: str | None
    tests: str = ""
    free: bool = False


C = "import ctypes, os, time\nc = ctypes.CDLL(None, use_errno=True)\n"
FILES = "what it sees of files"
READ_ONLY = "the read-only view of files"
NO_PRIVILEGE = "no privilege"
PROCESSES = "its own process numbers"
NETWORK = "its own network"
WATCH = "the watching process"
APART = "tests that run apart"
WALL_TIME = "the limit on time"
SQUARE = "assert program.f(7) == 49\nassert program.f(-3) == 9"
MISSING = "FileNotFoundError"

HOSTILE = [
    # files
    Hostile("reads the accounts", FILES, "open('/etc/passwd').read()", MISSING, free=True),
    Hostile("reads another's file", FILES, "open('PRECIOUS').read()", MISSING, free=True),
    Hostile("overwrites another's file", FILES, "open('PRECIOUS', 'w')", MISSING),
    Hostile(
        "writes by a folder's number",
        FILES,
        "import os\nos.open('FOLDER/new'[1:], os.O_CREAT | os.O_WRONLY, dir_fd=os.open('/', os.O_RDONLY))",
        MISSING,
    ),
    Hostile("makes a pipe in another's folder", FILES, "import os; os.mkfifo('FOLDER/pipe')", MISSING),
    Hostile("changes attributes", FILES, "import os; os.setxattr('PRECIOUS', 'user.x', b'1')", MISSING),
    Hostile("goes out by a link", FILES, "import os; os.symlink('FOLDER', 'l'); open('l/new', 'w')", MISSING),
    Hostile("changes Python", READ_ONLY, "import os; open(os.__file__, 'a')", "OSError.*Read-only|PermissionError"),
    Hostile(
        "writes into every folder that it finds",
        READ_ONLY,
        "import os\nwritten = []\nfor top, folders, _ in os.walk('/'):\n    if top.startswith('/tmp'): continue\n"
        "    try: open(f'{top}/specquant-new', 'w'); written.append(top)\n    except OSError: pass\n"
        "    if top.count('/') > 2: folders.clear()\nassert written",
        "AssertionError",
    ),
    Hostile(
        "reads the machine's memory",
        FILES,
        "for name in ('mem', 'kmsg', 'sda', 'vda'):\n    try: open(f'/dev/{name}')"
        "\n    except FileNotFoundError: continue\n    break\nelse: raise FileNotFoundError",
        MISSING,
    ),
    Hostile(
        "makes a device", NO_PRIVILEGE, "import os; os.mknod('d', 0o60600, os.makedev(8, 0)); open('d')", "Permission"
    ),
    Hostile("leaves by chroot", NO_PRIVILEGE, "import os; os.mkdir('d'); os.chroot('d')", "PermissionError"),
    Hostile("mounts", NO_PRIVILEGE, C + "assert c.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0", "AssertionError"),
    Hostile(
        "fills the disk with one file",
        "the limit on files",
        "with open('a', 'wb', 0) as f:\n    while True: assert f.write(bytes(65536)) > 0",
        "OSError.*(File too large|No space left)",
    ),
    Hostile(
        "fills the disk with many files",
        "the limit on files",
        "for i in range(99):\n    with open(f'{i}', 'wb', 0) as f: f.write(bytes(65536))",
        "OSError.*No space left",
    ),
    Hostile(
        "makes empty files without end", WATCH, "i = 0\nwhile True: open(f'{i}', 'w').close(); i += 1", "more than 1000"
    ),
    Hostile("fills /dev/shm", READ_ONLY, "open('/dev/shm/x', 'w')", "OSError.*Read-only"),
    # processes
    Hostile("kills another process", PROCESSES, "import os; os.kill(VICTIM, 9)", "ProcessLookupError"),
    Hostile(
        "signals another process by a descriptor",
        PROCESSES,
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)",
        "ProcessLookupError",
    ),
    Hostile("kills all processes", PROCESSES, "import os; os.kill(-1, 9)", None),
    Hostile("reads another's environment", FILES, "open('/proc/VICTIM/environ', 'rb').read()", MISSING, free=True),
    Hostile(
        "kills the one that watches, to hoard memory",
        WATCH,
        C + "for signal in (9, 15, 2, 19): os.kill(1, signal)\ntime.sleep(0.1)\n"
        "assert c.shmget(0, 10**8, 0o1600) >= 0\ntime.sleep(1)",
        "System V",
    ),
    Hostile(
        "reads the one that watches",
        "a watching process that cannot be traced",
        C + "here = (ctypes.c_size_t * 2)(id(c), 8)\nread = c.process_vm_readv(os.getppid(), here, 1, here, 1, 0)\n"
        "assert read > 0 or c.ptrace(16, os.getppid(), 0, 0) == 0",
        "AssertionError",
    ),
    Hostile("is a fork bomb", "the limit on processes", "import os\nwhile True: os.fork()", "BlockingIOError"),
    Hostile(
        "is a patient fork bomb",
        WALL_TIME,
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "stop",
    ),
    Hostile(
        "is a bomb of threads",
        "the limit on processes",
        "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
        "RuntimeError",
    ),
    Hostile(
        "leaves a daemon",
        PROCESSES,
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)",
        None,
    ),
    Hostile(
        "forks, and loops as the parent", WALL_TIME, "import os\nif os.fork():\n    while True: pass", "stopped after"
    ),
    Hostile(
        "ignores all signals",
        WALL_TIME,
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
        "stopped after",
    ),
    # memory
    Hostile("asks for much memory", "the limit on memory", "x = bytearray(10**9)", "MemoryError"),
    Hostile(
        "asks for memory without end", "the limit on memory", "x = []\nwhile True: x.append(bytes(10**6))", "Memory"
    ),
    Hostile(
        "asks for memory in many processes",
        "the limit on processes",
        "import os, time\nfor i in range(8):\n    if os.fork() == 0: x = bytearray(10**8); time.sleep(60)",
        "BlockingIOError",
    ),
    Hostile(
        "hoards System V shared memory", WATCH, C + "assert c.shmget(0, 10**9, 0o1600) >= 0\ntime.sleep(1)", "System V"
    ),
    Hostile("hoards System V queues", WATCH, C + "while c.msgget(0, 0o1600) >= 0: pass\ntime.sleep(1)", "System V"),
    Hostile(
        "hoards System V semaphores",
        WATCH,
        C + "while c.semget(0, 32000, 0o1600) >= 0: pass\ntime.sleep(1)",
        "System V",
    ),
    Hostile(
        "hoards POSIX queues",
        "the limit on queues",
        C + "assert c.mq_open(b'/q', 0o102, 0o600, None) >= 0",
        "Assertion",
    ),
    Hostile(
        "hoards memory in a file without a name",
        "the limit on files",
        "import os; f = os.memfd_create('x'); assert sum(os.write(f, bytes(65536)) for _ in range(999)) > 2**25",
        "OSError.*File too large",
    ),
    Hostile(
        "hoards such files in sockets",
        "the limits on files and on open files",
        "import array, os, socket\nkept, sent = [], 0\nwhile sent < 64:\n    kept.append(socket.socketpair())\n"
        "    for _ in range(64):\n        f = os.memfd_create('x'); os.truncate(f, 2**20)\n"
        "        kept[-1][0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [f]))])\n"
        "        os.close(f); sent += 1",
        "OSError.*Too many",
    ),
    Hostile("locks memory", "the limit on memory", C + "assert c.mlock(c.malloc(2**20), 2**20) == 0", "AssertionError"),
    # network
    Hostile(
        "connects to a server here",
        NETWORK,
        "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
        "OSError|ConnectionRefused",
        free=True,
    ),
    Hostile(
        "connects by a name without a file",
        NETWORK,
        "import socket; socket.socket(socket.AF_UNIX).connect('\\0NAME')",
        "ConnectionRefused",
        free=True,
    ),
    Hostile(
        "fetches a page",
        NETWORK,
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=1)",
        "URLError",
    ),
    Hostile(
        "sends raw packets",
        NO_PRIVILEGE,
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "Permission",
    ),
    # privilege
    Hostile(
        "becomes root", NO_PRIVILEGE, "import os; os.setuid(0); assert os.getuid() == 0", "OSError|PermissionError"
    ),
    Hostile("makes a user namespace", "--disable-userns", C + "assert c.unshare(0x10000000) == 0", "AssertionError"),
    Hostile("makes a namespace of files", NO_PRIVILEGE, C + "assert c.unshare(0x20000) == 0", "AssertionError"),
    Hostile("renames the machine", NO_PRIVILEGE, "import socket; socket.sethostname('x')", "PermissionError"),
    Hostile("types into the terminal", "its own session", "import os; os.open('/dev/tty', os.O_RDWR)", "OSError"),
    Hostile(
        "gains rights by a program's file", "no_new_privs", C + "assert c.prctl(39, 0, 0, 0, 0) == 0", "AssertionError"
    ),
    Hostile(
        "reads the caller's keys",
        "its own keyring",
        C + "assert c.syscall(KEYCTL, 10, -3, b'user', b'KEY', 0) >= 0",
        "AssertionError",
        free=True,
    ),
    Hostile(
        "reads what the caller has open",
        "no file that was open",
        "import os\nfor f in range(3, 256):\n    try:\n        if b'precious' in os.pread(f, 99, 0): break\n"
        "    except OSError: pass\nelse: raise LookupError",
        "LookupError",
    ),
    Hostile("reads the caller's environment", "an empty environment", "import os; os.environ['SECRET']", "KeyError"),
    # results
    Hostile("ends at once, as if well", APART, "import os; os._exit(0)", "died without a word"),
    Hostile(
        "ends within a test, as if well", APART, "def f(x):\n    import os; os._exit(0)", "died without a word", SQUARE
    ),
    Hostile(
        "claims by every descriptor to be right",
        APART,
        "import os\nfor f in range(3, 24):\n"
        "    try: os.write(f, b'{\"value\": null}\\n' + b'{\"value\": true}\\n' * 9)\n"
        "    except OSError: pass\nos._exit(0)",
        "AssertionError",
        SQUARE,
    ),
    Hostile(
        "searches frames and objects for what to claim",
        APART,
        "import gc, io, os, sys\nframe, lines = sys._getframe(), b'{\"value\": null}\\n' + b'{\"value\": 49}\\n' * 2\n"
        "while frame:\n    for value in list(frame.f_locals.values()):\n"
        "        if isinstance(value, io.RawIOBase): value.write(lines)\n    frame = frame.f_back\n"
        "for value in gc.get_objects():\n    if isinstance(value, str): print(value)\nos._exit(0)",
        "AssertionError",
        SQUARE,
    ),
    Hostile(
        "answers what equals everything",
        APART,
        "class All:\n    def __eq__(self, other): return True\ndef f(x): return All()",
        "TypeError: a All is no plain value",
        SQUARE,
    ),
    Hostile(
        "answers a number that equals every number",
        APART,
        "class All(int):\n    def __eq__(self, other): return True\ndef f(x): return All(5)",
        "AssertionError",
        SQUARE,
    ),
    Hostile(
        "replaces what its answers are written with",
        APART,
        "import json; json.dumps = lambda value: '{\"value\": true}'\ndef f(x): return 1",
        "AssertionError",
        SQUARE,
    ),
    Hostile(
        "answers code",
        APART,
        'import json; json.dumps = lambda value: \'{"value": {"eval": ["exit()"]}}\'\ndef f(x): return 1',
        "KeyError",
        SQUARE,
    ),
    Hostile(
        "floods the tests",
        APART,
        "import os\nwhile True:\n    for f in range(3, 9):\n        try: os.write(f, b'x' * 65536)\n"
        "        except OSError: pass",
        "JSONDecodeError",
        SQUARE,
    ),
]
