"""MCPTool with reference servers of the Model Context Protocol, which are programs for node."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gem
from gem.tools.tool_env_wrapper import ToolEnvWrapper

pytest.importorskip("mcp", reason="MCP servers need the package mcp: install gem-adapters[mcp]")

from gem.tools.mcp_tool import MCPTool

if not (shutil.which("npm") and shutil.which("node")):
    pytest.skip("the reference servers need node and npm", allow_module_level=True)

VERSION = "2026.8.31"
PACKAGES = [f"@modelcontextprotocol/server-{name}@{VERSION}" for name in ("everything", "memory")]
PYTHON_SERVER = {"command": sys.executable, "args": [str(Path(__file__).parent / "mcp_server.py")]}
WRITE_ID = "require('fs').appendFileSync(process.env.IDS, process.pid + '\\n')\n"


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """The folder of the servers' packages, installed once; 55 MB with npm's cache, removed at the end."""
    folder = tmp_path_factory.mktemp("npm")
    options = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"]
    where = ["--prefix", str(folder), "--cache", str(folder / "cache")]
    subprocess.run(["npm", "install", *where, *options, *PACKAGES], check=True, stdin=subprocess.DEVNULL, timeout=300)
    yield folder / "node_modules" / "@modelcontextprotocol"
    shutil.rmtree(folder)


class Node:
    """Servers that write their process ids into a file, so that a test knows how many began, and whether they run."""

    def __init__(self, packages, folder):
        self.packages = packages
        self.ids = folder / "ids"
        self.ids.touch()
        self.hook = folder / "write_id.cjs"
        self.hook.write_text(WRITE_ID)

    def server(self, name, *arguments, **variables):
        script = str(self.packages / f"server-{name}" / "dist" / "index.js")
        env = {"IDS": str(self.ids), **variables}
        return {"command": "node", "args": ["--require", str(self.hook), script, *arguments], "env": env}

    def started(self):
        return [int(line) for line in self.ids.read_text().split()]

    def running(self):
        return [process for process in self.started() if is_running(process)]


@pytest.fixture
def node(packages, tmp_path):
    node = Node(packages, tmp_path)
    yield node
    wait_until(lambda: not node.running())  # whatever a test does, nothing is left behind


@pytest.fixture
def tool(node):
    """A tool of server-everything over stdio."""
    tool = MCPTool(node.server("everything"), validate_on_init=False)
    yield tool
    tool.close()


@pytest.fixture
def web(node):
    """What starts server-everything over streamable HTTP, again and again at one URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = Web(node, port)
    web.start()
    yield web
    web.stop()


class Web:
    def __init__(self, node, port):
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.port = port
        self.server = node.server("everything", "streamableHttp", PORT=str(port))

    def start(self):
        command = [self.server["command"], *self.server["args"]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env={**os.environ, **self.server["env"]}, **quiet)
        wait_until(self.is_up)

    def is_up(self):
        assert self.process.poll() is None, "the server has ended"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait()


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def text(name, /, **arguments):
    return f"<tool_call><tool_name>{name}</tool_name><arguments>{json.dumps(arguments)}</arguments></tool_call>"


def call(tool, name, /, **arguments):
    """Return whether the call failed, and the response."""
    valid, error, observation, _ = tool.execute_action(text(name, **arguments))
    assert valid
    return error, observation.removeprefix("\n<tool_response>\n").removesuffix("\n</tool_response>\n")


def test_tools_are_listed_with_their_schemas(tool):
    lines = tool.instruction_string().split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    functions = {function["name"]: function for function in (json.loads(line)["function"] for line in lines)}
    assert {"echo", "get-sum", "get-tiny-image", "trigger-long-running-operation"} <= set(functions)
    assert functions["get-sum"]["parameters"]["required"] == ["a", "b"]
    assert functions["get-sum"]["description"]


def test_tools_are_called(tool):
    assert call(tool, "echo", message="four ✓") == (False, "Echo: four ✓")
    assert call(tool, "get-sum", a=2, b=3) == (False, "The sum of 2 and 3 is 5.")
    assert json.loads(call(tool, "get-structured-content", location="Chicago")[1])["temperature"] == 36


def test_call_that_the_server_refuses_is_an_error_to_read_and_leaves_the_server(tool, node):
    error, said = call(tool, "get-sum", a="two", b=3)
    assert error
    assert "expected number" in said
    error, said = call(tool, "simulate-research-query", topic="tools")  # is a task, and no call
    assert error
    assert "task" in said
    assert call(tool, "get-sum", a=2, b=3)[0] is False
    assert len(node.started()) == 1


def test_what_is_no_text_is_named(tool):
    assert "\n[image image/png]\n" in call(tool, "get-tiny-image")[1]
    said = call(tool, "get-resource-reference", resourceType="Blob", resourceId=7)[1]
    assert "\n[resource demo://resource/dynamic/blob/7 text/plain]\n" in said
    assert "This is a plaintext resource" in call(tool, "get-resource-reference", resourceType="Text", resourceId=7)[1]
    assert "\n[resource_link demo://resource/dynamic/blob/1 text/plain]" in call(tool, "get-resource-links", count=2)[1]


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_progress_is_reported(node, web, transport):
    heard = []
    server = node.server("everything") if transport == "stdio" else web.url
    tool = MCPTool(server, validate_on_init=False, progress_handler=lambda *report: heard.append(report[:2]))
    error, said = call(tool, "trigger-long-running-operation", duration=0.2, steps=2)
    tool.close()
    assert not error
    assert "completed" in said
    assert heard == [(1, 2), (2, 2)]


