"""A filter of system calls, as a program for the kernel's own small machine (classic BPF).

A program in a sandbox can only reach the kernel through system calls. The filter refuses those that a program which
computes something does not need and that have been ways out: new namespaces, mounts, tracing, io_uring, bpf, keys,
and sockets of families that a network namespace does not hold back (vsock, say) or of rarely used protocols. It refuses
memory that no limit counts, too, and locks, leases and watches of files that others use. It is a second wall: the first
one are the namespaces, and the missing capabilities.

Where there is Landlock in the place of namespaces, it also refuses what Landlock lets through and they would not:
sockets, memory and messages that all processes share, and changes of other processes' limits and priorities and of the
mode, owner and attributes of files.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What differs between processors: the kernel's mark of it, and the numbers of system calls.

    Attributes:
        refused: are refused always.
        shared: are refused where there are no namespaces, since they reach what all processes share.
        attributes: are called unsupported there, as by a file system without extended attributes.
        of_itself: have a process as first argument; there, 0 is allowed: the caller.
    """

    audit: int
    clone: int
    socket: int
    socketpair: int
    refused: tuple[int, ...]
    shared: tuple[int, ...]
    attributes: tuple[int, ...]
    of_itself: tuple[int, ...]
    setpriority: int
    fcntl: int


# In both: open_tree .. fspick, io_uring, mount_setattr, open_tree_attr, memfd_secret, keys of the mount interface.
_SAME = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 447, 467)
# In both: fchmodat2, statmount, listmount and file_setattr; setxattrat .. removexattrat.
_SAME_SHARED, _SAME_ATTRIBUTES = (452, 457, 458, 469), (463, 464, 465, 466)

MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        clone=56,
        socket=41,
        socketpair=53,
        refused=(
            *(29, 30, 64, 68, 71, 240, 241),  # shmget shmat semget msgget msgctl mq_open mq_unlink
            *(101, 310, 311, 312),  # ptrace process_vm_readv process_vm_writev kcmp
            *(135, 136, 139, 153, 154, 155, 156),  # personality ustat sysfs vhangup modify_ldt pivot_root _sysctl
            *(161, 163, 164, 165, 166, 167, 168, 169),  # chroot acct settimeofday mount umount2 swapon swapoff reboot
            *(103, 170, 171, 172, 173, 179),  # syslog sethostname setdomainname iopl ioperm quotactl
            *(175, 176, 246, 313, 320),  # init_module delete_module kexec_load finit_module kexec_file_load
            *(212, 248, 249, 250),  # lookup_dcookie add_key request_key keyctl
            *(272, 308, 303, 304),  # unshare setns name_to_handle_at open_by_handle_at
            *(298, 300, 319, 321, 323),  # perf_event_open fanotify_init memfd_create bpf userfaultfd
            *(73, 253, 294),  # flock inotify_init inotify_init1
            *_SAME,
        ),
        shared=(
            *(41, 42, 49),  # socket connect bind
            *(31, 65, 66, 67, 69, 70, 220),  # shmctl semop semctl shmdt msgsnd msgrcv semtimedop
            251,  # ioprio_set
            *(90, 91, 268, 92, 93, 94, 260),  # chmod fchmod fchmodat chown fchown lchown fchownat
            *(132, 235, 261, 280),  # utime utimes futimesat utimensat
            *_SAME_SHARED,
        ),
        attributes=(*range(188, 200), *_SAME_ATTRIBUTES),  # setxattr .. fremovexattr
        of_itself=(
            142,
            144,
            203,
            302,
            314,
        ),  # sched_setparam sched_setscheduler sched_setaffinity prlimit64 sched_setattr
        setpriority=141,
        fcntl=72,
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        clone=220,
        socket=198,
        socketpair=199,
        refused=(
            *(194, 196, 190, 186, 187, 180, 181),  # shmget shmat semget msgget msgctl mq_open mq_unlink
            *(117, 270, 271, 272),  # ptrace process_vm_readv process_vm_writev kcmp
            *(92, 58, 41, 51, 89, 170),  # personality vhangup pivot_root chroot acct settimeofday
            *(40, 39, 224, 225, 142),  # mount umount2 swapon swapoff reboot
            *(116, 161, 162, 60),  # syslog sethostname setdomainname quotactl
            *(105, 106, 104, 273, 294),  # init_module delete_module kexec_load finit_module kexec_file_load
            *(18, 217, 218, 219),  # lookup_dcookie add_key request_key keyctl
            *(97, 268, 264, 265),  # unshare setns name_to_handle_at open_by_handle_at
            *(241, 262, 279, 280, 282),  # perf_event_open fanotify_init memfd_create bpf userfaultfd
            *(32, 26),  # flock inotify_init1
            *_SAME,
        ),
        shared=(
            *(198, 203, 200),  # socket connect bind
            *(195, 193, 191, 197, 189, 188, 192),  # shmctl semop semctl shmdt msgsnd msgrcv semtimedop
            30,  # ioprio_set
            *(52, 53, 55, 54, 88),  # fchmod fchmodat fchown fchownat utimensat
            *_SAME_SHARED,
        ),
        attributes=(*range(5, 17), *_SAME_ATTRIBUTES),  # setxattr .. fremovexattr
        of_itself=(
            118,
            119,
            122,
            261,
            274,
        ),  # sched_setparam sched_setscheduler sched_setaffinity prlimit64 sched_setattr
        setpriority=140,
        fcntl=25,
    ),
}

