"""A single-page application with absolute paths, an interface described by FastAPI, events, a WebSocket."""

import asyncio
import sys

import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response, StreamingResponse

app = FastAPI(docs_url=None)

# Stands for Swagger UI, which would come from elsewhere: it loads the description that the page names.
SWAGGER = """
function SwaggerUIBundle(settings) {
  fetch(settings.url).then(answer => answer.json()).then(it => { document.title = it.info.title + ' seen'; });
}
SwaggerUIBundle.presets = {};
SwaggerUIBundle.SwaggerUIStandalonePreset = {};
"""

PAGE = """<!doctype html><title>app</title><link rel="icon" href="data:,"><p id="state">loading…</p>
<script src="/app.js"></script>"""

SCRIPT = """
const seen = {};
function note(name, value) {
  seen[name] = value;
  document.getElementById('state').textContent = JSON.stringify(seen);
}
fetch('/openapi.json').then(answer => answer.json()).then(it => note('title', it.info.title));
fetch('/api/large').then(answer => answer.arrayBuffer()).then(it => note('large', it.byteLength));
const events = new EventSource('/events');
events.onmessage = event => {
  note('event', event.data);
  if (event.data == '3') events.close();
};
const socket = new WebSocket((location.protocol == 'https:' ? 'wss://' : 'ws://') + location.host + '/ws');
socket.onopen = () => socket.send('hello');
socket.onmessage = message => note('echo', message.data);
"""


@app.get("/")
def home():
    return HTMLResponse(PAGE)


@app.get("/app.js")
def script():
    return Response(SCRIPT, media_type="text/javascript")


@app.get("/docs")
def docs(request: Request):
    # As FastAPI's own page does it, but for where it finds its prefix.
    prefix = request.headers.get("x-forwarded-prefix", "")
    return get_swagger_ui_html(
        openapi_url=prefix + app.openapi_url,
        title="docs",
        swagger_js_url=prefix + "/swagger.js",
        swagger_css_url="data:text/css,",
        swagger_favicon_url="data:,",
    )


@app.get("/swagger.js")
def swagger():
    return Response(SWAGGER, media_type="text/javascript")


@app.get("/api/large")
def large():
    return Response(bytes(5_000_000))


@app.get("/events")
def events():
    async def each():
        for number in range(1, 4):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.2)

    return StreamingResponse(each(), media_type="text/event-stream")


@app.websocket("/ws")
async def echo(socket: WebSocket):
    await socket.accept()
    await socket.send_text("you said " + await socket.receive_text())


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
