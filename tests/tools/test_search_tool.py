import contextlib
import http.client
import json
import pickle
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import resident

from gem.envs.qa_env import QaEnv
from gem.testing.hostile_text import JUNK, ODD
from gem.tools import search_protocol
from gem.tools.search_protocol import decode, encode
from gem.tools.search_tool import SearchTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper

try:
    import bm25s  # noqa: F401
except ModuleNotFoundError:
    HAS_BM25S = False
else:
    HAS_BM25S = True

needs_bm25s = pytest.mark.skipif(not HAS_BM25S, reason="searching a corpus needs bm25s: gem-adapters[search]")
needs_msgpack = pytest.mark.skipif(not search_protocol.has_msgpack(), reason="needs msgpack: gem-adapters[search]")

HITS = [
    {"document": {"contents": "Paris\nThe capital\nof France."}, "score": 2.0},
    {"document": {"contents": "Rome\nThe capital of Italy."}, "score": 1.0},
]
SHOWN = "Doc 1(Title: Paris) The capital\nof France.\nDoc 2(Title: Rome) The capital of Italy.\n"


@pytest.fixture
def serve():
    """Return a function that starts a server with a given answer to (body, content type), and gives its URL."""
    servers = []

    def serve(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, reply = answer(body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/retrieve"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def post(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=5) as response:
        return response.read()


def status_of(url, body):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body)
    with caught.value as error:
        return error.code


@pytest.fixture
def server():
    from gem.tools.search_server import SearchServer

    with SearchServer(port=0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def search(tool, query="capital"):
    return tool.execute_action(f"<search>{query}</search>")


@needs_msgpack
def test_one_query_in_messagepack_is_asked_as_published(serve):
    asked = []

    def answer(body):
        asked.append(decode(body))
        return 200, encode({"result": HITS}, "msgpack")

    text = "<think>Well.</think><search> capital </search>"
    tool = SearchTool(search_url=serve(answer), topk=2, timeout=5)
    assert tool.execute_action(f"{text} more") == (True, False, f"\n\n<information>{SHOWN}</information>\n\n", text)
    assert asked == [({"query": "capital", "topk": 2, "return_scores": True}, "msgpack")]


@pytest.mark.parametrize("protocol", ["json", "auto"])
def test_list_of_queries_in_json_is_asked_where_the_server_wants_it(serve, protocol):
    asked = []

    def answer(body):
        asked.append(body)
        return (200, json.dumps({"result": [HITS]}).encode()) if body[:1] == b"{" else (422, b"")

    tool = SearchTool(search_url=serve(answer), topk=2, protocol=protocol)
    assert search(tool)[2] == f"\n\n<information>{SHOWN}</information>\n\n"
    assert json.loads(asked[-1]) == {"queries": ["capital"], "topk": 2, "return_scores": True}
    before = len(asked)
    search(tool)
    assert len(asked) == before + 1, "what the server understands is remembered"


def test_without_messagepack_servers_are_asked_in_json(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    url = serve(lambda body: (200, json.dumps({"result": [HITS]}).encode()))
    assert SHOWN in search(SearchTool(search_url=url))[2]
    with pytest.raises(ImportError, match=r"gem-adapters\[search\]"):
        SearchTool(search_url=url, protocol="msgpack")
    assert "SearchTool Error" in search(SearchTool(search_url=serve(lambda body: (200, b"\x81"))))[2]


def test_server_is_taken_from_the_environment_when_it_is_needed(serve, monkeypatch):
    tool = SearchTool()
    monkeypatch.setenv("SEARCH_URL", serve(lambda body: (200, json.dumps({"result": [HITS]}).encode())))
    assert SHOWN in search(tool)[2]


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (500, b""),
        (404, b""),
        (200, b""),
        (200, b"{"),
        (200, b'{"result": [[{"document": {}}]]}'),
        (200, b'{"error": 1}'),
        (200, b'{"result": ["x"]}'),
        (200, b'{"result": [{"contents": 5}]}'),
        (200, b'{"result": ' + b"[" * 100_000),
        (200, b'{"result": "' + b"x" * (5 << 20) + b'"}'),
        (500, b"x" * (5 << 20)),
    ],
)
def test_answer_that_is_wrong_is_an_error_to_read(serve, status, reply):
    valid, error, observation, _ = search(SearchTool(search_url=serve(lambda body: (status, reply))))
    assert (valid, error) == (True, True)
    assert observation.startswith("\n\n<information>[SearchTool Error:")


def test_server_that_is_silent_or_gone_is_an_error_to_read(serve):
    silent = threading.Event()
    url = serve(lambda body: (200, str(silent.wait(3)).encode()))
    assert "did not answer within 0.2 s" in search(SearchTool(search_url=url, timeout=0.2))[2]
    silent.set()
    assert search(SearchTool(search_url="http://127.0.0.1:9/retrieve"))[1]
    assert search(SearchTool(search_url="not a url"))[1]


DRIPS = {
    "a body without end": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "a body in chunks without end": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a status line without end": (b"HTTP/1.1 200 ", b"x"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "a flood": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (1 << 20)),
    "continue without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_without_end_costs_its_time_and_no_memory(name):
    first, again = DRIPS[name]
    ended = threading.Event()

    def drip(listener):
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(first)
            while True:
                connection.sendall(again)
                time.sleep(0.05 if len(again) < 100 else 0)
        ended.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        begin, memory = time.monotonic(), resident()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        observation = search(SearchTool(search_url=url, timeout=1, protocol="json"))[2]
        assert "[SearchTool Error: " in observation
        assert time.monotonic() - begin < 3
        assert resident() - memory < 200 << 20
        assert ended.wait(10)  # the connection was closed


def test_redirections_without_end_cost_their_time(serve):
    url = serve(lambda body: (307, b""))  # without a place to go to
    assert "[SearchTool Error: " in search(SearchTool(search_url=url, timeout=1))[2]


@needs_bm25s
def test_without_server_or_corpus_the_shipped_corpus_is_searched():
    valid, error, observation, _ = search(SearchTool(topk=1), "Which planet is nearest to the Sun?")
    assert (valid, error) == (True, False)
    assert observation.startswith("\n\n<information>Doc 1(Title: Mercury (planet)) Mercury is the planet nearest")
    assert search(SearchTool(), "xyzzy")[2] == "\n\n<information>No passage was found.</information>\n\n"


@needs_bm25s
def test_corpus_is_searched_and_goes_before_the_environments_server(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCH_URL", "http://127.0.0.1:9/")
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"contents": "Zebra\\nstriped"}\n')
    tool = SearchTool(corpus=path)
    assert "Doc 1(Title: Zebra) striped" in search(tool, "a zebra")[2]
    assert "striped" in search(pickle.loads(pickle.dumps(tool)), "a zebra")[2]


@needs_bm25s
def test_long_passages_are_cut(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"title": "Zebra", "text": "x" * 10_000}))
    assert len(search(SearchTool(corpus=path, max_chars=500), "zebra")[2]) < 700


