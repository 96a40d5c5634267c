"""The time server: its tools, and that MCPTool reaches them over stdio and HTTP."""

import re
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("mcp")

from gem.tools.mcp_server import time_mcp
from gem.tools.mcp_tool import MCPTool

COMMAND = ["-m", "gem.tools.mcp_server.time_mcp"]
CALL = '<tool_call>{"name": "days_in_month", "arguments": {"date": "2024-02-11"}}</tool_call>'


def test_times_are_converted():
    assert time_mcp.convert_time("Asia/Shanghai", "Europe/London", "2025-07-01 07:30:00") == "2025-07-01 00:30:00"
    assert time_mcp.convert_time("UTC", "America/New_York", "2025-01-01 04:00:00.5") == "2024-12-31 23:00:00"
    with pytest.raises(ValueError, match="no time zone 'Mars/Olympus'"):
        time_mcp.convert_time("Mars/Olympus", "UTC", "2025-01-01 04:00:00")


@pytest.mark.parametrize(("date", "days"), [("2024-02-11", "29"), ("2023-02-01", "28"), ("2025-12-31", "31")])
def test_days_of_a_month(date, days):
    assert time_mcp.days_in_month(date) == days
    assert int(time_mcp.days_in_month()) >= 28


def test_weeks():
    assert time_mcp.get_week_year("2025-12-29") == "week: 52, isoWeek: 1"
    assert time_mcp.get_week_year("2021-01-01") == "week: 0, isoWeek: 53"
    assert re.fullmatch(r"week: \d+, isoWeek: \d+", time_mcp.get_week_year())


@pytest.mark.parametrize("form", ["h:mm A", "h:mm:ss A", "YYYY-MM-DD HH:mm:ss", "MM/DD/YY", "YYYY/MM", "DD.MM.YYYY"])
def test_the_present_in_every_format(form):
    pattern = re.sub("[YMDHhms]+", lambda run: r"\d{1,2}" if run[0] == "h" else r"\d" * len(run[0]), form)
    assert re.fullmatch(pattern.replace("A", "(AM|PM)"), time_mcp.current_time(form, "Asia/Tokyo"))
    assert time_mcp.current_time("%c {x}") == "%c {x}"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-90_000, "1 days ago"), (7_250, "in 2 hours"), (-40, "40 seconds ago"), (40 * 86_400, "in 1 months")],
)
def test_relative_times(seconds, said):
    moment = time.localtime(time.time() + seconds)
    assert time_mcp.relative_time(time.strftime("%Y-%m-%d %H:%M:%S", moment)) in (
        said,
        said.replace("40 s", "41 s"),
        said.replace("1 mo", "39 da"),
    )


def test_timestamps():
    whole = int(time_mcp.get_timestamp("2025-03-23 12:30:00"))
    assert int(time_mcp.get_timestamp("2025-03-23 12:30:00.250")) - whole == 250
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole / 1000)) == "2025-03-23 12:30:00"


def test_over_stdio():
    tool = MCPTool({"command": sys.executable, "args": [*COMMAND, "--transport", "stdio"]})
    names = [each["name"] for each in tool.get_available_tools()]
    assert names == [
        *("current_time", "relative_time", "days_in_month", "get_timestamp", "convert_time", "get_week_year"),
    ]
    assert "29" in tool.execute_action(CALL)[2]
    tool.close()


def test_over_http():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, *COMMAND, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        tool = MCPTool(f"http://127.0.0.1:{port}/time-mcp", max_retries=30, delay_between_retries=0.3)
        assert "29" in tool.execute_action(CALL)[2]
        tool.close()
    finally:
        server.terminate()
        server.wait(10)
