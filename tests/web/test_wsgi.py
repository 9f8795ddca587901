"""The WSGI middleware, in Flask and by hand."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from session_metrics_otel import metrics_for
from session_metrics_otel.binding import NOTHING_BOUND, current_binding
from session_metrics_otel.web.wsgi import BindingMiddleware

flask = pytest.importorskip("flask")


@pytest.fixture
def maker(instrumented):
    return instrumented(name="orders")


def seen(maker):
    with maker() as session:
        session.execute(text("select 1"))
        record = metrics_for(session)
        return [record.request_id, record.user_id, record.route]


def test_flask(maker):
    app = flask.Flask(__name__)
    app.add_url_rule("/orders/<int:order_id>", "order", lambda order_id: seen(maker))

    @app.route("/stream")
    def stream():
        def body():
            yield flask.json.dumps(seen(maker))

        return flask.stream_with_context(body())

    app.wsgi_app = BindingMiddleware(app.wsgi_app, user_id=lambda environ: environ["REMOTE_USER"])
    client = app.test_client()
    options = {"headers": {"X-Request-Id": "r-1"}, "environ_overrides": {"REMOTE_USER": "ada"}}
    answer = client.get("/orders/7", **options)
    assert answer.json == ["r-1", "ada", "/orders/<int:order_id>"]
    streamed = client.get("/stream", **options)
    assert flask.json.loads(streamed.data) == ["r-1", "ada", "/stream"]
    assert current_binding.get() is NOTHING_BOUND


def test_an_answer_made_piece_by_piece_is_bound_to_its_close():
    found = []

    class Body:
        def __iter__(self):
            for _ in range(2):
                found.append(current_binding.get().request_id)
                yield b"piece"

        def close(self):
            found.append("closed " + current_binding.get().request_id)

    body = BindingMiddleware(lambda environ, start: Body())({"HTTP_X_REQUEST_ID": "r"}, None)
    assert list(body) == [b"piece", b"piece"]
    body.close()
    assert found == ["r", "r", "closed r"]
    assert current_binding.get() is NOTHING_BOUND


def test_an_answer_that_is_whole_stays_what_it_is():
    answer = [b"whole"]
    assert BindingMiddleware(lambda environ, start: answer)({}, None) is answer
