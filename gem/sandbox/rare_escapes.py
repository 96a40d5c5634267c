"""More attempts to get out of a sandbox, by system calls and files that programs rarely use.

The part that comes first in each program, and the targets, are those of :mod:`gem.sandbox.escapes`.
"""

from __future__ import annotations

from gem.sandbox.attempt import Attempt, goes_on, victim_goes_on

_MOUNT_TABLE = """
for line in read("/proc/self/mountinfo").decode().splitlines():
    words = line.split()
    if words[-3] in ("tmpfs", "devtmpfs", "proc"):
        continue
    options = words[-1].split(",")
    layers = [part for option in options for part in option.partition("=")[2].split(":") if part.startswith("/")]
    escaped_if([path for path in (words[3], *layers) if not os.path.exists(path)])
"""

_PIPES = """
import fcntl
limit = TARGETS["memory_bytes"]
def fill():
    held, kept = 0, []
    try:
        while True:
            reader, writer = os.pipe2(os.O_NONBLOCK)
            kept.append((reader, writer))
            works(fcntl.fcntl, writer, 1031, 1 << 20)
            while True:
                held += os.write(writer, bytes(1 << 16))
    except BlockingIOError:
        return held, kept
    except OSError:
        return -1, kept
total = 0
for _ in range(TARGETS["processes"] - 2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        total, held, all_kept = 0, 0, []
        while held >= 0 and len(all_kept) < 100:
            held, kept = fill()
            all_kept += kept
            total += max(0, held)
        os.write(writer, str(total).encode())
        time.sleep(1)
        os._exit(0)
    os.close(writer)
    total += int(os.read(reader, 20) or 0)
escaped_if(total > limit)
"""

_SOCKETS = """
limit, total = TARGETS["memory_bytes"], 0
for _ in range(TARGETS["processes"] - 2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        held, kept = 0, []
        try:
            for _ in range(110):
                kept.append(socket.socketpair())
                for end in kept[-1]:
                    end.setblocking(False)
                    try:
                        while True:
                            held += end.send(bytes(1 << 16))
                    except BlockingIOError:
                        pass
        except OSError:
            pass
        os.write(writer, str(held).encode())
        time.sleep(2)
        os._exit(0)
    os.close(writer)
    total += int(os.read(reader, 20) or 0)
escaped_if(total > limit)
"""

_FILES = """
os.mkdir("many")
made = 0
try:
    for at in range(40_000):
        os.close(os.open(f"many/{at}", os.O_CREAT))
        made += 1
except OSError:
    pass
escaped_if(made > 30_000)
"""

_WATCH_PROGRAMS = """
watch = libc.inotify_init1(0)
escaped_if(watch >= 0 and libc.inotify_add_watch(watch, TARGETS["prefix"].encode() + b"/bin", 0xFFF) >= 0)
"""

_HANDLES = """
try:
    handle = os.pidfd_open(os.getppid() or 1)
except OSError:
    handle = -1
escaped_if(handle >= 0 and any(call(438, 438, handle, at, 0) for at in range(64)))
"""

_FILE_HANDLE = """
buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
mount = ctypes.c_int()
name = sys.executable.encode()
got = libc.name_to_handle_at(-100, name, buffer, ctypes.byref(mount), 0x400) == 0
escaped_if(got and libc.open_by_handle_at(os.open(os.path.dirname(name), 0), buffer, 0) >= 0)
"""

_READ_MEMORY = """
here, there = ctypes.create_string_buffer(8), struct.pack("=QQ", 0x400000, 8)
local = struct.pack("=QQ", ctypes.addressof(here), 8)
for process in {os.getppid() or 1, 1, TARGETS["victim"]}:
    error = 0
    if libc.process_vm_readv(process, local, 1, there, 1, 0) < 0:
        error = ctypes.get_errno()
    escaped_if(error in (0, 14))  # 14: it may, but nothing is at this address
"""

_FAMILIES = """
usual = {socket.AF_UNSPEC, socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}
escaped_if([f for f in range(46) for kind in (1, 2, 3, 5) if f not in usual and works(socket.socket, f, kind)])
"""

_PROTOCOLS = """
pairs = [(kind, number) for kind in (1, 2, 3, 5, 6) for number in range(256) if number not in (0, 1, 6, 17, 58)]
escaped_if([pair for pair in pairs for family in (2, 10) if works(socket.socket, family, *pair)])
"""