_CLONE3 = 435  # on every processor; its flags are in memory, where a filter cannot look
# New namespaces (cgroup, uts, ipc, user, pid, net, mount and time); and a sibling in the place of a child, whose end
# nobody would wait for.
_REFUSED_CLONES = 0x7E020080 | 0x8000
_REFUSED_FCNTL = (1024, 1026)  # leases of files, and to be told of changes in folders
_FAMILIES = (1, 2, 10)  # unix, inet and inet6
_PROTOCOLS = (0, 1, 6, 17, 58)  # the default one, ICMP, TCP, UDP and ICMPv6
_KINDS = (1, 5)  # of sockets: stream and seqpacket; one of datagrams, even of a pair, can send to any address
_X32 = 0x40000000  # marks calls of another interface of x86_64, by which the numbers above would be passed by

# Where they stand in what the filter is given.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_REFUSE, _MISSING, _UNSUPPORTED = (_FAIL | number for number in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP))


def filter_program(machine: str, namespaces: bool = True) -> bytes:
    """Return the filter: instructions of 8 bytes.

    Args:
        machine: of :data:`MACHINES`.
        namespaces: whether they are the first wall; if not, Landlock is.
    """
    numbers = MACHINES[machine]
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, numbers.audit, 1, 0),
        _step(_RETURN, _REFUSE),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _REFUSE),
        *_answer((_CLONE3,), _MISSING),  # the C library then calls clone, whose flags can be seen
        *_answer(numbers.refused, _REFUSE),
        *_refuse_some(numbers.fcntl, _SECOND_ARGUMENT, _REFUSED_FCNTL),
        _step(_EQUAL, numbers.clone, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _REFUSED_CLONES, 0, 1),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]
    if namespaces:
        for number in (numbers.socket, numbers.socketpair):
            program += _allow_only(number, _FIRST_ARGUMENT, _FAMILIES)
            program += _allow_only(number, _THIRD_ARGUMENT, _PROTOCOLS)
    else:
        program += _answer(numbers.shared, _REFUSE) + _answer(numbers.attributes, _UNSUPPORTED)
        program += _allow_only(numbers.socketpair, _FIRST_ARGUMENT, _FAMILIES[:1])
        program += _allow_only(numbers.socketpair, _SECOND_ARGUMENT, _KINDS, mask=0xF)
        for number in numbers.of_itself:
            program += _allow_only(number, _FIRST_ARGUMENT, (0,))
        for argument in (_FIRST_ARGUMENT, _SECOND_ARGUMENT):  # of a process, namely this one
            program += _allow_only(numbers.setpriority, argument, (0,))
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _answer(numbers: Iterable[int], answer: int) -> list[bytes]:
    """Return steps that give calls of some numbers an answer, and let all others go on to what follows."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        first = ranges.pop()[0] if ranges and ranges[-1][1] >= number - 1 else number
        ranges.append((first, number))
    return _search(ranges, answer)


def _search(ranges: Sequence[tuple[int, int]], answer: int) -> list[bytes]:
    """Return a binary search: when a process sets a filter, the kernel runs it once for each number that there is."""
    if len(ranges) == 1:
        first, last = ranges[0]
        return [_step(_AT_LEAST, first, 0, 2), _step(_AT_LEAST, last + 1, 1, 0), _step(_RETURN, answer)]
    lower, upper = (_search(half, answer) for half in (ranges[: len(ranges) // 2], ranges[len(ranges) // 2 :]))
    middle = ranges[len(ranges) // 2][0]
    return [_step(_AT_LEAST, middle, len(lower) + 1, 0), *lower, _step(_JUMP, len(upper)), *upper]


def _refuse_some(number: int, argument: int, values: Sequence[int]) -> list[bytes]:
    """Return steps that refuse a call if an argument has one of some values."""
    return [
        _step(_EQUAL, number, 0, 4 + len(values)),
        _step(_LOAD, argument),
        *(_step(_EQUAL, value, 1 + len(values) - at, 0) for at, value in enumerate(values)),
        _step(_LOAD, _NUMBER),
        _step(_EQUAL, number, 1, 0),  # which it is
        _step(_RETURN, _REFUSE),
    ]


def _allow_only(number: int, argument: int, values: Sequence[int], mask: int = 0xFFFFFFFF) -> list[bytes]:
    """Return steps that refuse a call unless an argument has one of some values."""
    return [
        _step(_EQUAL, number, 0, 3 + len(values)),
        _step(_LOAD, argument),
        _step(_AND, mask),
        *(_step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)),
        _step(_RETURN, _REFUSE),
        # What is allowed goes on to the checks that follow; they compare a number that is no longer loaded.
        _step(_LOAD, _NUMBER),
    ]