@pytest.mark.parametrize("text", ["", "zebra", "<search>zebra", "<search> </search>", "</search><search>"])
def test_text_without_a_query_is_no_call(text):
    assert SearchTool().execute_action(text) == (False, True, "", "")
    assert SearchTool().find_action(text) is None


@needs_bm25s
def test_nothing_that_a_model_writes_raises():
    tool = SearchTool()
    for text in [*JUNK.values(), *ODD.values()]:
        tool.execute_action(text)
        assert isinstance(search(tool, text)[2], str)


def test_set_up_that_cannot_work_is_refused(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        SearchTool(corpus="nowhere.jsonl")
    with pytest.raises(ValueError, match="not both"):
        SearchTool(search_url="http://127.0.0.1", corpus="nowhere.jsonl")
    with pytest.raises(ValueError, match="protocol"):
        SearchTool(protocol="xml")
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"install gem-adapters\[search\]"):
        ToolEnvWrapper(QaEnv(dataset=[{"question": "?", "answer": "!"}]), [SearchTool()])


@needs_bm25s
def test_search_helps_to_answer_a_question():
    rows = [{"question": "What is the chemical symbol of gold?", "answer": "Au"}]
    env = ToolEnvWrapper(QaEnv(dataset=rows), [SearchTool()], tool_reward=0.3)
    assert "<search>" in env.reset(seed=1)[0]
    observation, reward, _, _, info = env.step("<search>chemical symbol of gold</search>")
    assert "symbol is Au" in observation
    assert (reward, info["tool_type"]) == (0.3, "search")
    assert env.step("<answer>Au</answer>")[1:3] == (1.0, True)


