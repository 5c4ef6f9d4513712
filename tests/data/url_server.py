"""A folder behind http on the loopback interface, for as long as a test needs it."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and remembers which."""

    served: list[str] = []  # noqa: RUF012 - one list a server, set below
    answer = staticmethod(lambda path: None)

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.served.append(self.path)
        answer = self.answer(self.path)
        if answer is None:
            super().do_GET()
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            answer(self)


@contextmanager
def serving(folder, answer=lambda path: None):
    """Yield the folder's URL, and the list of paths that were asked for.

    What ``answer`` returns for a path is the HTTP status of an error, or a function of the handler that answers; None
    serves the file.
    """
    served: list[str] = []
    handler = type("Handler", (Quiet,), {"served": served, "answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.ended = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
