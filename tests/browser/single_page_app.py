"""A single-page application with absolute paths, an interface described by FastAPI, events, a WebSocket."""

import asyncio
import sys

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import HTMLResponse, Response, StreamingResponse

# The pages of the documentation would come from elsewhere; what they load from here is what counts.
app = FastAPI(docs_url=None)

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
