"""Rows K5, K7-K9, K11-K13: how little of the kernel there is to talk to."""

from __future__ import annotations

import os
import socket
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig
from tests.abuse.conftest import Attack
from tests.runtime.test_posture import mounts_of, processes_of

USERS = pytest.mark.parametrize("user", ["root", "user"])

# -- K5 -------------------------------------------------------------------------------------------

SOCKETS = """
import json, socket
made, refused = [], set()
def attempt(family, kind, protocol):
    try:
        socket.socket(family, kind, protocol).close()
        made.append((family, kind, protocol))
    except OSError as error:
        refused.add(error.errno)
for protocol in range(64):
    for kind in (2, 3):
        attempt(16, kind, protocol)
for family in (2, 10):
    for kind in (1, 2, 3, 4, 5, 6, 10):
        for protocol in (*range(144), 255, 256, 261, 262, 263):
            attempt(family, kind, protocol)
for family in range(48):
    if family not in (1, 2, 10, 16):
        for kind in (1, 2, 3, 5):
            for protocol in (0, 1):
                attempt(family, kind, protocol)
print(json.dumps(made))
"""
TCP, UDP, MPTCP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, 262


@USERS
async def test_sockets(python: Sandbox, attack: Attack, user: str) -> None:
    """K5: no raw IP, no ping, and of netlink only routes; not one of the other families."""
    made = await attack(python, SOCKETS, user=user)
    allowed = {(socket.AF_NETLINK, kind, 0) for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM)}
    for family in (socket.AF_INET, socket.AF_INET6):
        allowed |= {(family, socket.SOCK_STREAM, protocol) for protocol in (0, TCP, MPTCP)}
        allowed |= {(family, socket.SOCK_DGRAM, protocol) for protocol in (0, UDP)}
    found = {tuple(item) for item in made}
    assert found <= allowed
    assert (socket.AF_INET, socket.SOCK_STREAM, TCP) in found


async def test_routes_cannot_be_changed(python: Sandbox, attack: Attack) -> None:
    """K5: what is left of netlink shows the sandbox's own loopback, and changes nothing."""
    program = """
import json, socket, struct
answers = []
for kind, body in ((16, struct.pack("BxHiII", 0, 0, 0, 1, 1)),  # RTM_NEWLINK
                   (20, struct.pack("BBBBI", 2, 8, 0, 0, 1)),  # RTM_NEWADDR
                   (24, struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)),  # RTM_NEWROUTE
                   (36, bytes(20)),  # RTM_NEWQDISC
                   (28, bytes(12)),  # RTM_NEWNEIGH
                   (88, bytes(8))):  # RTM_NEWNSID
    with socket.socket(16, 3, 0) as sock:
        sock.settimeout(5)
        sock.send(struct.pack("IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
        answer = sock.recv(4096)
        assert struct.unpack_from("H", answer, 4) == (2,)
        answers.append(-struct.unpack_from("i", answer, 16)[0])
print(json.dumps(answers))
"""
    assert await attack(python, program) == [1] * 6  # EPERM


# -- K7, K8 ---------------------------------------------------------------------------------------

READS = """
import json, os, stat, sys
readable, writable, everything = [], [], 0
skipped = {"self", "thread-self"}
for start in ("/proc", "/sys"):
    for top, directories, names in os.walk(start):
        if top == "/proc":
            directories[:] = [d for d in directories if not d.isdigit() and d not in skipped]
        for path in (f"{top}/{name}" for name in names):
            if os.path.islink(path):
                continue
            everything += 1
            for flags, found in ((os.O_RDONLY, readable), (os.O_WRONLY, writable), (os.O_RDWR, writable)):
                try:
                    fd = os.open(path, flags | os.O_NONBLOCK)
                except OSError:
                    continue
                if not stat.S_ISCHR(os.fstat(fd).st_mode):  # a mask, which is /dev/null
                    found.append(path)
                os.close(fd)
print(json.dumps([readable, writable, everything]))
"""
GOLDEN = Path(__file__).with_name("readable_of_proc.txt")