def test_server_asks_the_model(node):
    tool = MCPTool(
        node.server("everything"),
        validate_on_init=False,
        sampling_handler=lambda messages, *_: messages[0].content.text,
    )
    said = call(tool, "trigger-sampling-request", prompt="Which colour?")[1]
    tool.close()
    assert "Which colour?" in said


def test_call_that_takes_too_long_is_an_error_to_read_and_the_next_one_starts_the_server_again(tool, node):
    call(tool, "echo", message="first")
    tool.execution_timeout = 0.3
    assert call(tool, "trigger-long-running-operation", duration=30, steps=3) == (
        True,
        "[Tool execution failed: TimeoutError: no answer within 0.3 seconds]",
    )
    tool.execution_timeout = 30
    assert call(tool, "echo", message="again") == (False, "Echo: again")
    assert len(node.started()) == 2


def test_server_keeps_its_state_during_an_episode_and_not_over_episodes(tool, node):
    said = []
    for _ in range(2):
        said += [call(tool, "toggle-simulated-logging")[1].split()[0] for _ in range(2)]
        tool.reset()
    assert said == ["Started", "Stopped"] * 2
    assert len(node.started()) == 2


def test_server_that_does_not_end_by_itself_is_ended(tool, node):
    call(tool, "toggle-simulated-logging")  # a timer keeps it running
    assert len(node.running()) == 1
    tool.close()
    assert not node.running()


def test_server_that_is_killed_between_calls_is_an_error_to_read_and_started_again(tool, node):
    call(tool, "echo", message="first")
    os.kill(node.started()[0], signal.SIGKILL)
    error, said = call(tool, "echo", message="lost")
    assert error
    assert "closed" in said.lower()
    assert call(tool, "echo", message="again") == (False, "Echo: again")
    assert len(node.started()) == 2


def test_server_that_is_killed_in_a_call_is_an_error_to_read_at_once(tool, node):
    call(tool, "echo", message="first")
    threading.Timer(0.3, os.kill, (node.started()[0], signal.SIGKILL)).start()
    begin = time.monotonic()
    error, said = call(tool, "trigger-long-running-operation", duration=30, steps=1)
    assert error
    assert "closed" in said.lower()
    assert time.monotonic() - begin < 15
    assert call(tool, "echo", message="again") == (False, "Echo: again")


def test_several_servers_at_once_in_a_game(node, tmp_path):
    memory = node.server("memory", MEMORY_FILE_PATH=str(tmp_path / "memory.jsonl"))
    servers = {"every": node.server("everything"), "memory": memory, "python": PYTHON_SERVER}
    entity = {"name": "secret", "entityType": "number", "observations": ["it is odd"]}
    with ToolEnvWrapper(gem.make("game:GuessTheNumber-v0-easy"), [MCPTool({"mcpServers": servers})]) as env:
        instructions = env.reset(seed=1)[0]
        assert all(name in instructions for name in ('"every_echo"', '"memory_create_entities"', '"python_add"'))
        before = len(node.started())
        assert "The sum of 1 and 2 is 3." in env.step(text("every_get-sum", a=1, b=2))[0]
        env.step(text("memory_create_entities", entities=[entity]))
        assert "\n1\n" in env.step(text("python_next_number"))[0]
        assert "it is odd" in env.step(text("memory_open_nodes", names=["secret"]))[0]
        observation, *_, info = env.step(text("python_next_number"))
        assert "\n2\n" in observation
        assert info["tool_success_counter"] == info["tool_use_counter"] == 5
        assert len(node.started()) == before + 2
        assert env.step(f"\\boxed{{{env.game_number}}}")[2]


def test_server_over_http(web):
    tool = MCPTool(web.url)
    assert call(tool, "echo", message="far") == (False, "Echo: far")
    assert call(tool, "get-sum", a=2, b=3) == (False, "The sum of 2 and 3 is 5.")
    assert call(tool, "get-sum", a="two", b=3)[0]
    tool.close()


def test_server_over_http_that_is_down_is_an_error_to_read_until_it_is_back(web):
    tool = MCPTool(web.url, max_retries=1, execution_timeout=10)
    call(tool, "echo", message="first")
    web.stop()
    assert call(tool, "echo", message="lost")[0]
    error, said = call(tool, "echo", message="lost")
    assert error
    assert "cannot connect" in said
    web.start()
    assert call(tool, "echo", message="again") == (False, "Echo: again")
    tool.close()


def test_server_over_http_that_was_started_again_is_connected_to_again(web):
    tool = MCPTool(web.url, execution_timeout=10)
    call(tool, "echo", message="first")
    web.stop()
    web.start()  # and does not know the session
    assert call(tool, "echo", message="lost")[0]
    assert call(tool, "echo", message="again") == (False, "Echo: again")
    tool.close()
