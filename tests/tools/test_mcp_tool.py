import asyncio
import copy
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gem
from gem.testing.hostile_text import JUNK, ODD
from gem.tools.tool_env_wrapper import ToolEnvWrapper

pytest.importorskip("mcp", reason="MCP servers need the package mcp: install gem-adapters[mcp]")

from gem.tools.mcp_tool import MCPTool

SCRIPT = str(Path(__file__).parent / "mcp_server.py")
SERVER = {"command": sys.executable, "args": [SCRIPT]}
BARE = {"command": sys.executable, "args": [str(Path(__file__).parent / "bare_mcp_server.py")]}
EASY = "game:GuessTheNumber-v0-easy"


def xml(name, /, **arguments):
    return (
        f"<tool_call>\n<tool_name>{name}</tool_name>\n<arguments>\n{json.dumps(arguments)}\n</arguments>\n</tool_call>"
    )


def call(tool, name, /, **arguments):
    """Return whether the call failed, and the response."""
    valid, error, observation, _ = tool.execute_action(xml(name, **arguments))
    assert valid
    return error, observation.removeprefix("\n<tool_response>\n").removesuffix("\n</tool_response>\n")


def is_running(process):
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared():
    """A tool of one server, for tests that leave the server as it is."""
    tool = MCPTool(SERVER, validate_on_init=False)
    yield tool
    tool.close()


