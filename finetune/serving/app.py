"""The HTTP interface: POST /predict, GET /model, GET /health, the page, and their OpenAPI description."""

from __future__ import annotations

import asyncio
import base64
import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from torch import Tensor

from finetune.errors import printable
from finetune.runtime import cpu
from finetune.serving.guard import Guard
from finetune.serving.schemas import (
    REFUSALS,
    UPLOAD,
    ExampleImage,
    ExampleImages,
    Explanation,
    Health,
    Model,
    Models,
    Prediction,
    Predictions,
)
from finetune.serving.served import Served
from finetune.serving.uploads import Uploads, busy

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"/": ("index.html", "text/html"), "/style.css": ("style.css", "text/css"),
              "/page.js": ("page.js", "text/javascript")}  # fmt: skip

Value = TypeVar("Value")
print_at_once = partial(print, flush=True)


def make(
    models: list[Served], host: str, more_hosts: Iterable[str] = (), log: Callable[..., None] = print_at_once
) -> Guard:
    """The application for some models, as `host`; each request is logged by its size, answer and time alone."""
    app = FastAPI(title="finetune demo", description="Image classification.", docs_url=None, redoc_url=None)
    by_name, uploads = {served.name: served for served in models}, Uploads()
    decoders, readers = ThreadPoolExecutor(cpu.cores(), "decode"), ThreadPoolExecutor(1, "examples")
    explainers = ThreadPoolExecutor(1, "explain")

    def chosen(run: str) -> Served:
        if run and run not in by_name:
            raise HTTPException(404, "there is no such run here; GET /model lists them.")
        return by_name[run] if run else models[0]

    async def aside(threads: ThreadPoolExecutor, work: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)

    async def answer(served: Served, data: bytes, number: int, count: int) -> Tensor:
        """The probabilities, (classes,), for one of `count` files."""
        try:
            image = await aside(decoders, served.image, data)
        except HTTPException as error:
            where = f"file {number + 1}: " if count > 1 else ""
            raise HTTPException(error.status_code, f"{where}{error.detail}") from None
        try:
            return await asyncio.wrap_future(served.batcher.submit(image))
        except queue.Full:  # of images whose requests have ended
            raise busy() from None

    @app.post("/predict", responses=REFUSALS, openapi_extra=UPLOAD)
    async def predict(request: Request, run: str = "", topk: Annotated[int, Query(ge=1)] = 5) -> Predictions:
        """Classify one image or several. `run` names one of the served models; the first by default."""
        served, began = chosen(run), time.perf_counter()
        async with uploads.read(request) as files:
            with served.room(len(files)):
                rows = await asyncio.gather(*(answer(served, data, k, len(files)) for k, data in enumerate(files)))
            size = sum(map(len, files))
        classes = served.predictor.metadata.classes
        found = [_prediction(row, classes, topk) for row in rows]
        words = printable(", ".join(f"{one.name} {one.probability:.3f}" for one in found))
        log(f"{size} bytes  {words}  {1000 * (time.perf_counter() - began):.0f} ms")
        return Predictions(run=served.name, version=served.version, predictions=found)

    @app.post("/explain", responses=REFUSALS, openapi_extra=UPLOAD)
    async def explain(request: Request, label: Annotated[str, Query(alias="class")], run: str = "") -> Explanation:
        """Where a model looked in one image for a class."""
        served = chosen(run)
        classes = served.predictor.metadata.classes
        if label not in classes:
            raise HTTPException(404, "the model has no such class; GET /model lists them.")
        async with uploads.read(request) as files:
            if len(files) > 1:
                raise HTTPException(400, "send one image.")
            with served.room(1):
                image = await aside(decoders, served.image, files[0])
                content, method = await aside(explainers, served.explain, image, classes.index(label))
        address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return Explanation(**{"class": label}, run=served.name, version=served.version, method=method, image=address)

    @app.get("/model")
    async def model() -> Models:
        """The models that are served."""
        return Models(models=[_model(served) for served in models])

    @app.get("/examples", responses={404: REFUSALS[404]})
    async def examples(run: str = "") -> ExampleImages:
        """Validation images of a run, misclassified ones among them. None where its images are gone."""
        served = chosen(run)
        found = await aside(readers, served.examples.all)
        shown = [
            ExampleImage(image=f"examples/{k}?run={quote(served.name)}", true=one.true, predicted=one.predicted)
            for k, one in enumerate(found)
        ]
        return ExampleImages(examples=shown)

    @app.get("/examples/{number}", response_class=Response, responses={404: REFUSALS[404]})
    async def example(number: int, run: str = "") -> Response:
        """The file of an example."""
        found = await aside(readers, chosen(run).examples.all)
        if not 0 <= number < len(found):
            raise HTTPException(404, "there is no such example.")
        try:
            content, media_type = await aside(readers, found[number].content)
        except OSError:
            raise HTTPException(404, "the file of this example is gone.") from None
        return Response(content, media_type=media_type)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server answers."""
        return Health(status="ok", waiting=sum(served.waiting for served in models))

    for path, (name, media_type) in PAGE_FILES.items():
        content = (PAGE / name).read_bytes()
        app.get(path, include_in_schema=False)(_file(content, media_type))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed on this request; its owner sees why."}, 500)

    return Guard(app, host, more_hosts)


def _prediction(row: Tensor, classes: list[str], topk: int) -> Prediction:
    highest, found = row.topk(min(topk, len(row)))
    top = [{"class": classes[k], "probability": p} for k, p in zip(found.tolist(), highest.tolist(), strict=True)]
    return Prediction(**top[0], top=top)


def _model(served: Served) -> Model:
    known = served.predictor.metadata
    return Model(
        run=served.name,
        version=served.version,
        model=known.net.model,
        classes=known.classes,
        preprocess=asdict(known.preprocess),
        score=known.score,
        card=served.card,
    )


def _file(content: bytes, media_type: str) -> Callable[[], Any]:
    async def file() -> Response:
        return Response(content, media_type=media_type)

    return file