def known_names() -> list[str]:
    """The patterns of the list: of files, and of the directories of sysctls."""
    lines = GOLDEN.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_known(path: str, patterns: list[str]) -> bool:
    directory = os.path.dirname(path) + "/"
    return any(
        fnmatchcase(directory if pattern.endswith("/") else path, pattern)
        and pattern.count("/") == (directory if pattern.endswith("/") else path).count("/")
        for pattern in patterns
    )


@USERS
async def test_what_can_be_read_of_proc(python: Sandbox, attack: Attack, user: str) -> None:
    """K7, K8: no file that is not on the list, and none can be opened to write."""
    readable, writable, everything = await attack(python, READS, user=user)
    assert everything > 100
    assert "/proc/meminfo" in readable
    assert writable == []
    patterns = known_names()
    assert [path for path in readable if not is_known(path, patterns)] == []


async def test_what_can_be_read_of_sysctls_anybody_may(python: Sandbox, attack: Attack) -> None:
    """K7: of those that are the host's, root inside sees what each user of the host does."""
    readable, _, _ = await attack(python, READS)
    paths = [Path(path) for path in readable if path.startswith("/proc/sys/")]
    assert len(paths) > 100
    # Those of /proc/sys/net and of some more are the sandbox's own, with other modes.
    hosts = [path for path in paths if path.parts[3] != "net" and path.exists()]
    assert [path for path in hosts if not path.stat().st_mode & 0o004] == []


async def test_sys_is_empty(engine: Engine, python: Sandbox) -> None:
    """K8: as the host sees it."""
    (init,) = processes_of(python)
    assert [*(init / "root/sys").iterdir()] == []
    kind, options = mounts_of(init)["/sys"]
    assert (kind, "ro" in options) == ("tmpfs", True)
    result = await engine.exec(python.id, "mkdir /sys/x; echo x >/sys/y", user="root")
    assert result.stderr.count("Read-only file system") == 2


@USERS
async def test_files_of_other_processes_in_proc_cannot_be_written(
    python: Sandbox, attack: Attack, user: str
) -> None:
    """K7: of init and of the own supervisor, whatever there is of them."""
    program = """
import json, os
written, tried = [], 0
for pid in (1, os.getppid()):
    for top, directories, names in os.walk(f"/proc/{pid}"):
        directories[:] = [name for name in directories if name != "net"]
        for path in (f"{top}/{name}" for name in names):
            for text in (b"0", b"1000", b"0 0 1", b"/"):
                tried += 1
                try:
                    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:
                    continue
                try:
                    os.write(fd, text)
                    written.append(path)
                except OSError:
                    pass
                os.close(fd)
print(json.dumps([written, tried]))
"""
    written, tried = await attack(python, program, user=user)
    assert tried > 200
    assert written == []


# -- K9 -------------------------------------------------------------------------------------------


async def test_there_are_no_control_groups_inside(
    engine: Engine, python: Sandbox, attack: Attack
) -> None:
    """K9: none is mounted, none can be, and the own one is called /."""
    program = """
import json, os
with open("/proc/self/cgroup") as file:
    own = [line.rstrip().split(":", 2)[2] for line in file]
with open("/proc/1/cgroup") as file:
    own += [line.rstrip().split(":", 2)[2] for line in file]
names = {"release_agent", "notify_on_release", "cgroup.procs", "devices.allow", "tasks"}
found = []
for top, directories, files in os.walk("/"):
    if top == "/proc":
        directories[:] = [name for name in directories if not name.isdigit()]
    found += [f"{top}/{name}" for name in names & {*files}]
print(json.dumps([sorted(set(own)), found]))
"""
    own, found = await attack(python, program)
    assert own == ["/"]
    assert found == []
    for process in processes_of(python):
        assert not {kind for kind, _ in mounts_of(process).values()} & {"cgroup", "cgroup2"}
    command = await engine.exec_detached(python.id, ["sleep", "1234"])
    outside = {
        line.split(":", 2)[2]
        for process in processes_of(python)
        for line in (process / "cgroup").read_text().splitlines()
    }
    assert any(python.id in path for path in outside), "the host would not see another one"
    await engine.kill_command(python.id, command.id)