_READ_ONLY_MAPPING = """
import mmap
name = sys.executable
with open(name, "rb") as file:
    mapping = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    before = mapping[:4]
    for line in read("/proc/self/maps").decode().splitlines():
        if os.path.realpath(name) in line and " r--s " in line:
            try:
                with open("/proc/self/mem", "r+b", 0) as memory:
                    memory.seek(int(line.split("-")[0], 16))
                    memory.write(before[::-1])
            except OSError:
                pass
    escaped_if(mapping[:4] != before)
"""

_SIGNAL_BY_HANDLE = """
try:
    signal.pidfd_send_signal(os.pidfd_open(TARGETS["victim"]), signal.SIGCONT)
except OSError:
    pass
"""

_SIGNAL_BY_PIPE = """
import fcntl
reader, writer = os.pipe()
try:
    fcntl.fcntl(reader, 8, TARGETS["victim"])
    fcntl.fcntl(reader, 10, signal.SIGCONT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writer, b"x")
except OSError:
    pass
time.sleep(0.1)
"""

_CLONE3 = """
arguments = ctypes.create_string_buffer(struct.pack("=QQQQQ", 0x10000000, 0, 0, 0, 17), 88)
child = libc.syscall(ctypes.c_long(435), arguments, ctypes.c_long(88))
if child == 0:
    os._exit(0)
escaped_if(child > 0)
"""

_OTHER_INTERFACE = """
escaped_if(not arm and libc.syscall(ctypes.c_long(0x40000000 | 272), ctypes.c_long(0x10000000)) == 0)
"""

_SYSTEM_CALL_OF_32_BITS = """
import mmap
if not arm:  # unshare of a user namespace, by the interrupt of old
    code = bytes.fromhex("53b836010000bb00000010cd805bc3")
    place = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    place.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(place))
    child = os.fork()
    if child == 0:  # where there is no such interface, it is a fault
        os._exit(42 if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 0 else 0)
    escaped_if(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42)
"""

_DEAF_PROCESS = """
name = f"60.{int(TARGETS['token'][:6], 16)}"
if os.fork() == 0:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    libc.prctl(1, 0, 0, 0, 0)
    for number in range(1, 65):
        works(signal.signal, number, signal.SIG_IGN) if number not in (9, 19, 32, 33) else None
    os.execvp("sleep", ["sleep", name])
time.sleep(0.1)
"""


_OTHERS = "for process in {os.getppid(), TARGETS['victim']} - {0, 1}:\n    escaped_if(%s)"

