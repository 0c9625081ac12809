const $ = (id) => document.getElementById(id);
const all = (what, where = document) => [...where.querySelectorAll(what)];
const NAMES = { gateway: "api_1", broker: "broker", agent: "agent", upstream: "service" };
const PARTS = ["gateway", "broker", "queue", "upstream"];
const PLACE = { gateway: 1, broker: 2, agent: 3, upstream: 4 };
const NONE = "–";
const KEPT = 100; // requests in the table
const SPAN = 120; // seconds in the charts
const MOST_DOTS = 60;
const LEG = 430; // how long a dot takes from one hop to the next, in ms
const LEFT_SHOWN = 60_000; // how long an agent that left stays on the page, in ms

// Whatever comes from strangers goes through these two, as text.
function el(tag, kind = "", words = "", ...children) {
  const made = document.createElement(tag);
  made.className = kind;
  made.append(words ?? "", ...children);
  return made;
}
const text = (node, words) => node.textContent === String(words) || (node.textContent = words);
function svg(tag, attributes, words = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(words);
  return made;
}
const isNumber = (value) => typeof value === "number";
const count = (value) => (isNumber(value) ? value.toLocaleString("en") : NONE);
const bound = (value) => (value < 1000 ? `${value} ms` : `${value / 1000} s`);
function ms(value) {
  if (!isNumber(value)) return NONE;
  return value < 1000 ? `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ms` : `${(value / 1000).toFixed(2)} s`;
}
function ago(value) {
  if (!isNumber(value)) return "not known";
  return value < 120_000 ? `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} s ago` : `${(value / 60_000).toFixed(0)} min ago`;
}
let samples = []; // of the state, one a second
const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);

// ---- the stream of events
// The token is kept nowhere else: pages of applications behind this gateway may share its storage.
let [hello, wait, attempt, retry, token] = [{}, 500, null, 0, null];
const authorized = (fields) => (token ? { ...fields, Authorization: `Bearer ${token}` } : fields);

function connection(connected, words) {
  $("connection").dataset.connected = connected;
  text($("connection-text"), words);
}
async function connect() {
  clearTimeout(retry);
  attempt?.abort();
  loseSight();
  const mine = (attempt = new AbortController());
  let words = "The gateway can't be reached";
  try {
    const headers = authorized({ Accept: "text/event-stream" });
    const answer = await fetch("/events", { headers, cache: "no-store", signal: mine.signal });
    if (answer.ok) {
      $("login").hidden = true;
      await read(answer.body, mine);
      words = "The gateway has closed the stream of events";
    } else {
      const detail = (await answer.json().catch(() => ({}))).detail ?? "";
      words = detail || `The gateway answers ${answer.status}`;
      if (answer.status === 401 || answer.status === 403) return askForToken(detail);
      if (answer.status === 501) return connection(false, "This front of the gateway sends no live events");
      if (answer.status === 503 && !detail) words = "16 viewers look already; there is no place for one more";
    }
  } catch {
    // It was not reached, or the stream broke; the words for that stand already.
  }
  if (attempt !== mine) return;
  connection(false, `${words}. Trying again in ${wait / 1000} s`);
  retry = setTimeout(connect, wait);
  wait = Math.min(wait * 2, 5000);
}
async function read(body, mine) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, event, data, watch] = ["", "", [], 0];
  for (;;) {
    // A machine that slept leaves a connection on which nothing will ever come.
    watch = setTimeout(() => mine.abort(), 15_000);
    const { done, value } = await reader.read().finally(() => clearTimeout(watch));
    if (done || attempt !== mine) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((it) => it.replace(/\r$/, ""))) {
      const [, field, content] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") event = content;
      else if (field === "data") data.push(content);
      else if (line === "") {
        if (data.length) take(event, data.join("\n"));
        [event, data] = ["", []];
      }
    }
  }
}
function take(event, data) {
  try {
    const said = JSON.parse(data);
    if (event === "hello") onHello(said);
    else if (event === "state") onState(said);
    else if (frozen) held = [...held, [said, event]].slice(-20 * KEPT);
    else onRequest(said, event);
  } catch (error) {
    console.warn("an event could not be shown", error);
  }
}
function onHello(said) {
  [hello, wait, samples] = [said, 500, []];
  text($("gateway"), said.gateway);
  $("ping").hidden = !said.ping;
  text($("about"), `api_1 ${said.version}. Replies come to ${said.inbox}.`);
  fillPanel();
}
function askForToken(why) {
  connection(false, "A token is needed");
  text($("login-why"), why || "Its live events are not for everybody.");
  $("login").hidden = false;
  $("token").focus();
}
$("login-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  connect();
});