# -- K12 ------------------------------------------------------------------------------------------

SETTINGS = """
import ctypes, errno, json, platform, struct, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
outcome = {}
def attempt(name, result):
    outcome[name] = "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def call(name, numbers, *arguments):
    attempt(name, libc.syscall(ctypes.c_long(numbers[0 if X86 else 1]), *(
        a if isinstance(a, ctypes.c_char_p) else ctypes.c_long(a) for a in arguments)))
now = ctypes.create_string_buffer(struct.pack("qq", int(time.time()) + 3600, 0))
for clock in range(12):
    call(f"clock_settime {clock}", (227, 112), clock, ctypes.addressof(now))
call("settimeofday", (164, 170), ctypes.addressof(now), 0)
for mode in (0x0001, 0x0002, 0x0100, 0x4000, 0x8001):
    change = ctypes.create_string_buffer(struct.pack("I", mode) + bytes(204))
    call(f"adjtimex {mode:#x}", (159, 171), ctypes.addressof(change))
    call(f"clock_adjtime {mode:#x}", (305, 266), 0, ctypes.addressof(change))
name = ctypes.c_char_p(b"evil")
call("sethostname", (170, 161), name, 4)
call("setdomainname", (171, 162), name, 4)
room = ctypes.create_string_buffer(4096)
for kind in range(11):
    call(f"syslog {kind}", (103, 116), kind, ctypes.addressof(room), 4096)
call("sysctl", (156, 1024), ctypes.addressof(room))
call("reboot", (169, 142), 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)
call("swapon", (167, 224), name, 0)
call("acct", (163, 89), name)
call("vhangup", (153, 58))
print(json.dumps(outcome))
"""


@USERS
@pytest.mark.parametrize("escalation", [False, True])
async def test_nothing_of_the_hosts_can_be_set(
    engine: Engine, debian: str, attack: Attack, user: str, escalation: bool
) -> None:
    """K12: not its time, its name or its log."""
    config = SandboxConfig(image=debian, allow_privilege_escalation=escalation)
    sandbox = await engine.create_sandbox(config)
    before = os.uname().nodename
    outcome = await attack(sandbox, SETTINGS, user=user)
    assert outcome.pop("sysctl") in {"ENOSYS", "EPERM"}
    assert len(outcome) > 35
    assert {name: word for name, word in outcome.items() if word != "EPERM"} == {}
    assert os.uname().nodename == before


# -- K13 ------------------------------------------------------------------------------------------

FILTERS = """
import ctypes, errno, json, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
GETPPID, MOUNT, GETPID, SECCOMP = (110, 165, 39, 317) if X86 else (173, 40, 172, 277)
ALLOW, NOTIFY, ERRNO, TRACE = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x7FF00000
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def install(number, action, otherwise=ALLOW, flags=0):
    code = b"".join(struct.pack("HBBI", *step) for step in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, otherwise)))
    room = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(room)))
    return call(SECCOMP, 1, flags, ctypes.addressof(program))
def in_child(work):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as file:
        return json.loads(file.read())
def mount():
    return call(MOUNT, 0, 0, 0, 0, 0)
def tightened():
    return [install(GETPPID, ERRNO | 7), call(GETPPID), mount()]
def allowed():
    return [install(MOUNT, ALLOW), mount()]
def everything():
    return [install(MOUNT, ALLOW, ALLOW), install(MOUNT, TRACE), mount()]
def notified():
    # The answer to a notification may be "go on"; a refusal of ours comes first.
    listener = install(MOUNT, NOTIFY, flags=8)
    return [isinstance(listener, int), mount()]
def strict_refused():
    return [install(GETPPID, ERRNO | 7), install(GETPPID, ALLOW), call(GETPPID)]
def landlocked():
    handled = ctypes.create_string_buffer(struct.pack("QQQ", 2, 0, 0))  # to write files
    ruleset = call(444, ctypes.addressof(handled), 8, 0)
    top = os.open("/tmp", os.O_PATH)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", 2, top))
    answers = [call(445, ruleset, 1, ctypes.addressof(rule), 0), call(446, ruleset, 0)]
    for path in ("/tmp/f", "/home/user/f"):
        try:
            open(path, "a").close()
            answers.append("worked")
        except OSError as error:
            answers.append(errno.errorcode[error.errno])
    return [*answers, mount()]
open("/home/user/f", "w").close()
open("/tmp/f", "w").close()
print(json.dumps({work.__name__: in_child(work) for work in (
    tightened, allowed, everything, notified, strict_refused, landlocked)}))
"""


