"""The ASGI middleware, in the real frameworks."""

from contextvars import copy_context
from typing import Annotated, Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from session_metrics_otel import bind, metrics_for
from session_metrics_otel.binding import NOTHING_BOUND, current_binding
from session_metrics_otel.web.asgi import BindingMiddleware

try:
    import httpx
    from fastapi import APIRouter, Depends, FastAPI
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Mount, Route
except ImportError:
    pytest.skip("the frameworks are not installed", allow_module_level=True)


@pytest.fixture
def maker(instrumented):
    return instrumented(name="orders")


async def get(app: Any, path: str, **headers: str) -> Any:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        answer = await client.get(path, headers=headers)
    return answer.json()


def seen(session: Session) -> list[str]:
    session.execute(text("select 1"))
    record = metrics_for(session)
    return [record.request_id, record.user_id, record.route]


def of(scope):
    return scope.get("user")


class Authenticated:
    """Says who it is, further in than the binding."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        scope["user"] = dict(scope["headers"]).get(b"authorization", b"nobody").decode()
        await self.app(scope, receive, send)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_fastapi(maker, kind):
    app = FastAPI()
    router = APIRouter(prefix="/api")

    def get_session():
        with maker() as session:
            yield session

    if kind == "async":

        @router.get("/orders/{order_id}")
        async def order(order_id: int, session: Annotated[Session, Depends(get_session)]):
            return seen(session)
    else:

        @router.get("/orders/{order_id}")
        def order(order_id: int, session: Annotated[Session, Depends(get_session)]):
            return seen(session)

    app.include_router(router)
    app.add_middleware(Authenticated)
    app.add_middleware(BindingMiddleware, user_id=of)
    headers = {"X-Request-Id": "r-1", "Authorization": "ada"}
    assert await get(app, "/api/orders/7", **headers) == ["r-1", "ada", "/api/orders/{order_id}"]
    assert current_binding.get() is NOTHING_BOUND


async def test_starlette(maker):
    def order(request):
        with maker() as session:
            return JSONResponse(seen(session))

    app = Starlette(routes=[Route("/orders/{id}", order)])
    app.add_middleware(BindingMiddleware)
    answer = await get(app, "/orders/7", **{"X-Request-Id": "r-1"})
    assert answer == ["r-1", "", "/orders/{id}"]


async def test_a_streamed_answer(maker):
    async def body():
        with maker() as session:
            yield JSONResponse(seen(session)).body

    app = Starlette(routes=[Route("/stream", lambda request: StreamingResponse(body()))])
    app = BindingMiddleware(app)
    assert await get(app, "/stream", **{"X-Request-Id": "r-1"}) == ["r-1", "", "/stream"]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "caf\xe9"])
async def test_a_request_id_is_made_where_none_is_given_that_can_be_used(given):
    found = []

    async def app(scope, receive, send):
        found.append(current_binding.get().request_id)

    headers = [] if given is None else [(b"x-request-id", given.encode("latin-1"))]
    for _ in range(2):
        await BindingMiddleware(app)({"type": "http", "headers": headers}, None, None)
    assert [len(made) for made in found] == [32, 32]
    assert found[0] != found[1]


async def test_the_lifespan_is_no_request():
    found = []

    async def app(scope, receive, send):
        found.append(current_binding.get())

    await BindingMiddleware(app)({"type": "lifespan"}, None, None)
    assert found == [NOTHING_BOUND]


def test_a_request_that_is_dropped_unfinished_may_be_closed_in_any_context():
    class Pause:
        def __await__(self):
            yield

    async def app(scope, receive, send):
        await Pause()

    request = BindingMiddleware(app)({"type": "http", "headers": []}, None, None)
    copy_context().run(request.send, None)
    request.close()
    assert current_binding.get() == NOTHING_BOUND


async def test_what_an_inner_block_binds_comes_first_and_the_rest_stays_late():
    found = []

    async def app(scope, receive, send):
        with bind(user_id="inner"):
            scope["route"] = Route("/late", lambda request: None)
            bound = current_binding.get()
            found.append((bound.request_id, bound.user_id, bound.route))
        with bind(route="given"):
            found.append((current_binding.get().user_id, current_binding.get().route))

    scope = {"type": "http", "headers": [(b"x-request-id", b"r-1")], "user": "ada"}
    await BindingMiddleware(app, user_id=of)(scope, None, None)
    assert found == [("r-1", "inner", "/late"), ("ada", "given")]


@pytest.mark.faults
async def test_a_user_callable_that_raises_is_logged_and_the_request_goes_on(maker, caplog):
    def order(request):
        with maker() as session:
            return JSONResponse(seen(session))

    app = Starlette(routes=[Route("/orders", order)])
    app = BindingMiddleware(app, user_id=lambda scope: scope["no such key"])
    assert await get(app, "/orders", **{"X-Request-Id": "r"}) == ["r", "", "/orders"]
    assert "Session telemetry (web) failed" in caplog.text


async def test_inside_a_mount_the_route_is_the_mounted_applications_own(maker):
    def order(request):
        with maker() as session:
            return JSONResponse(seen(session))

    app = Starlette(routes=[Mount("/shop", routes=[Route("/orders/{id}", order)])])
    answer = await get(BindingMiddleware(app), "/shop/orders/7", **{"X-Request-Id": "r"})
    assert answer == ["r", "", "/orders/{id}"]
