# ruff: noqa: E501  # programs are easier to read whole
"""What a hostile program tries, as real code. It runs inside the sandbox, and for the controls outside.

`P` are facts of the outside (see `sandbox_world.py`). `attempt` prints ESCAPED when the thing was possible, HELD when not.
"""

from dataclasses import dataclass

PRELUDE = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def sc(number, *arguments):
    typed = [a if a is None or isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *typed)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def read(path):
    with open(path, 'rb') as file:
        found = file.read(2000)
    assert found, 'empty'
    return found
def attempt(do):
    try:
        got = do()
    except BaseException as error:
        print('HELD', type(error).__name__, error)
    else:
        print('ESCAPED', repr(got)[:200])
"""


@dataclass(frozen=True)
class Attack:
    """One attempt.

    Attributes:
        code: An expression, or a block that defines `attack()`.
        control: Outside, by the same user, it is possible: "root", "user" (both), or "" where trying is not harmless.
        ends: The limits that may end it; without them it has to fail by itself.
        timeout_s: Of the run.
        only: The mechanism in which it makes sense.
    """

    name: str
    code: str
    control: str = "user"
    ends: tuple[str, ...] = ()
    timeout_s: float = 10.0
    only: str = ""

    def failed(self, result: dict) -> bool:
        """Whether it came to nothing: refused, ended by a limit, or by the kernel for the attempt."""
        if "ESCAPED" in result["stdout"]:
            return False
        ended = result["killed"] is not None and result["killed"] in self.ends
        return ended or "HELD" in result["stdout"] or (result["exit_code"] or 0) >= 128

    @property
    def program(self) -> str:
        if "\n" in self.code:
            return self.code + "\nattempt(attack)\n"
        return f"attempt(lambda: {self.code})\n"


FILES = [
    Attack("read the password hashes", "read('/etc/shadow')", "root"),
    Attack("read the list of users", "read('/etc/passwd')"),
    Attack("list root's home", "[n for n in os.listdir('/root') if n != '.pyenv'][0]", "root"),
    Attack("read a file of the server's user", "read(P['secret'])"),
    Attack("read a file that everybody may read", "read(P['public'])"),
    Attack("list the folder of the server", "os.listdir(P['top'])"),
    Attack("read by a symbolic link", "(os.symlink(P['public'], 'link'), read('link'))"),
    Attack("read by a hard link", "(os.link(P['public'], 'hard'), read('hard'))", "user"),
    Attack("read by a path with dots", "read('../' * 30 + P['public'])"),
    Attack("read by changing the folder", "(os.chdir(P['top']), read('public'))"),
    Attack("read through openat2", "sc(437, -100, P['public'].encode(), bytes(24), 24)", ""),
    Attack(
        "read by a handle", "sc(303, -100, P['public'].encode(), struct.pack('Ii', 64, 0) + bytes(64), bytes(8), 0)"
    ),
    Attack("write where everybody may", "open(P['open_dir'] + '/written', 'w').write('x')"),
    Attack("write into a file that everybody may write", "open(P['open_file'], 'a').write('x')"),
    Attack("truncate such a file", "os.truncate(P['open_file'], 1)"),
    Attack("truncate it on opening", "os.open(P['open_file'], os.O_RDONLY | os.O_TRUNC)"),
    Attack("move a file in", "os.rename(P['open_dir'] + '/bait', 'bait')", ""),
    Attack("move a file out", "(open('x', 'w').close(), os.rename('x', P['open_dir'] + '/moved'))", ""),
    Attack("delete a file", "os.unlink(P['open_dir'] + '/bait2')"),
    Attack("make a folder", "os.mkdir(P['open_dir'] + '/folder')"),
    Attack("change a file's mode", "os.chmod(P['public'], 0o600)"),
    Attack("change a file's mode by the newest call", "sc(452, -100, P['public'].encode(), 0o600, 0)", ""),
    Attack("change a file's times", "os.utime(P['public'], (1, 1))"),
    Attack("change a file's attributes", "os.setxattr(P['public'], 'user.x', b'1')", ""),
    Attack("change a file's owner", "os.chown(P['public'], 1, 1)", "root"),
    Attack("watch a folder", "sc(254, sc(294, 0), P['top'].encode(), 0x100)"),
    Attack("write /etc", "open('/etc/agl-battery', 'w')", ""),
    Attack("change the interpreter", "open(os.__file__, 'a')", ""),
    Attack("change the system", "open('/usr/bin/agl-battery', 'w')", ""),
    Attack("make a device", "os.mknod('disk', 0o60600, os.makedev(8, 0))", "root"),
    Attack("read the memory device", "read('/dev/mem')", ""),
    Attack(
        "read a disk", "[read('/dev/' + n) for n in os.listdir('/dev') if n.startswith(('sd', 'vd', 'nvme'))][0]", ""
    ),
    Attack("read the kernel's log", "os.open('/dev/kmsg', os.O_RDONLY)", "root"),
    Attack(
        "use shared memory", "(open('/dev/shm/agl-battery', 'w').close(), os.unlink('/dev/shm/agl-battery'))", "user"
    ),
    Attack("list devices", "os.listdir('/dev')"),
    Attack("leave a setuid file by chmod", "(open('s', 'w').close(), os.chmod('s', 0o4755))"),
    Attack("leave a setuid file by fchmod", "os.fchmod(os.open('s2', os.O_CREAT | os.O_RDWR), 0o6755)"),
    Attack(
        "leave a setuid file by open",
        "os.fstat(os.open('s3', os.O_CREAT | os.O_RDWR, 0o4777)).st_mode & 0o4000 or 1/0",
        "",
    ),
    Attack("a root directory of its own", "os.chroot('.')", "root"),
    Attack("an open folder left by the start", "[os.listdir(n) for n in range(3, 200) if _is_folder(n)][0]", ""),
]

PROCESSES = [
    Attack("the server's environment", "read('/proc/%d/environ' % P['server'])"),
    Attack("the first process's environment", "read('/proc/1/environ')", ""),
    Attack(
        "everybody's environment",
        "def attack():\n    found = b''\n    for name in os.listdir('/proc'):\n        if name.isdigit():\n            try:\n"
        "                found += open('/proc/%s/environ' % name, 'rb').read()\n            except OSError:\n                pass\n"
        "    assert b'battery-canary' in found\n    return 'the canary'",
    ),
    Attack("its own environment has the server's", "os.environ[P['canary']]"),
    Attack("the environment through ctypes", "[e for e in os.environb if b'CANARY' in e][0]"),
    Attack("list processes", "[n for n in os.listdir('/proc') if n.isdigit()]"),
    Attack("the command line of the server", "read('/proc/%d/cmdline' % P['server'])"),
    Attack("the server's open files", "os.listdir('/proc/%d/fd' % P['server'])"),
    Attack("memory of the parent through /proc", "os.open('/proc/%d/mem' % os.getppid(), os.O_RDWR)", "user"),
    Attack("memory of the first process", "os.open('/proc/1/mem', os.O_RDWR)", ""),
    Attack("trace the server", "sc(101, 16, P['victim'], 0, 0)"),
    Attack("trace itself", "sc(101, 0, 0, 0, 0)", ""),
    Attack(
        "read the server's memory",
        "sc(310, P['server'], ctypes.create_string_buffer(16), 1, ctypes.create_string_buffer(16), 1, 0)",
        "",
    ),
    Attack("a descriptor of a process", "sc(434, P['victim'], 0)"),
    Attack("compare with a process", "sc(312, P['victim'], P['server'], 2, 0, 0)"),
    Attack("is the server there", "os.kill(P['server'], 0)"),
    Attack("kill a process", "os.kill(P['victim2'], 9)"),
    Attack("kill the parent", "os.kill(os.getppid() if os.getppid() > 1 else P['server'], 0)"),
    Attack("kill everybody", "os.kill(-1, 0)", ""),
    Attack("signal a thread of the server", "sc(234, P['server'], P['server'], 0)"),
    Attack("signal a thread by its number", "sc(200, P['server'], 0)"),
    Attack("queue a signal", "sc(129, P['server'], 0, bytes(128))", ""),
    Attack(
        "a signal by a descriptor's owner",
        "def attack():\n    a, b = socket.socketpair()\n    fcntl.fcntl(a, 8, P['victim'])\n    fcntl.fcntl(a, 10, 10)\n"
        "    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\n    b.send(b'x')\n    return 'sent'",
        "",
    ),
    Attack("limits of the server", "sc(302, P['server'], 7, None, ctypes.create_string_buffer(16))"),
    Attack("priority of the server", "os.setpriority(os.PRIO_PROCESS, P['victim'], 19)"),
    Attack("disk priority of the server", "sc(251, 1, P['victim'], 3 << 13)"),
    Attack("processors of the server", "os.sched_setaffinity(P['victim'], {0})"),
    Attack("scheduling of the server", "os.sched_setscheduler(P['victim'], os.SCHED_BATCH, os.sched_param(0))"),
    Attack("end the first process", "(os.kill(1, 9), time.sleep(0.3), os.kill(1, 15), 1/0)", ""),
]

NETWORK = [
    Attack("TCP to this machine", "socket.create_connection(('127.0.0.1', P['tcp']), timeout=2)"),
    Attack("TCP to the world", "socket.create_connection(('1.1.1.1', 80), timeout=2)", ""),
    Attack("TCP by IPv6", "socket.create_connection(('::1', P['tcp']), timeout=2)", ""),
    Attack("UDP", "socket.socket(2, 2).sendto(b'x', ('127.0.0.1', P['udp']))"),
    Attack("names", "socket.getaddrinfo('example.com', 80)", ""),
    Attack("listen", "(s := socket.socket(), s.bind(('127.0.0.1', 0)), s.listen())"),
    Attack("netlink", "socket.socket(16, 3, 0)"),
    Attack("raw packets", "socket.socket(17, 3, 0)", "root"),
    Attack("raw IP", "socket.socket(2, 3, 1)", "root"),
    Attack("the hypervisor", "socket.socket(40, 1)", ""),
    Attack("kernel cryptography", "socket.socket(38, 5)", ""),
    Attack("Bluetooth", "socket.socket(31, 3, 1)", ""),
    Attack("a Unix socket of the host", "(s := socket.socket(1), s.connect(P['unix']))"),
    Attack("an abstract one", "(s := socket.socket(1), s.connect(P['abstract']))"),
    Attack("a datagram to one", "socket.socketpair(1, 2)[0].sendto(b'x', P['unix_dgram'])"),
    Attack("a datagram to an abstract one", "socket.socketpair(1, 2)[0].sendto(b'x', P['abstract_dgram'])"),
    Attack("a pair connected elsewhere", "(s := socket.socketpair(1, 2)[0], s.connect(P['abstract_dgram']))"),
    Attack(
        "a message to an address from a pair", "socket.socketpair()[0].sendmsg([b'x'], [], 0, P['abstract_dgram'])", ""
    ),
    Attack("a socket by the other system call table", "sc(0x40000000 | 41, 2, 1, 0)", ""),
    Attack("io_uring", "sc(425, 8, ctypes.create_string_buffer(120))"),
]

KERNEL = [
    Attack("a namespace for users", "sc(272, 0x10000000)"),
    Attack("a namespace for mounts", "sc(272, 0x00020000)", "root"),
    Attack("a namespace by clone", "sc(56, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)"),
    Attack(
        "a namespace by clone3",
        "sc(435, struct.pack('11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88) or os._exit(0)",
    ),
    Attack("join a namespace", "sc(308, os.open('/proc/self/ns/net', os.O_RDONLY), 0)", "root"),
    Attack("mount", "sc(165, b'x', b'.', b'tmpfs', 0, 0)", ""),
    Attack("mount by the new calls", "sc(430, b'tmpfs', 0)", "root"),
    Attack("clone a tree of mounts", "sc(428, -100, b'/', 1)", ""),
    Attack("unmount", "sc(166, b'/usr', 2)", ""),
    Attack("another root", "sc(155, b'.', b'.')", ""),
    Attack("become root", "os.setuid(0)", "root"),
    Attack("become root entirely", "os.setresuid(0, 0, 0)", "root"),
    Attack("join groups", "os.setgroups([0])", "root"),
    Attack("take capabilities", "sc(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', 1, 1, 0, 0, 0, 0))", ""),
    Attack("use su", "1 / (subprocess.run(['su', '-c', 'id'], stdin=0, capture_output=True).returncode == 0)", "root"),
    Attack("a key ring", "sc(250, 0, -3, 0)"),
    Attack("add a key", "sc(248, b'user', b'agl-battery', b'x', 1, -2)"),
    Attack("bpf", "sc(321, 0, struct.pack('6I', 2, 4, 4, 1, 0, 0) + bytes(100), 124)", "root"),
    Attack("perf events", "sc(298, struct.pack('IIQ', 1, 112, 1) + bytes(96), 0, -1, -1, 0)", ""),
    Attack("page faults in user space", "sc(323, 1)"),
    Attack("a kernel module", "sc(175, bytes(64), 64, b'')", ""),
    Attack("a kernel module from a file", "sc(313, 0, b'', 0)", ""),
    Attack("another kernel", "sc(246, 0, 0, None, 0)", ""),
    Attack("reboot", "sc(169, 0xfee1dead, 672274793, 0)", ""),
    Attack("set the clock", "time.clock_settime(time.CLOCK_REALTIME, time.time())", "root"),
    Attack("adjust the clock", "sc(159, bytes(208))", ""),
    Attack("name the machine", "socket.sethostname(socket.gethostname())", "root"),
    Attack("a kernel setting", "open('/proc/sys/vm/swappiness', 'r+')", "root"),
    Attack("the trigger of /proc", "open('/proc/sysrq-trigger', 'w')", ""),
    Attack("a control group", "os.listdir('/sys/fs/cgroup')"),
    Attack("the kernel's messages", "sc(103, 3, ctypes.create_string_buffer(64), 64)", "root"),
    Attack("ports", "sc(172, 3)", ""),
    Attack("its execution domain", "sc(135, 0x0040000)"),
    Attack("local descriptors", "sc(154, 0, ctypes.create_string_buffer(64), 64)"),
    Attack("secret memory", "sc(447, 0)", ""),
    Attack("memory that is a file", "sc(319, b'x', 0)"),
    Attack("shared memory of System V", "sc(31, sc(29, 0, 4096, 0o1600), 0, None)"),
    Attack("a message queue", "(sc(240, b'agl-battery', 0o102, 0o600, None), sc(241, b'agl-battery'))"),
    Attack("pages into a pipe", "sc(278, 1, None, 0, 0)"),
    Attack("swap", "sc(167, b'/x', 0)", ""),
    Attack("type into a terminal", "fcntl.ioctl(0, 0x5412, b'x')", ""),
    Attack("type into a terminal with high bits", "sc(16, 0, 0x1_0000_5412, b'x')", ""),
    Attack("take a controlling terminal", "os.open('/dev/tty', os.O_RDWR)", ""),
    Attack("be dumpable again", "(libc.prctl(4, 0), 1 / (libc.prctl(4, 1) == 0))"),
    Attack(
        "the other system call table's door",
        "def attack():\n    code = bytes.fromhex('b814000000cd80c3')  # mov eax, 20 (getpid); int 0x80; ret\n"
        "    page = mmap.mmap(-1, 4096, prot=7)\n    page.write(code)\n"
        "    where = ctypes.addressof(ctypes.c_char.from_buffer(page))\n    return ctypes.CFUNCTYPE(ctypes.c_int)(where)()",
        "",
    ),
]

RESOURCES = [
    Attack(
        "a fork bomb",
        "def attack():\n    made = 0\n    while made < 2000:\n        if os.fork() == 0:\n            time.sleep(600)\n        made += 1\n    return made",
        "",
    ),
    Attack(
        "a bomb of threads",
        "def attack():\n    for _ in range(2000):\n        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n    return 2000",
        "",
    ),
    Attack("much memory", "len(bytearray(4 << 30))", ""),
    Attack("much memory that is touched", "[bytearray(b'x' * (32 << 20)) for _ in range(200)]", "", ("memory",)),
    Attack(
        "much memory in many processes",
        "def attack():\n    for _ in range(8):\n        if os.fork() == 0:\n            kept = bytearray(b'x' * (200 << 20))\n"
        "            time.sleep(600)\n    time.sleep(600)",
        "",
        ("memory",),
        only="bubblewrap",
    ),
    Attack("a loop for ever", "def attack():\n    while True:\n        pass", "", ("time",), 1.0),
    Attack("sleep for ever", "time.sleep(600)", "", ("time",), 1.0),
    Attack(
        "ignore every signal",
        "def attack():\n    for n in range(1, 65):\n        try:\n            signal.signal(n, signal.SIG_IGN)\n"
        "        except (OSError, ValueError):\n            pass\n    time.sleep(600)",
        "",
        ("time",),
        1.0,
    ),
    Attack(
        "one large file",
        "def attack():\n    with open('big', 'wb') as file:\n        for _ in range(2000):\n            file.write(bytes(1 << 20))",
        "",
        ("disk",),
    ),
    Attack(
        "many files",
        "def attack():\n    for n in range(20_000):\n        open('f%d' % n, 'wb').write(bytes(1 << 16))\n    time.sleep(5)",
        "",
        ("disk",),
    ),
    Attack(
        "many empty folders",
        "def attack():\n    for n in range(10_000):\n        os.mkdir('d%d' % n)\n    time.sleep(5)",
        "",
        ("disk",),
    ),
    Attack(
        "large temporary files",
        "def attack():\n    import tempfile\n    kept = [tempfile.NamedTemporaryFile() for _ in range(50)]\n"
        "    for file in kept:\n        file.write(bytes(16 << 20))\n    time.sleep(5)",
        "",
        ("disk",),
    ),
    Attack("a file with a hole", "os.truncate(os.open('hole', os.O_CREAT | os.O_RDWR), 1 << 40)", ""),
    Attack("all descriptors", "[os.dup(0) for _ in range(4000)]", ""),
    Attack(
        "endless output", "def attack():\n    line = 'x' * 65536\n    while True:\n        print(line)", "", ("output",)
    ),
    Attack("endless errors", "def attack():\n    while True:\n        os.write(2, bytes(65536))", "", ("output",)),
    Attack(
        "endless recursion",
        "def attack():\n    sys.setrecursionlimit(10**9)\n    def f():\n        return f()\n    f()",
        "",
        ("memory", "time"),
        3.0,
    ),
    Attack("raise a limit", "resource.setrlimit(resource.RLIMIT_NPROC, (5000, 5000))", "root"),
    Attack("raise a limit of memory", "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "user"),
    Attack("a core file", "def attack():\n    resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))", "root"),
    Attack("lock memory", "libc.mlockall(3) == 0 or 1/0", "root"),
    Attack(
        "stay after the time",
        "def attack():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            open('daemon', 'w').close()\n            while True:\n                time.sleep(0.01)\n    time.sleep(600)",
        "",
        ("time",),
        1.0,
        "bubblewrap",
    ),
    Attack(
        "stay after the end",
        "def attack():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            os.execv('/usr/bin/sleep', ['agl-battery-daemon', '600'])\n        os._exit(0)\n    os.wait()\n    raise SystemExit('left')",
        "",
        only="bubblewrap",
    ),
    Attack(
        "forge the report",
        "def attack():\n    for n in range(3, 64):\n        try:\n            os.write(n, b'0')\n            return n\n        except OSError:\n            pass\n    raise OSError('none')",
        "",
    ),
]

PYTHON = [
    Attack(
        "the dunder walk",
        "def attack():\n    for kind in ().__class__.__base__.__subclasses__():\n        if kind.__name__ == 'Popen':\n"
        "            out = kind(['cat', P['public']], stdout=-1, stderr=-1).communicate()[0]\n            assert out\n            return out\n"
        "    raise OSError('no Popen')",
    ),
    Attack("a shell", "1 / (os.system('cat %s >/dev/null 2>&1' % P['public']) == 0)"),
    Attack(
        "frames of the loader",
        "[f for f in [sys._getframe(i) for i in range(1, 5)] if 'request' in f.f_locals and f.f_locals['request'].get('secret')][0]",
        "",
    ),
    Attack("import of the product's settings", "__import__('agentlightning')", ""),
    Attack("a library by ctypes", "ctypes.CDLL(P['open_dir'] + '/evil.so')", ""),
    Attack(
        "a program dropped and started",
        "def attack():\n    open('run', 'w').write('#!/bin/sh\\ncat %s' % P['public'])\n    os.chmod('run', 0o755)\n"
        "    return subprocess.check_output(['./run'])",
    ),
]

ATTACKS = [*FILES, *PROCESSES, *NETWORK, *KERNEL, *RESOURCES, *PYTHON]
PRELUDE += """
import stat
def _is_folder(number):
    try:
        return stat.S_ISDIR(os.fstat(number).st_mode)
    except OSError:
        return False
"""