// ---- requests, and their table
let requests = []; // newest first
let [latest, pinned, shown, opened] = [null, null, null, null];
let [arrived, held, frozen, undrawn] = [[], [], false, 0];
const byNumber = new Map();
const pings = new Set(); // this page's own, by their ids
const severity = (r) => (!r.status ? "waiting" : r.status >= 500 ? "bad" : r.status >= 400 ? "warn" : "ok");
const outcome = (r) => String(r.status ?? (r.lost ? "lost sight of" : "waiting"));
const wanted = (r) => ["agent", "hop"].every((what) => ["", r[what] ?? ""].includes($(`filter-${what}`).value));

function onRequest(said, event) {
  if (!["begun", "ended"].includes(event)) return;
  let r = byNumber.get(said.n);
  if (!r) {
    byNumber.set(said.n, (r = { n: said.n }));
    if (!document.hidden && !calm.matches) arrived.push(r);
  }
  if (!r.listed) requests.unshift(r);
  Object.assign(r, said, { listed: true, changed: true });
  if (requests.length > 3 * KEPT) forget();
  if (byNumber.size > 20 * KEPT) loseSight();
  if (event !== "ended") return;
  byNumber.delete(said.n);
  // What never left the gateway, and went well, has nothing to tell of the way.
  if (r.topic || r.status >= 400 || !latest?.topic) latest = r;
  if (calm.matches) nodes.slice(0, PLACE[r.hop] + 1).forEach((_, hop) => light(hop, hop === PLACE[r.hop] ? severity(r) : "ok"));
}
function forget() {
  for (const r of requests.splice(KEPT)) Object.assign(r, { row: r.row?.remove(), listed: false });
}
// Another gateway counts from one again; and where too much waits, some of it has ended unseen.
function loseSight() {
  for (const r of byNumber.values()) Object.assign(r, { lost: true, changed: true });
  byNumber.clear();
}
function fillRow(r) {
  if (!r.row) {
    const pin = el("button", "", r.id);
    Object.assign(pin, { type: "button", title: `${r.id}: show this one above`, onclick: () => show(pinned === r ? null : r) });
    const kinds = ["", "", "", "status", "", "", "n"];
    r.row = el("tr", "", "", ...kinds.map((kind) => el("td", kind)), el("td", "", pin));
    r.row.dataset.id = r.id;
  }
  r.row.dataset.status = r.status ?? (r.lost ? "lost" : "waiting");
  const time = new Date(r.time).toLocaleTimeString("en-GB");
  const words = [time, r.method, "", outcome(r), NAMES[r.hop] ?? NONE, r.agent ?? NONE, r.ms?.total.toFixed(2) ?? NONE];
  words.forEach((it, cell) => it && text(r.row.cells[cell], it));
  r.row.cells[2].replaceChildren(el("span", "mono", r.target), r.detail ? el("span", "detail", r.detail) : "");
  Object.assign(r.row, { hidden: !wanted(r), className: severity(r) + (pinned === r ? " pinned" : "") });
  r.row.lastChild.firstChild.ariaPressed = pinned === r;
  r.changed = false;
}
function renderRequests() {
  forget();
  const fresh = requests.filter((r) => !r.row);
  requests.filter((r) => r.changed).forEach(fillRow);
  $("requests").tBodies[0].prepend(...fresh.map((r) => r.row));
  const agents = new Set(requests.map((r) => r.agent).filter(Boolean));
  for (const it of [...$("filter-agent").options].slice(1)) agents.delete(it.value) || it.selected || it.remove();
  $("filter-agent").append(...[...agents].map((agent) => new Option(agent, agent)));
  $("no-requests").hidden = requests.some(wanted);
}
const refill = () => requests.forEach((r) => (r.changed = true)); // with what comes next
$("filter-agent").onchange = $("filter-hop").onchange = () => (refill(), renderRequests());

