"""A web server on this machine that misbehaves on request, for the download tests."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path; `server.content` is the right file."""

    def do_GET(self):
        behaviour = self.path.split("/")[1]
        self.server.requests.append(behaviour)
        getattr(self, f"answer_{behaviour}")()

    def answer(self, content, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def answer_right(self):
        self.answer(self.server.content)

    def answer_wrong(self):
        self.answer(b"<html>Please log in to this network</html>")

    def answer_empty(self):
        self.answer(b"")

    def answer_cut(self):
        half = self.server.content[: len(self.server.content) // 2]
        self.answer(half, length=len(self.server.content))

    def answer_missing(self):
        self.answer(b"not here", status=404)

    def answer_busy(self):
        self.answer(b"try later", status=503)

    def answer_moved(self):
        self.answer(b"", status=302, Location="/right/file.txt")

    def answer_circle(self):
        self.answer(b"", status=302, Location="/circle/file.txt")

    def answer_stall(self):
        """Send half of the file, then nothing more until the test is over."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: len(self.server.content) // 2])
        self.wfile.flush()
        self.server.stopping.wait(20)

    def answer_silent(self):
        """Accept the request and never answer it."""
        self.server.stopping.wait(20)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content, handler=Handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.content = content
        self.requests = []
        self.stopping = threading.Event()

    def url(self, behaviour):
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/file.txt"


@contextmanager
def serve(content, handler=Handler):
    """A running server; stopped, with all its connections, when the block ends."""
    server = Server(content, handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
