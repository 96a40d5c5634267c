"""Web search by Google is not supported: nothing here fetches pages of the web."""

from gem.refusals import refuse

_NAMES = (
    *("Config", "OnlineSearchEngine", "SearchRequest", "SearchResponse", "SearchWorker"),
    *("fetch", "fetch_all", "filter_links", "parse_snippet", "sanitize_search_query"),
)
_REASON = (
    "`gem serve-search` serves a corpus on your machine; SearchTool(search_url=...) asks any server that answers in "
    "the form of gem.tools.search_protocol, also one that searches the web."
)
__getattr__ = refuse(__name__, _NAMES, _REASON)