// ---- the path and its dots
let [dots, before] = [[], 0];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const nodes = all(".node");
const litUntil = nodes.map(() => 0);
function light(hop, level) {
  nodes[hop].dataset.lit = level;
  litUntil[hop] = performance.now() + (calm.matches ? 700 : 160);
}
function spawn(r) {
  if (dots.length >= MOST_DOTS) return void text($("undrawn"), `${count(++undrawn)} had no dot: at most ${MOST_DOTS} are on their way.`);
  const dot = { r, el: el("span", pings.has(r.id) ? "dot own" : "dot"), at: 0, back: false, hold: 0, age: 0, lane: -1, aside: Math.random() * 5 - 2.5 };
  $("path").append(dot.el);
  dots.push(dot);
}
function arrive(dot, hop) {
  // It stays for the hop's share of the time; the broker and the agent are passed twice.
  const share = (dot.r.ms?.[PARTS[hop - 1]] ?? 0) / (dot.r.ms?.total || 1);
  dot.hold = 90 + (900 * Math.min(share, 1)) / (hop === 4 ? 1 : 2);
  light(hop, dot.back ? severity(dot.r) : "ok");
}
// Whether it goes on.
function move(dot, step) {
  const { r } = dot;
  const known = r.status !== undefined;
  // Where it waits for an answer: at its agent, or where somebody is looked for.
  const target = known ? (PLACE[r.hop] ?? 1) : r.agent ? 3 : 2;
  dot.lane += ((dot.back ? 1 : -1) - dot.lane) * Math.min(1, step / 90);
  if (dot.hold > 0) dot.hold -= step;
  else if (dot.back || dot.at < target) {
    const next = dot.back ? Math.ceil(dot.at) - 1 : Math.floor(dot.at) + 1;
    const far = Math.abs(next - dot.at) > step / LEG;
    dot.at = far ? dot.at + Math.sign(next - dot.at) * (step / LEG) : next;
    if (!far) arrive(dot, next);
  } else if (known) {
    dot.back = true;
    dot.el.classList.add(severity(r));
    light(dot.at, severity(r));
  }
  dot.el.classList.toggle("waiting", !known && dot.at === target);
  return !r.lost && (dot.at > 0 || !dot.back) && (dot.age += step) < 90_000;
}
function frame(now) {
  const step = Math.min(now - before, 100);
  before = now;
  arrived.splice(0).forEach(spawn);
  if (!frozen) dots = dots.filter((dot) => {
    if (calm.matches || !move(dot, step)) return dot.el.remove();
    dot.el.style.left = `${10 + 20 * dot.at}%`;
    dot.el.style.translate = `-50% calc(-50% + ${dot.aside}px + var(--lane) * ${dot.lane})`;
    return true;
  });
  nodes.forEach((node, hop) => now > litUntil[hop] && delete node.dataset.lit);
  requestAnimationFrame(frame);
}
$("pause").onclick = () => {
  $("pause").setAttribute("aria-pressed", (frozen = !frozen));
  if (!frozen) held.splice(0).forEach((it) => onRequest(...it));
};

// ---- the last request, and the panel of a hop
function show(pin) {
  if (pin !== pinned) {
    [pinned, shown, $("unpin").hidden] = [pin, null, !pin];
    refill();
    renderRequests();
  }
  const r = pinned ?? latest;
  if (!r || (r === shown && r.drawn === r.status)) return;
  [shown, r.drawn] = [r, r.status];
  const from = r.hop === "gateway" ? "api_1 itself" : `the ${NAMES[r.hop]}`;
  const words = r.status ? `${r.status} from ${from}, ${ms(r.ms?.total)}${r.detail ? `: ${r.detail}` : ""}` : outcome(r);
  $("last-text").replaceChildren(el("p", "", "", el("strong", "", `${r.method} `), el("span", "mono", r.target)), el("p", severity(r), words));
  $("last").className = pinned ? "pinned" : "";
  for (const node of all("[data-time]")) text(node, ms(r.ms?.[node.dataset.time]));
  for (const part of $("share").children) {
    part.style.flexGrow = (r.ms?.[part.dataset.part] ?? 0) / (r.ms?.total || 1);
    text(part, part.style.flexGrow > 0.12 ? (NAMES[part.dataset.part] ?? "") : "");
  }
  fillPanel();
}
$("unpin").onclick = () => show(null);