RARE = (
    # Files.
    Attempt("read where a link of the user leads", "escaped_if(works(os.readlink, TARGETS['folder'] + '/link'))"),
    Attempt("list the attributes of a file of the user", "escaped_if(works(os.listxattr, TARGETS['secret']))"),
    Attempt("see how full the disk of the user is", "escaped_if(works(os.statvfs, TARGETS['folder']))"),
    Attempt("learn of folders outside from the mount table", _MOUNT_TABLE),
    Attempt("lock a program that others run", "import fcntl; fcntl.flock(open(sys.executable), 6); escaped_if(True)"),
    Attempt(
        "take a lease on a program that others run",
        "import fcntl; fcntl.fcntl(open(sys.executable), 1024, 0); escaped_if(True)",
    ),
    Attempt(
        "be told when others change a folder",
        "import fcntl; fcntl.fcntl(os.open('/usr', 0), 1026, 0x3f); escaped_if(True)",
    ),
    Attempt("see which programs others start", _WATCH_PROGRAMS),
    Attempt("watch a whole file system", "escaped_if(call(300, 262, 0, 0))"),
    Attempt("open a file by its handle", _FILE_HANDLE),
    Attempt("write to a file that is mapped to be read", _READ_ONLY_MAPPING),
    Attempt("make files without end", _FILES, seconds=9.0),
    # Memory that no process holds.
    Attempt("hold memory in pipes", _PIPES, seconds=9.0),
    Attempt("hold memory in sockets", _SOCKETS, seconds=9.0),
    Attempt("hold memory that nobody can see", "escaped_if(call(447, 447, 0))"),
    Attempt("share a message queue with other runs (SysV)", "escaped_if(call(68, 186, 0x47, 0o1600))"),
    Attempt("share semaphores with other runs (SysV)", "escaped_if(call(64, 190, 0x47, 1, 0o1600))"),
    Attempt(
        "share a message queue with other runs (POSIX)",
        "name = ctypes.create_string_buffer(b'gem-escape')\n"
        "escaped_if(call(240, 180, ctypes.addressof(name), 0o102, 0o600, 0))\n"
        "call(241, 181, ctypes.addressof(name))",
    ),
    # Other processes.
    Attempt("take the handles of its parent", _HANDLES),
    Attempt("read the memory of other processes", _READ_MEMORY),
    Attempt("compare itself with other processes", _OTHERS % "call(312, 272, os.getpid(), process, 0, 0, 0)"),
    Attempt(
        "read the locks of other processes",
        _OTHERS % "libc.syscall(274 if not arm else 100, process, "
        "ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())) == 0",
    ),
    Attempt("move the memory of other processes", _OTHERS % "call(279, 239, process, 0, 0, 0, 0, 0)"),
    Attempt("slow the disk of other processes down", _OTHERS % "call(251, 30, 1, process, 3 << 13)"),
    Attempt("put other processes last", _OTHERS % "works(os.sched_setscheduler, process, 5, os.sched_param(0))"),
    Attempt("read the limits of other processes", _OTHERS % "works(resource.prlimit, process, resource.RLIMIT_CORE)"),
    Attempt("signal a process by its handle", _SIGNAL_BY_HANDLE, victim_goes_on, plain=False),
    Attempt("signal a process by way of a pipe", _SIGNAL_BY_PIPE, victim_goes_on, plain=False),
    Attempt("leave a process behind that is deaf to signals", _DEAF_PROCESS, goes_on),
    Attempt(
        "be the last to be killed for want of memory",
        "escaped_if(works(lambda: open('/proc/self/oom_score_adj', 'w', 1).write('-1000\\n')))",
    ),
    Attempt("go before all others", "escaped_if(works(os.setpriority, os.PRIO_PROCESS, 0, -5))"),
    Attempt("go before all others, in real time", "escaped_if(works(os.sched_setscheduler, 0, 1, os.sched_param(1)))"),
    # Network.
    Attempt("open a socket of an unusual family", _FAMILIES),
    Attempt("open a socket of an unusual protocol", _PROTOCOLS),
    Attempt(
        "connect to this machine (IPv6)",
        "escaped_if(connects(socket.AF_INET6, ('::ffff:127.0.0.1', TARGETS['port'])))",
    ),
    # Rights and the kernel.
    Attempt("be another user", "escaped_if(works(os.setuid, os.getuid() + 1))"),
    Attempt("keep its rights when it starts a program", "escaped_if(libc.prctl(28, 0x2F, 0, 0, 0) == 0)"),
    Attempt("make a namespace by the newer call", _CLONE3),
    Attempt("make a namespace by the interface of x32", _OTHER_INTERFACE),
    Attempt("make a namespace by a call of 32 bits", _SYSTEM_CALL_OF_32_BITS),
    Attempt(
        "enter the namespaces of the first process",
        "escaped_if(libc.setns(os.pidfd_open(1), 0x20000) == 0)",
        plain=False,
    ),
    Attempt(
        "copy the tree of mounts",
        "name = ctypes.create_string_buffer(b'/')\nescaped_if(call(428, 428, -100, ctypes.addressof(name), 1))",
    ),
    Attempt(
        "change the root by turning mounts over",
        "escaped_if(libc.syscall(41 if arm else 155, b'/tmp', b'/tmp') == 0)",
        plain=False,
    ),
    Attempt(
        "list the mounts by the newer call",
        "request = ctypes.create_string_buffer(struct.pack('=IIQQ', 24, 0, "
        "0xFFFFFFFFFFFFFFFF, 0), 32)\nplace = ctypes.create_string_buffer(4096)\n"
        "escaped_if(libc.syscall(458, request, place, 512, 0) > 64)",
    ),
    Attempt(
        "read the kernel's log",
        "text = ctypes.create_string_buffer(4096)\nescaped_if(call(103, 116, 3, ctypes.addressof(text), 4096))",
    ),
    Attempt("reach the ports of the hardware", "escaped_if(not arm and libc.syscall(172, 3) == 0)"),
    Attempt(
        "change the segments of the processor",
        "place = ctypes.create_string_buffer(4096)\nescaped_if(not arm and libc.syscall(154, 0, place, 4096) >= 0)",
    ),
    Attempt(
        "type into a terminal", "import fcntl\nescaped_if(any(works(fcntl.ioctl, at, 0x5412, b'x') for at in range(3)))"
    ),
    Attempt("switch accounting off", "escaped_if(call(163, 89, 0))", plain=False),
)
