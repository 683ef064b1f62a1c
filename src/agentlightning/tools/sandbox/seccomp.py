"""The system calls that sandboxed Python may make, as a filter for the kernel. Knows no processes.

An allow-list: what is not named here, or not yet invented, answers ENOSYS. What is left out on purpose, and why:

* `socket`, `connect`, `bind`: no network, and no Unix sockets of the host, which Landlock would let through. A
  `socketpair` of streams stays, asyncio needs one; one of datagrams could be sent to any address.
* `ptrace`, `process_vm_*`, `kcmp`, `pidfd_*`: other processes' memory and descriptors.
* `mount` and its successors, `unshare`, `setns`, `pivot_root`, `chroot`, `clone` with a `CLONE_NEW*`: namespaces.
* `io_uring_*`: does what the filter forbids, from inside the kernel.
* `bpf`, `perf_event_open`, `userfaultfd`, `keyctl`, kernel modules, `kexec_*`: the kernel itself.
* `memfd_create`, `shmget`, `mq_open`: memory that no limit counts. `inotify`, `fanotify`: watching others.
* `setuid` and relatives, modes with setuid bits, `ioctl` beyond the harmless, `F_SETOWN` (signals through SIGIO).
* `openat2`, `clone3`: their arguments lie behind pointers, where no filter can look; libc does without.

`strict` is for running without namespaces: then also no new processes and programs, no signals to others, and nothing
that changes a file by its path in a way that Landlock does not see (modes, owners, times).
"""

from __future__ import annotations

import errno
import tempfile
from typing import Any

from agentlightning.kit.errors import MissingExtraError

PID_PLACE = 0x5EC0_A91D
"""Stands for the process's own number in a strict filter; who loads it puts the number in."""

_ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 pipe
pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime stat lstat fstat newfstatat statx statfs
fstatfs access faccessat faccessat2 readlink readlinkat getcwd getdents getdents64 chdir fchdir rename renameat
renameat2 rmdir link linkat unlink unlinkat symlink symlinkat ftruncate fallocate fsync fdatasync sync_file_range
sendfile copy_file_range fadvise64 readahead flock umask brk mmap mremap munmap mprotect madvise msync mincore
membarrier futex futex_waitv set_robust_list get_robust_list rseq set_tid_address gettid getpid getppid getpgrp
getpgid getsid setsid setpgid exit exit_group wait4 waitid restart_syscall sched_yield sched_getaffinity
sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu rt_sigaction rt_sigprocmask
rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause alarm getitimer setitimer timer_create
timer_settime timer_gettime timer_getoverrun timer_delete nanosleep clock_nanosleep clock_gettime clock_getres
gettimeofday time times getuid geteuid getgid getegid getresuid getresgid getgroups getrusage getrlimit setrlimit
uname sysinfo getrandom arch_prctl recvfrom recvmsg sendmsg recvmmsg shutdown getsockname getpeername getsockopt
landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""

_REFUSED = """
socket connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot
unshare setns setuid setgid setreuid setregid setresuid setresgid setgroups keyctl add_key request_key bpf
perf_event_open userfaultfd io_uring_setup init_module finit_module delete_module kexec_load reboot swapon
settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname acct mknod mknodat shmget msgget semget
"""
"""Answered with EPERM, which reads better than ENOSYS in a traceback."""

_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1024, 1025, 1030, 1031, 1032)
_IOCTL = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # is it a terminal, its size, bytes waiting, blocking, cloexec
_PRCTL = (3, 15, 16, 23, 38, 39, 0x53564D41)  # names, no_new_privs; reading
_NAMESPACES = 0x7E02_0080  # CLONE_NEW*
_THREAD = 0x0001_0000
_SETID = 0o6000


def load_library() -> Any:
    """The bindings of libseccomp.

    Raises:
        MissingExtraError: They, or the library, are not there.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(
            f"seccomp cannot be used: {error}.",
            hint="Run: pip install 'agentlightning[tools]', and install libseccomp2.",
        ) from error
    return pyseccomp


def build_filter(*, strict: bool) -> bytes:
    """The program as the kernel reads it (`struct sock_filter[]`); `strict` for running without namespaces.

    Raises:
        MissingExtraError: libseccomp is missing.
    """
    library = load_library()
    made = _Filter(library)
    for name in _ALLOWED.split():
        made.allow(name)
    for name in _REFUSED.split():
        made.refuse(name)
    made.common()
    (made.alone if strict else made.family)()
    return made.export()


class _Filter:
    def __init__(self, library: Any) -> None:
        self._library = library
        self._filter = library.SyscallFilter(defaction=library.ERRNO(errno.ENOSYS))

    def allow(self, name: str, *conditions: Any) -> None:
        self._add(self._library.ALLOW, name, *conditions)

    def refuse(self, name: str) -> None:
        self._add(self._library.ERRNO(errno.EPERM), name)

    def _add(self, action: Any, name: str, *conditions: Any) -> None:
        try:
            if self._library.resolve_syscall(self._library.Arch.NATIVE, name) < 0:
                return  # this architecture has no such call
        except (ValueError, OSError):
            return
        self._filter.add_rule(action, name, *conditions)

    def is_(self, position: int, value: int) -> Any:
        return self._library.Arg(position, self._library.EQ, value)

    def masked(self, position: int, mask: int, value: int) -> Any:
        return self._library.Arg(position, self._library.MASKED_EQ, mask, value)

    def common(self) -> None:
        """Allowed with some arguments only."""
        for name, position, values in (("fcntl", 1, _FCNTL), ("ioctl", 1, _IOCTL), ("prctl", 0, _PRCTL)):
            for value in values:
                self.allow(name, self.is_(position, value))
        self.allow("prctl", self.is_(0, 4), self.is_(1, 0))  # not dumpable; never dumpable again
        self.allow("socketpair", self.is_(0, 1), self.masked(1, 0xF, 1))  # AF_UNIX, SOCK_STREAM
        self.allow("sendto", self.is_(4, 0))  # without an address
        self.allow("prlimit64", self.is_(0, 0))
        self.allow("sched_setaffinity", self.is_(0, 0))
        for name, position in (("open", 2), ("openat", 3), ("creat", 1), ("mkdir", 1), ("mkdirat", 2), ("fchmod", 1)):
            self.allow(name, self.masked(position, _SETID, 0))

    def family(self) -> None:
        """With namespaces around it: its own processes, and whatever it likes with its own files."""
        for name in ("fork", "vfork", "execve", "execveat", "kill", "tgkill", "tkill", "truncate"):
            self.allow(name)
        for name in ("utime", "utimes", "futimesat", "utimensat", "getxattr", "lgetxattr", "fgetxattr", "listxattr"):
            self.allow(name)
        self.allow("clone", self.masked(0, _NAMESPACES & ~0xFF, 0))
        for name, position in (("chmod", 1), ("fchmodat", 2), ("fchmodat2", 2)):
            self.allow(name, self.masked(position, _SETID, 0))

    def alone(self) -> None:
        """Without namespaces: one process, threads, signals to itself, files changed through descriptors only."""
        self.allow("clone", self.masked(0, (_NAMESPACES & ~0xFF) | _THREAD, _THREAD))
        for name in ("kill", "tgkill"):
            self.allow(name, self.is_(0, PID_PLACE))
        self.allow("utimensat", self.is_(1, 0))  # of an open file

    def export(self) -> bytes:
        with tempfile.TemporaryFile() as file:
            self._filter.export_bpf(file)
            file.seek(0)
            return file.read()