function fillPanel() {
  const r = pinned ?? latest ?? {};
  const known = PARTS.filter((part) => isNumber(r.ms?.[part]));
  const isHttp = r.inbox === hello.inbox; // JSON routes have inboxes of their own
  const values = {
    ...r,
    ...Object.fromEntries(PARTS.map((part) => [part, ms(r.ms?.[part])])),
    request: r.method && `${r.method} ${r.target}`,
    "http-method": isHttp && r.method,
    "http-id": isHttp && r.id,
    "json-id": r.inbox && !isHttp && r.id,
    answer: r.status && `${r.status} after ${ms(r.ms?.total)}`,
    bytes: r.status && `${count(r.in)}, ${count(r.out)}`,
    timing: known.map((part) => `${part};dur=${r.ms[part].toFixed(3)}`).join(", "),
    "reply-timing": known.length === 4 && `queue=${Math.round(r.ms.queue * 1000)};upstream=${Math.round(r.ms.upstream * 1000)}`,
    // Of what fails at the agent it is not known whether the agent said so.
    ...(r.hop === "upstream" ? { "reply-status": r.status, error: r.detail && r.hop } : {}),
    "broker-url": hello.broker,
    "gateway-name": hello.gateway,
  };
  for (const node of all("[data-fill]", $("hop-panel"))) text(node, values[node.dataset.fill] || NONE);
}
function open(button) {
  opened = opened === button ? null : button;
  $("hop-panel").hidden = !opened;
  for (const hop of all(".hop")) hop.setAttribute("aria-expanded", hop === opened);
  if (!opened) return button.focus();
  const close = el("button", "close", "Close");
  close.onclick = () => open(button);
  $("hop-panel").replaceChildren($(`panel-${button.dataset.hop}`).content.cloneNode(true), close);
  fillPanel();
}
for (const button of all(".hop")) button.onclick = () => open(button);
$("path").onkeydown = $("hop-panel").onkeydown = (pressed) => void (pressed.key === "Escape" && opened && open(opened));

