"""An MCP server that knows the time: ``python -m gem.tools.mcp_server.time_mcp``, over HTTP or ``--transport stdio``.

Tools and their parameters are those of gem-llm's server. A time zone that does not exist is an error here.
"""

from __future__ import annotations

import argparse
import calendar
import logging
import re
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

try:
    from mcp.server.fastmcp import FastMCP as Server
except ModuleNotFoundError:  # mcp 2 has renamed it
    from mcp.server.mcpserver import MCPServer as Server

_TOKENS = {"YYYY": "%Y", "YY": "%y", "MM": "%m", "DD": "%d", "HH": "%H", "mm": "%M", "ss": "%S", "A": "%p"}
_TOKEN = re.compile("|".join((*_TOKENS, "h")))  # the longer ones first

_UNITS = (("years", 360), ("months", 30), ("days", 1))

app: Any = Server("mcp-time-server")


@app.tool()
def current_time(format: str = "YYYY-MM-DD HH:mm:ss", timezone: str | None = None) -> str:
    """The present date and time.

    format: of YYYY, YY, MM, DD, HH, h (of twelve), mm, ss and A (AM or PM), such as h:mm A or YYYY-MM-DD HH:mm:ss
    timezone: an IANA name such as Asia/Shanghai; the local one if it is not given
    """
    now = datetime.now(_zone(timezone))
    hour = str(now.hour % 12 or 12)
    return _TOKEN.sub(lambda token: now.strftime(_TOKENS[token[0]]) if token[0] in _TOKENS else hour, format)


@app.tool()
def relative_time(time: str) -> str:
    """How far a time lies from now, as "in 5 minutes" or "2 days ago".

    time: YYYY-MM-DD HH:mm:ss, local
    """
    distance = _parsed(time) - datetime.now(_zone(None))
    seconds = abs(int(distance.total_seconds()))
    days = seconds // 86_400
    amount, unit = next(((days // size, unit) for unit, size in _UNITS if days >= size), (0, ""))
    if not unit:
        amount, unit = next(
            (seconds // size, unit)
            for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
            if seconds >= size or size == 1
        )
    return f"in {amount} {unit}" if distance > timedelta(0) else f"{amount} {unit} ago"


@app.tool()
def days_in_month(date: str | None = None) -> str:
    """How many days a month has.

    date: YYYY-MM-DD, any day of it; this month's if it is not given
    """
    day = _day(date)
    return str(calendar.monthrange(day.year, day.month)[1])


@app.tool()
def get_timestamp(time: str) -> str:
    """The milliseconds since 1970 at a time.

    time: YYYY-MM-DD HH:mm:ss.SSS, local
    """
    since = _parsed(time) - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return str(since // timedelta(milliseconds=1))


@app.tool()
def convert_time(sourceTimezone: str, targetTimezone: str, time: str) -> str:  # noqa: N803 (published names)
    """The same time in another time zone.

    sourceTimezone: an IANA name such as Asia/Shanghai
    targetTimezone: an IANA name such as Europe/London
    time: YYYY-MM-DD HH:mm:ss
    """
    return _parsed(time, _zone(sourceTimezone)).astimezone(_zone(targetTimezone)).strftime("%Y-%m-%d %H:%M:%S")


@app.tool()
def get_week_year(date: str | None = None) -> str:
    """The number of a day's week in its year, by weeks that begin on Monday, and by ISO 8601.

    date: YYYY-MM-DD; today if it is not given
    """
    day = _day(date)
    return f"week: {int(day.strftime('%W'))}, isoWeek: {day.isocalendar().week}"


def _zone(name: str | None) -> tzinfo | None:
    if not name:
        return datetime.now().astimezone().tzinfo
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error


def _parsed(time: str, zone: tzinfo | None = None) -> datetime:
    whole, _, fraction = time.partition(".")
    moment = datetime.strptime(f"{whole}.{fraction[:6] or 0}", "%Y-%m-%d %H:%M:%S.%f")
    return moment.astimezone() if zone is None else moment.replace(tzinfo=zone)


def _day(date: str | None) -> datetime:
    return datetime.strptime(date, "%Y-%m-%d") if date else datetime.now(_zone(None))


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="An MCP server that knows the time.")
    parser.add_argument("--transport", choices=["stdio", "http", "streamable-http"], default="streamable-http")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--path", default="/time-mcp")
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], default="INFO")
    args = parser.parse_args()
    logging.basicConfig(level=args.log_level)
    if args.transport == "stdio":
        app.run("stdio")
    elif Server.__name__ == "FastMCP":
        app.settings.host, app.settings.port, app.settings.streamable_http_path = args.host, args.port, args.path
        app.run("streamable-http")
    else:
        app.run("streamable-http", host=args.host, port=args.port, streamable_http_path=args.path)


if __name__ == "__main__":
    main()
