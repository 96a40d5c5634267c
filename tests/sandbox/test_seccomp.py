"""The filter does what it says, on processors that are not here too: it is run by a small model of the kernel's."""

import errno
import platform
import struct

import pytest

from gem.sandbox.seccomp import MACHINES, filter_program

ALLOW, REFUSE, MISSING = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
UNSUPPORTED = 0x50000 | errno.ENOTSUP
LOAD, JUMP, AND, RETURN = 0x20, 0x05, 0x54, 0x06
TESTS = {0x15: lambda a, b: a == b, 0x35: lambda a, b: a >= b, 0x45: lambda a, b: bool(a & b)}


def answer(program, audit, number, *arguments):
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    value, at = 0, 0
    while True:
        code, if_so, if_not, operand = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == AND:
            value &= operand
        elif code == JUMP:
            at += operand
        else:
            at += if_so if TESTS[code](value, operand) else if_not


@pytest.fixture(params=MACHINES)
def machine(request):
    numbers, program = MACHINES[request.param], filter_program(request.param)
    return numbers, lambda number, *arguments: answer(program, numbers.audit, number, *arguments)


@pytest.fixture(params=MACHINES)
def alone(request):
    numbers, program = MACHINES[request.param], filter_program(request.param, namespaces=False)
    return numbers, lambda number, *arguments: answer(program, numbers.audit, number, *arguments)


def test_calls_of_the_list_are_refused_and_others_are_not(machine):
    numbers, ask = machine
    special = {numbers.clone, numbers.socket, numbers.socketpair, 435}
    for number in range(600):
        if number not in special:
            assert ask(number) == (REFUSE if number in numbers.refused else ALLOW)


def test_new_processes_are_allowed_and_new_namespaces_are_not(machine):
    numbers, ask = machine
    assert ask(numbers.clone, 17) == ALLOW
    assert ask(numbers.clone, 0x3D0F00) == ALLOW  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask(numbers.clone, flag | 17) == REFUSE
    assert ask(435) == MISSING


def test_families_of_sockets(machine):
    numbers, ask = machine
    for number in (numbers.socket, numbers.socketpair):
        assert [family for family in range(64) if ask(number, family) == ALLOW] == [1, 2, 10]


def test_leases_and_watches_of_files_are_refused_and_locks_of_records_are_not(machine):
    numbers, ask = machine
    assert [command for command in range(2_000) if ask(numbers.fcntl, 0, command) != ALLOW] == [1024, 1026]
    assert ask(numbers.fcntl, 1024, 6) == ALLOW  # the second argument is the command


def test_without_namespaces_what_all_processes_share_is_refused_too(alone):
    numbers, ask = alone
    special = {numbers.clone, numbers.socketpair, *numbers.attributes, 435}
    assert len(numbers.shared) > 15
    for number in {*range(600)} - special:
        assert ask(number) == (REFUSE if number in (*numbers.refused, *numbers.shared) else ALLOW)
    assert {ask(number) for number in numbers.attributes} == {UNSUPPORTED}


def test_without_namespaces_sockets_are_pairs_that_can_reach_nobody_else(alone):
    numbers, ask = alone
    flags = 0x80800  # close-on-exec, non-blocking
    allowed = {
        (family, kind) for family in range(64) for kind in range(16) if ask(numbers.socketpair, family, kind) == ALLOW
    }
    assert allowed == {(1, 1), (1, 5)}
    assert ask(numbers.socketpair, 1, 1 | flags) == ALLOW
    assert ask(numbers.socketpair, 1, 2 | flags) == REFUSE


def test_without_namespaces_a_process_changes_only_itself(alone):
    numbers, ask = alone
    for number in numbers.of_itself:
        assert (ask(number, 0, 9), ask(number, 1), ask(number, 0xFFFFFFFF)) == (ALLOW, REFUSE, REFUSE)
    asked = {
        (kind, process): ask(numbers.setpriority, kind, process, 5) == ALLOW for kind in range(3) for process in (0, 7)
    }
    assert [key for key, allowed in asked.items() if allowed] == [(0, 0)]


def test_another_interface_of_the_kernel_is_refused():
    program = filter_program("x86_64")
    assert answer(program, 0x40000003, 0) == REFUSE  # 32 bits
    assert answer(program, MACHINES["x86_64"].audit, 0x40000000) == REFUSE  # x32


def test_this_processor_is_known():
    assert platform.machine() in MACHINES