// ---- ping
$("ping").onclick = async () => {
  const id = `page-${crypto.getRandomValues(new BigUint64Array(1))[0].toString(16).padStart(16, "0")}`;
  pings.add(id);
  $("ping").disabled = true;
  let box = el("div");
  try {
    const begun = performance.now();
    const answer = await fetch("/ping", { headers: authorized({ "X-Request-Id": id }), cache: "no-store" });
    const body = await answer.text();
    if (!answer.ok) box.className = "failed";
    const words = ` after ${ms(performance.now() - begun)} in the browser, as request `;
    box.append(el("strong", "", `${answer.status} ${answer.statusText}`), words, el("code", "", id));
    const parts = [...(answer.headers.get("server-timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
    const said = parts.map(([, name, time]) => `${name === "queue" ? "agent's queue" : (NAMES[name] ?? name)} ${ms(+time)}`);
    if (said.length) box.append(el("p", "soft small", `Server-Timing says: ${said.join(", ")}`));
    box.append(el("pre", "", body));
    if (answer.status === 401) askForToken("");
  } catch {
    box = el("div", "failed", "The gateway can't be reached.");
  }
  $("ping-answer").replaceChildren(box);
  $("ping").disabled = false;
};

// ---- the state: agents
const present = new Map(); // by id and instance: the agent, and when it was listed last
const STATES = { silent: "silent: too long without a word", lost: "lost: vanished without a goodbye" };
function onState(s) {
  const why = `The gateway is not connected to the broker${s.why ? `: ${s.why}` : ""}`;
  connection(s.connected, s.connected ? `Connected to ${hello.broker}` : why);
  $("hop-broker").dataset.down = !s.connected;
  $("hop-agent").dataset.down = !s.agents.some((agent) => agent.state === "ready");
  if (samples.at(-1)?.requests > s.requests) samples = [];
  samples = [...samples, s].slice(-SPAN - 1);
  const listed = [...s.agents, ...s.lost.map((lost) => ({ ...lost, id: lost.agent, state: "lost" }))];
  for (const agent of listed) present.set(`${agent.id}/${agent.instance}`, { agent, seen: s.time });
  for (const [key, { agent, seen }] of present) {
    // Its next instance, or that it is lost, says more than that it left.
    const told = seen < s.time && listed.some((it) => it.id === agent.id);
    if (told || s.time - seen > LEFT_SHOWN) present.delete(key);
  }
  const sorted = [...present.values()].sort((a, b) => (a.agent.id < b.agent.id ? -1 : 1));
  $("agents").replaceChildren(...sorted.map(({ agent, seen }) => card(agent, s.time - seen)));
  $("no-agents").hidden = present.size > 0;
  $("more-agents").hidden = !s.more_agents;
  text($("more-agents"), `${count(s.more_agents ?? 0)} more are there; /agents lists them all.`);
  text($("unshown"), `One by one at most ${hello.shows_per_second} a second are shown; ${count(s.unshown)} more were only counted.`);
  renderFigures(s);
}
function card(agent, leftFor) {
  const state = leftFor ? "left" : agent.state;
  const seen = leftFor ? `left ${ago(leftFor)}` : `last seen ${ago(agent.last_seen_ms)}`;
  const since = agent.since && `since ${agent.since.replace("T", " ").replace(/(\.\d+)?Z$/, " UTC")}`;
  const figures = { "in work": agent.in_work, queued: agent.queued, requests: agent.requests, "errors, 1 min": agent.errors_last_minute };
  const shown = Object.entries(leftFor ? {} : figures).filter(([, value]) => isNumber(value));
  const figure = ([name, value]) => el("div", "", "", el("dt", "", name), el("dd", name.startsWith("err") && value ? "bad" : "", count(value)));
  const accepts = (it) => {
    if (it.accepts) return el("span", "yes", " accepts connections");
    if (it.accepts === null) return el("span", "soft", " nobody has tried");
    return el("span", "no", ` accepts no connections${it.why ? `: ${it.why}` : ""}`);
  };
  const upstream = (it) => el("li", "", "", el("strong", "", it.service), accepts(it));
  const box = el("article", "agent", "",
    el("header", "", "", el("h3", "", agent.id), el("span", "state", STATES[state] ?? state)),
    el("p", "small", agent.services?.length ? `serves ${agent.services.join(", ")}` : ""),
    el("p", "soft small", [seen, agent.version && `version ${agent.version}`, since].filter(Boolean).join(", ")),
    el("dl", "", "", ...shown.map(figure)),
    el("ul", "", "", ...(leftFor ? [] : (agent.upstreams ?? []).map(upstream))));
  Object.assign(box.dataset, { agent: agent.id, state });
  return box;
}

// ---- the state: figures and charts
const between = (newer, older) => newer.latency.map((n, bucket) => n - older.latency[bucket]);
function quantile(counts, share) {
  let rest = share * sum(counts);
  const bucket = counts.findIndex((n) => (rest -= n) <= 0 && n > 0);
  if (bucket < 0) return null;
  const [low, high] = [hello.bounds_ms[bucket - 1] ?? 0, hello.bounds_ms[bucket] ?? 2 * hello.bounds_ms.at(-1)];
  return high + ((high - low) * rest) / counts[bucket];
}
function plot(id, label, ticks, y, series) {
  const [chart, parts] = [$(id), []];
  const { clientWidth: width, clientHeight: height } = chart;
  const place = (value) => (height - 4 - y(value) * (height - 20)).toFixed(1);
  for (const [value, words] of ticks) {
    parts.push(svg("line", { class: "grid", x1: 0, x2: width, y1: place(value), y2: place(value) }), svg("text", { x: 0, y: place(value) - 3 }, words));
  }
  for (const [kind, values] of series) {
    let [path, down] = ["", false];
    values.forEach((value, at) => {
      const x = (width * (SPAN - values.length + at)) / (SPAN - 1);
      if (value !== null) path += down ? `L${x.toFixed(1)} ${place(value)}` : `M${x.toFixed(1)} ${place(value)}h.1`;
      down = value !== null;
    });
    parts.push(svg("path", { class: kind, d: path }));
  }
  chart.replaceChildren(...parts);
  chart.setAttribute("aria-label", label);
}
function renderFigures(s) {
  const [oldest, steps] = [samples[0], samples.slice(1)];
  const rates = (of) => steps.map((it, at) => (of(it) - of(samples[at])) / Math.max((it.time - samples[at].time) / 1000, 0.1));
  // Over five seconds, so that a few requests make a line and not a comb.
  const quantiles = (share) => steps.map((it, at) => quantile(between(it, samples[Math.max(0, at - 4)]), share));
  const [rate, failed, median, p99] = [rates((it) => it.requests), rates((it) => sum(Object.values(it.errors))), quantiles(0.5), quantiles(0.99)];
  const [rateNow = null, medianNow, p99Now] = [rate, median, p99].map((values) => values.at(-1));
  const now = { rate: rateNow === null ? NONE : rateNow.toFixed(rateNow < 10 ? 1 : 0), median: ms(medianNow), p99: ms(p99Now) };
  for (const name of ["waiting", "streams", "requests", "viewers"]) now[name] = count(s[name]);
  for (const figure of all("[data-figure]")) text(figure, now[figure.dataset.figure]);
  const peak = Math.max(1, ...rate);
  const round = 10 ** Math.floor(Math.log10(peak));
  const top = [1, 2, 5, 10].find((n) => n * round >= peak) * round;
  const words = `Now ${now.rate} requests per second, at most ${count(Math.round(peak))}`;
  plot("chart-rate", words, [[0, ""], [top / 2, ""], [top, count(top)]], (value) => value / top, [["", rate], ["bad", failed]]);
  const decades = Math.max(3, Math.ceil(Math.log10(Math.max(1, ...p99))) + 1);
  const ticks = Array.from({ length: decades + 1 }, (_, n) => [10 ** (n - 1), n % 2 ? bound(10 ** (n - 1)) : ""]);
  plot("chart-latency", `Median ${now.median}, 99 of 100 within ${now.p99}`, ticks, (value) => Math.max(0, Math.log10(value) + 1) / decades, [["dash", p99], ["", median]]);
  const [lately, ever] = [between(s, oldest), s.latency];
  const chart = $("chart-histogram");
  const share = (counts, bucket) => counts[bucket] / (sum(counts) || 1);
  const largest = Math.max(0.05, ...ever.flatMap((_, bucket) => [share(lately, bucket), share(ever, bucket)]));
  const step = chart.clientWidth / ever.length;
  const bar = (kind, counts, bucket, inset) => {
    const height = (share(counts, bucket) / largest) * (chart.clientHeight - 18);
    return svg("rect", { class: kind, x: bucket * step + inset, width: step - 2 * inset, y: chart.clientHeight - height, height });
  };
  chart.replaceChildren(svg("text", { x: 0, y: 11 }, `${Math.round(largest * 100)} %`));
  ever.forEach((_, bucket) => chart.append(bar("bar", lately, bucket, 2.5), bar("outline", ever, bucket, 1)));
  chart.setAttribute("aria-label", `Half of the requests of the last two minutes took at most ${ms(quantile(lately, 0.5))}`);
  const bounds = hello.bounds_ms;
  $("histogram-axis").replaceChildren(...["0", bound(bounds[3]), bound(bounds[7]), `over ${bound(bounds.at(-1))}`].map((it) => el("span", "", it)));
  const most = Math.max(1, ...Object.values(s.errors));
  for (const hop of Object.keys(PLACE)) {
    $(`meter-${hop}`).style.width = `${(100 * s.errors[hop]) / most}%`;
    text($(`errors-${hop}`), count(s.errors[hop]));
    text($(`lately-${hop}`), count(s.errors[hop] - oldest.errors[hop]));
  }
}
requestAnimationFrame(frame);
setInterval(() => frozen || (renderRequests(), show(pinned)), 150);
connect();
