"""A site as Flask makes it: a login with a session, links and redirects with absolute paths, an upload."""

import sys

from flask import Flask, redirect, request, session, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.secret_key = "for this test only"
# Below a path it is told which; by a name there is none.
app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1, x_prefix=1)

PAGE = """<!doctype html><title>{title}</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="{style}">{body}"""


def page(title, body):
    return PAGE.format(title=title, style=url_for("style"), body=body)


@app.get("/style.css")
def style():
    return "h1 { color: rgb(1, 2, 3) }", 200, {"Content-Type": "text/css"}


@app.get("/")
def home():
    if "user" not in session:
        return redirect(url_for("login"))
    form = f"""<h1>Hello {session["user"]}</h1>
        <form method="post" action="{url_for("upload")}" enctype="multipart/form-data">
        <input type="file" name="file"><button>send</button></form>"""
    return page("home", form)


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "POST":
        session["user"] = request.form["user"]
        return redirect(url_for("home"))
    return page("login", '<form method="post"><input name="user"><button>log in</button></form>')


@app.post("/upload")
def upload():
    return page("sent", f"<p>{len(request.files['file'].read())} bytes</p>")


app.run("127.0.0.1", int(sys.argv[1]))
