"""The filter does what it says, on processors that are not here too: it is run by a small model of the kernel's."""

import errno
import platform
import struct

import pytest

from gem.sandbox.seccomp import MACHINES, filter_program

ALLOW, REFUSE, MISSING = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
LOAD, RETURN = 0x20, 0x06
TESTS = {0x15: lambda a, b: a == b, 0x35: lambda a, b: a >= b, 0x45: lambda a, b: bool(a & b)}


def answer(program, audit, number, argument=0):
    data = struct.pack("=IIQ6Q", number, audit, 0, argument, 0, 0, 0, 0, 0)
    value, at = 0, 0
    while True:
        code, if_so, if_not, operand = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            (value,) = struct.unpack_from("=I", data, operand)
        else:
            at += if_so if TESTS[code](value, operand) else if_not


@pytest.fixture(params=MACHINES)
def machine(request):
    numbers, program = MACHINES[request.param], filter_program(request.param)
    return numbers, lambda number, argument=0: answer(program, numbers.audit, number, argument)


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


def test_another_interface_of_the_kernel_is_refused():
    program = filter_program("x86_64")
    assert answer(program, 0x40000003, 0) == REFUSE  # 32 bits
    assert answer(program, MACHINES["x86_64"].audit, 0x40000000) == REFUSE  # x32


def test_this_processor_is_known():
    assert platform.machine() in MACHINES