@USERS
async def test_programs_may_confine_themselves_further(
    python: Sandbox, attack: Attack, user: str
) -> None:
    """K13: their filters and rules work, and not one of them loosens ours."""
    if user == "root":
        await attack(python, "import os; os.chmod('/tmp', 0o1777); print(1)")
    answers = await attack(python, FILTERS, user=user)
    assert answers == {
        "tightened": [0, "E2BIG", "EPERM"],
        "allowed": [0, "EPERM"],
        "everything": [0, 0, "EPERM"],
        "notified": [True, "EPERM"],
        "strict_refused": [0, 0, "E2BIG"],
        "landlocked": [0, 0, "worked", "EACCES", "EPERM"],
    }


TRACER = """
import ctypes, errno, json, os, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
TRACEME, PEEKUSER, POKEUSER, SYSCALL, SETOPTIONS = 0, 3, 6, 24, 0x4200
ORIG_RAX, RAX, RDI = 15 * 8, 10 * 8, 14 * 8
def becomes(number, argument):
    # Let a traced child ask for its process id, and turn that into another call.
    pid = os.fork()
    if pid == 0:
        libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            libc.syscall(ctypes.c_long(39))
    os.waitpid(pid, 0)
    libc.ptrace(SETOPTIONS, pid, None, 1 | 0x100000)
    try:
        while True:
            libc.ptrace(SYSCALL, pid, None, None)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                return f"ended by {status}"
            if libc.ptrace(PEEKUSER, pid, ORIG_RAX, None) != 39 or os.WSTOPSIG(status) != 0x85:
                continue
            libc.ptrace(POKEUSER, pid, ORIG_RAX, number)
            libc.ptrace(POKEUSER, pid, RDI, argument)
            libc.ptrace(SYSCALL, pid, None, None)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                return f"ended by {status}"
            result = ctypes.c_long(libc.ptrace(PEEKUSER, pid, RAX, None)).value
            libc.ptrace(SYSCALL, pid, None, None)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                return f"killed by {os.WTERMSIG(status)}"
            return errno.errorcode[-result] if result < 0 else "worked"
    finally:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
print(json.dumps({
    "getuid": becomes(102, 0), "mount": becomes(165, 0), "unshare": becomes(272, 0x10000000),
    "a packet socket": becomes(41, 17), "io_setup": becomes(206, 1), "clone3": becomes(435, 0),
    "x32 getpid": becomes(0x40000000 + 39, 0)}))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the registers are those of x86_64")
@USERS
async def test_a_tracer_cannot_exchange_a_call(python: Sandbox, attack: Attack, user: str) -> None:
    """K13: the filter sees what the tracer made of it: a getuid, then what is refused."""
    answers = await attack(python, TRACER, user=user)
    assert answers == {
        "getuid": "worked",
        "mount": "EPERM",
        "unshare": "EPERM",
        "a packet socket": "EAFNOSUPPORT",
        "io_setup": "ENOSYS",
        "clone3": "ENOSYS",
        "x32 getpid": "killed by 31",
    }