@pytest.fixture
def own():
    """A tool with a server of the test's own."""
    tool = MCPTool(SERVER, validate_on_init=False)
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def url():
    """A server over streamable HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SCRIPT, str(port)], stderr=subprocess.DEVNULL)

    def is_up():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(is_up)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_tool_is_called_in_the_published_form(shared):
    text = f"<think>Add.</think>{xml('add', a=1, b=2)}"
    assert shared.execute_action(f"{text} more") == (True, False, "\n<tool_response>\n3\n</tool_response>\n", text)
    assert shared.find_action(text) == text.index("<tool_call>")


def test_tool_is_called_in_json(shared):
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
    assert shared.execute_action(text) == (True, False, "\n<tool_response>\n7\n</tool_response>\n", text)


def test_first_call_is_executed(shared):
    assert "\n3\n" in shared.execute_action(xml("add", a=1, b=2) + xml("add", a=5, b=5))[2]


@pytest.mark.parametrize("text", ["", "add", "<tool_call></tool_call>", "<tool_call>add</tool_call>", xml("add")[:-5]])
def test_text_without_a_call_is_none(shared, text):
    assert shared.execute_action(text) == (False, True, "", "")
    assert shared.find_action(text) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<tool_name>add</tool_name><arguments>{</arguments>", "double quotes"),
        ("<tool_name>add</tool_name><arguments>[1]</arguments>", "JSON object"),
        ("<tool_name>add</tool_name>?<arguments>{}</arguments>", "has this form"),
        ("<tool_name>subtract</tool_name><arguments></arguments>", "there is no tool 'subtract'; there are add, ask"),
        ('<tool_name>add</tool_name><arguments>{"a": "x"}</arguments>', "integer"),
        ("<tool_name>fail</tool_name><arguments>{}</arguments>", "Error executing tool fail"),
        ('{"name": 3}', "name of a tool"),
        ("{" * 100_000, "Error"),
    ],
)
def test_call_that_fails_is_an_error_to_read(shared, body, said):
    valid, error, observation, _ = shared.execute_action(f"<tool_call>{body}</tool_call>")
    assert (valid, error) == (True, True)
    assert observation.startswith("\n<tool_response>\n[Tool execution ")
    assert said.lower() in observation.lower()


def test_nothing_that_a_model_writes_raises(shared):
    for text in [*JUNK.values(), *ODD.values()]:
        shared.execute_action(text)
        shared.execute_action(f"<tool_call>{{{text}</tool_call>")
        assert shared.execute_action(
            f"<tool_call><tool_name>{text}</tool_name><arguments>{text}</arguments></tool_call>"
        )
    assert call(shared, "add", a=1, b=1) == (False, "2")


def test_instructions_list_the_tools_with_their_schemas(shared):
    text = shared.instruction_string()
    tools = [json.loads(line)["function"] for line in text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()]
    assert [tool["name"] for tool in tools] == sorted(tool["name"] for tool in tools)
    assert tools[0]["description"] == "Add two numbers."
    assert tools[0]["parameters"]["required"] == ["a", "b"]
    assert "<tool_call>" in text


def test_long_result_is_cut(shared):
    assert len(call(shared, "much")[1]) < 9_000


def test_connection_is_held_between_calls_and_ended_with_the_episode(own):
    assert [call(own, "next_number")[1] for _ in range(3)] == ["1", "2", "3"]
    process = call(own, "process")[1]
    own.reset()
    wait_until(lambda: not is_running(process))
    assert call(own, "next_number") == (False, "1")


def test_connection_can_be_kept_over_episodes():
    tool = MCPTool(SERVER, validate_on_init=False, keep_connection=True)
    call(tool, "next_number")
    tool.reset()
    assert call(tool, "next_number")[1] == "2"
    process = call(tool, "process")[1]
    tool.close()
    tool.close()
    wait_until(lambda: not is_running(process))


def test_server_that_dies_is_an_error_to_read_and_started_again(own):
    error, said = call(own, "die")
    assert error
    assert "closed" in said
    assert call(own, "add", a=1, b=1) == (False, "2")


def test_server_that_takes_too_long_is_an_error_to_read_and_started_again(own):
    process = call(own, "process")[1]
    own.execution_timeout = 0.3
    assert call(own, "sleep", seconds=60) == (
        True,
        "[Tool execution failed: TimeoutError: no answer within 0.3 seconds]",
    )
    own.execution_timeout = 20
    assert call(own, "add", a=1, b=1) == (False, "2")
    wait_until(lambda: not is_running(process))


@pytest.mark.parametrize("value", [r'"\ud800"', "[" * 400 + "]" * 400], ids=["half a character", "deep"])
def test_arguments_that_cannot_be_sent_are_an_error_to_read_and_leave_the_server(own, value):
    call(own, "next_number")
    assert own.execute_action(f'<tool_call>{{"name": "variable", "arguments": {{"name": {value}}}}}</tool_call>')[1]
    assert call(own, "next_number") == (False, "2")


def test_result_that_is_data_and_no_text_is_shown_and_what_is_wrong_with_one_call_leaves_the_server():
    tool = MCPTool(BARE)
    assert call(tool, "silent") == (False, '{"calls": 1}')
    error, said = call(tool, "false")
    assert error
    assert "many" in said
    assert call(tool, "silent") == (False, '{"calls": 3}')
    error, said = call(tool, "refuse")
    assert error
    assert "not allowed" in said
    assert call(tool, "silent") == (False, '{"calls": 5}')
    tool.close()


def test_servers_end_one_after_another_however_slowly(monkeypatch):
    monkeypatch.setattr("gem.tools.mcp_connection.CLOSE_SECONDS", 3)  # more than one of them takes, and less than two
    slow = {**BARE, "args": [*BARE["args"], "stays"]}
    tool = MCPTool({"mcpServers": {"a": slow, "b": slow}}, validate_on_init=False)
    processes = [call(tool, f"{server}_process")[1] for server in "ab"]
    tool.close()
    assert not any(map(is_running, processes))


def test_servers_end_with_a_process_that_closes_nothing():
    code = (
        "import sys; from gem.tools.mcp_tool import MCPTool\n"
        f"tool = MCPTool({SERVER!r}, validate_on_init=False)\n"
        "print(tool.execute_action(sys.argv[1])[2].split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, xml("process")], capture_output=True, text=True, timeout=30)
    assert not is_running(done.stdout), done.stderr


def test_server_over_http_and_several_servers(url):
    servers = {"far": {"url": url, "tools": {"add": {"name": "plus"}}}, "near": {**SERVER, "env": {"MARK": "here"}}}
    tool = MCPTool({"mcpServers": servers})
    names = {offer["name"]: offer["server"] for offer in tool.get_available_tools()}
    assert names["plus"] == names["far_process"] == "far"
    assert names["near_add"] == "near"
    assert call(tool, "plus", a=1, b=2) == (False, "3")
    assert call(tool, "near_variable", name="MARK") == (False, "here")
    assert call(tool, "far_variable", name="MARK") == (False, "(none)")
    assert call(tool, "far_process") != call(tool, "near_process")
    tool.close()


def test_two_tools_of_one_name_are_refused():
    renamed = {"tools": {"silent": {"name": "one"}}}
    with pytest.raises(ValueError, match="would both be called 'one'"):
        MCPTool({"mcpServers": {"a": {**BARE, **renamed}, "b": {**BARE, **renamed}}}, max_retries=1)


def test_url_alone_is_a_server(url):
    tool = MCPTool.from_url(url, auth="secret", headers={"X-Name": "value"})
    assert tool.normalized_config["mcpServers"]["default"]["headers"] == {
        "X-Name": "value",
        "Authorization": "Bearer secret",
    }
    assert call(tool, "add", a=1, b=2) == (False, "3")
    tool.close()


def test_constructors_by_file_command_and_several_urls(tmp_path, url):
    path = tmp_path / "servers.json"
    path.write_text(json.dumps({"mcpServers": {"s": SERVER}}))
    no = {"validate_on_init": False}
    assert (
        MCPTool.from_config_file(path, **no).normalized_config
        == MCPTool.from_local_command(SERVER, "s", **no).normalized_config
    )
    several = MCPTool.from_multi_server({"a": url, "b": url}, **no)
    assert {offer["server"] for offer in several.get_available_tools()} == {"a", "b"}
    several.reconfigure(url)
    assert {offer["name"] for offer in several.get_available_tools()} >= {"add"}
    several.close()


@pytest.mark.parametrize(
    "config", [3, {}, {"mcpServers": {}}, {"mcpServers": {"a": {}}}, {"url": "x", "transport": "y"}]
)
def test_config_that_names_no_server_is_refused(config):
    with pytest.raises(ValueError, match=r"config|server"):
        MCPTool(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"command": sys.executable, "args": ["-c", "import sys; sys.exit('no licence')"]}, "no licence"),
        ({"command": "no-such-command-anywhere"}, "No such file"),
        ("http://127.0.0.1:9/mcp", "cannot connect"),
    ],
)
def test_server_that_cannot_be_reached_is_refused_with_the_reason(config, said):
    with pytest.raises(ValueError, match=said):
        MCPTool(config, max_retries=1)


def test_connecting_is_tried_again(tmp_path):
    once = (
        f"import os, runpy, sys; p={str(tmp_path / 'tried')!r}\nif not os.path.exists(p): open(p, 'w'); sys.exit(1)\n"
    )
    config = {"command": sys.executable, "args": ["-c", f"{once}runpy.run_path({SCRIPT!r}, run_name='__main__')"]}
    tool = MCPTool(config, max_retries=2, delay_between_retries=0.01)
    assert tool.get_available_tools()


def test_copies_have_connections_of_their_own(own):
    call(own, "next_number")
    other = pickle.loads(pickle.dumps(own))
    assert call(other, "next_number")[1] == "1"
    other.close()
    assert call(own, "next_number")[1] == "2"


def test_servers_log_report_and_ask_the_model_through_handlers():
    heard = []

    async def on_progress(*report):
        heard.append(report)

    def answer(messages, params, context):
        return f"blue, to {messages[0].content.text}"

    tool = MCPTool(
        SERVER,
        log_handler=lambda message: heard.append(message.data),
        progress_handler=on_progress,
        sampling_handler=answer,
    )
    other = copy.deepcopy(tool)
    assert call(other, "ask") == (False, "blue, to Which colour?")
    assert sorted(map(str, heard)) == ["(1.0, 2.0, 'half done')", "at work"]
    other.close()


def test_step_works_where_an_event_loop_runs(shared):
    async def within():
        return call(shared, "add", a=2, b=2)

    assert asyncio.run(within()) == (False, "4")


def test_tools_help_in_a_game_and_each_environment_has_its_servers():
    tool = MCPTool(SERVER)
    one, two = (ToolEnvWrapper(gem.make(EASY), [tool]) for _ in range(2))
    with one, two:
        assert "Add two numbers." in one.reset(seed=1)[0]
        two.reset(seed=1)
        assert [env.step(xml("next_number"))[0] for env in (one, two)] == [
            "\n<tool_response>\n1\n</tool_response>\n"
        ] * 2
        assert one.step(xml("die"))[4]["tool_success_counter"] == 1
        process = two.step(xml("process"))[0].split()[1]
        assert one.step(f"\\boxed{{{one.game_number}}}")[2]
    wait_until(lambda: not is_running(process))


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ImportError, match=r"install gem-adapters\[mcp\]"):
        MCPTool(SERVER)
