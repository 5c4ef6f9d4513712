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
        status = self.answer(self.path)
        if status is None:
            super().do_GET()
        else:
            self.send_error(status)


@contextmanager
def serving(folder, answer=lambda path: None):
    """Yield the folder's URL, and the list of paths that were asked for.

    What ``answer`` returns for a path is the HTTP status of an error; None serves the file.
    """
    served: list[str] = []
    handler = type("Handler", (Quiet,), {"served": served, "answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
