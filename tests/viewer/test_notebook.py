import http.server
import threading

import numpy as np
import pytest
from playwright.sync_api import expect

from t3vis import open_run


@pytest.fixture
def notebook(recorded_run):
    """A page that shows the viewer in a frame, as a notebook does."""
    view = open_run(recorded_run).view(host="127.0.0.1")
    content = f"<!doctype html><link rel=icon href=data:,>{view._repr_html_()}".encode()

    class Notebook(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Notebook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield view, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
    view.close()


def test_what_is_selected_comes_back_to_the_notebook(notebook, page):
    view, address = notebook
    assert view.split is None
    page.goto(address)
    frame = page.frame_locator("iframe")
    expect(frame.locator("#app")).to_have_attribute("aria-busy", "false")
    for number in ("0", "2"):
        with page.expect_response(lambda answer: "/selection" in answer.url):
            frame.get_by_role("gridcell", name=number, exact=True).first.click(modifiers=["Control"])
    expect(frame.locator(".count")).to_contain_text("2 selected")
    assert view.split == "train"
    np.testing.assert_array_equal(view.selected, [0, 2])
