"""A filter of system calls, as a program for the kernel's own small machine (classic BPF).

A program in a sandbox can only reach the kernel through system calls. The filter refuses those that a program which
computes something does not need and that have been ways out: new namespaces, mounts, tracing, io_uring, bpf, keys,
and sockets of families that a network namespace does not hold back (vsock, say). It refuses memory that no limit
counts, too. It is a second wall: the first one are the namespaces, and the missing capabilities.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What differs between processors: the kernel's mark of it, and the numbers of system calls."""

    audit: int
    clone: int
    socket: int
    socketpair: int
    refused: tuple[int, ...]


# In both: open_tree .. fspick, io_uring, mount_setattr, open_tree_attr, memfd_secret, keys of the mount interface.
_SAME = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 447, 467)

MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        clone=56,
        socket=41,
        socketpair=53,
        refused=(
            *(29, 30, 64, 68, 71),  # shmget shmat semget msgget msgctl
            *(101, 310, 311, 312),  # ptrace process_vm_readv process_vm_writev kcmp
            *(135, 136, 139, 153, 154, 155, 156),  # personality ustat sysfs vhangup modify_ldt pivot_root _sysctl
            *(161, 163, 164, 165, 166, 167, 168, 169),  # chroot acct settimeofday mount umount2 swapon swapoff reboot
            *(103, 170, 171, 172, 173, 179),  # syslog sethostname setdomainname iopl ioperm quotactl
            *(175, 176, 246, 313, 320),  # init_module delete_module kexec_load finit_module kexec_file_load
            *(212, 248, 249, 250),  # lookup_dcookie add_key request_key keyctl
            *(272, 308, 303, 304),  # unshare setns name_to_handle_at open_by_handle_at
            *(298, 300, 319, 321, 323),  # perf_event_open fanotify_init memfd_create bpf userfaultfd
            *_SAME,
        ),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        clone=220,
        socket=198,
        socketpair=199,
        refused=(
            *(194, 196, 190, 186, 187),  # shmget shmat semget msgget msgctl
            *(117, 270, 271, 272),  # ptrace process_vm_readv process_vm_writev kcmp
            *(92, 58, 41, 51, 89, 170),  # personality vhangup pivot_root chroot acct settimeofday
            *(40, 39, 224, 225, 142),  # mount umount2 swapon swapoff reboot
            *(116, 161, 162, 60),  # syslog sethostname setdomainname quotactl
            *(105, 106, 104, 273, 294),  # init_module delete_module kexec_load finit_module kexec_file_load
            *(18, 217, 218, 219),  # lookup_dcookie add_key request_key keyctl
            *(97, 268, 264, 265),  # unshare setns name_to_handle_at open_by_handle_at
            *(241, 262, 279, 280, 282),  # perf_event_open fanotify_init memfd_create bpf userfaultfd
            *_SAME,
        ),
    ),
}

_CLONE3 = 435  # on every processor; its flags are in memory, where a filter cannot look
_NEW_NAMESPACES = 0x7E020080  # cgroup, uts, ipc, user, pid, net, mount and time
_FAMILIES = (1, 2, 10)  # unix, inet and inet6
_X32 = 0x40000000  # marks calls of another interface of x86_64, by which the numbers above would be passed by

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where they stand in what the filter is given
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


def filter_program(machine: str) -> bytes:
    """Return the filter: instructions of 8 bytes.

    Args:
        machine: of :data:`MACHINES`.
    """
    numbers = MACHINES[machine]
    refuse, missing = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS

    def step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_so, if_not, value)

    program = [
        step(_LOAD, _ARCHITECTURE),
        step(_EQUAL, numbers.audit, 1, 0),
        step(_RETURN, refuse),
        step(_LOAD, _NUMBER),
        step(_AT_LEAST, _X32, 0, 1),
        step(_RETURN, refuse),
        step(_EQUAL, _CLONE3, 0, 1),
        step(_RETURN, missing),  # the C library then calls clone, whose flags can be seen
    ]
    for number in numbers.refused:
        program += [step(_EQUAL, number, 0, 1), step(_RETURN, refuse)]
    program += [
        step(_EQUAL, numbers.clone, 0, 4),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        step(_RETURN, refuse),
        step(_RETURN, _ALLOW),
    ]
    for number in (numbers.socket, numbers.socketpair):
        program += [
            step(_EQUAL, number, 0, 2 + len(_FAMILIES)),
            step(_LOAD, _FIRST_ARGUMENT),
            *(step(_EQUAL, family, len(_FAMILIES) - at, 0) for at, family in enumerate(_FAMILIES)),
            step(_RETURN, refuse),
        ]
        # A family that is allowed jumps over the refusal, to the checks that follow; they compare a number that is no
        # longer loaded, so load it again.
        program.append(step(_LOAD, _NUMBER))
    program.append(step(_RETURN, _ALLOW))
    return b"".join(program)
