"""Web search by SerpAPI is not supported: nothing here asks servers of the web."""

from gem.refusals import refuse
from gem.tools.search_engine.google_search_server import _REASON

_NAMES = ("Config", "OnlineSearchEngine", "SearchRequest", "SearchResponse", "SearchWorker")
__getattr__ = refuse(__name__, _NAMES, _REASON)