@needs_bm25s
@pytest.mark.parametrize("protocol", ["auto", "json", pytest.param("msgpack", marks=needs_msgpack)])
def test_server_answers_the_tool_as_the_corpus_does(server, protocol):
    query = "Who painted the Mona Lisa?"
    remote = search(SearchTool(search_url=server.url, protocol=protocol), query)
    assert remote == search(SearchTool(), query)
    assert "Leonardo" in remote[2]


@needs_bm25s
def test_server_answers_in_the_form_of_the_request(server):
    gold, rome = "symbol of gold", "Colosseum"
    many = json.loads(
        post(server.url, json.dumps({"queries": [gold, rome], "topk": 2, "return_scores": True}).encode())
    )
    assert [hits[0]["document"]["contents"].split("\n")[0] for hits in many["result"]] == ["Gold", "Colosseum"]
    assert len(many["result"][1]) <= 2
    one = json.loads(post(server.url, json.dumps({"query": gold}).encode()))
    assert one["result"][0]["contents"].startswith("Gold\n"), "without scores, documents alone"
    assert "score" in many["result"][0][0]


@needs_bm25s
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"{}", b'{"queries": 3}', b'{"query": 3}', b'{"query": "x", "topk": "y"}', b"\xc1", b"[1]", b"5"),
        *(b'{"query": "x", "topk": Infinity}', b'{"query": "x", "topk": NaN}', b'{"query": "x", "topk": [1]}'),
        *(b'{"query": "x", "topk": ' + b"9" * 5_000 + b"}", b'{"queries": "x"}', b'{"queries": [["x"]]}'),
        b'{"queries": [' + b'"x", ' * 1_000 + b'"x"]}',
        b'{"a": ' + b"[" * 100_000,
        *(b"\x93\x01\x02\x03", b"\x81\xa5query\xc4\x01x", b"\x81\xa5query\xd6\xff\0\0\0\0", b"\xdf\xff\xff\xff\xff"),
    ],
)
def test_server_refuses_what_it_does_not_understand_and_goes_on(server, body):
    assert status_of(server.url, body) == 400
    assert json.loads(urllib.request.urlopen(server.url, timeout=5).read()) == {"passages": 86}


@needs_bm25s
@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "\u0663", "0x10", "9" * 100, ""])
def test_server_refuses_a_length_that_is_no_number(server, length):
    with socket.create_connection(server.server_address, timeout=5) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        status = int(connection.recv(1_000).split()[1])
    assert status == (413 if length.startswith("9") else 400)


@needs_bm25s
def test_one_request_has_seconds_and_no_more(server, monkeypatch):
    monkeypatch.setattr("gem.tools.search_server.MOST_SECONDS", -1.0)
    assert status_of(server.url, b'{"queries": ["x", "y"]}') == 503


@needs_bm25s
def test_server_refuses_what_is_too_long_without_reading_it(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=5)
    connection.putrequest("POST", "/retrieve")
    connection.putheader("Content-Length", str((1 << 20) + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
