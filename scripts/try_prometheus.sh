#!/usr/bin/env bash
# Lets a real Prometheus scrape a running chain for a minute, and checks what is in config/ for it: the alerts,
# each query of the dashboard, and what /metrics says, in both of its forms.
#
#   scripts/try_prometheus.sh
#
#   RECADO_BIN (target/debug)  where the programs are
#   SECONDS_LONG (60)          how long it scrapes
#   PYTHON (/usr/bin/python3)
#
# On Debian: apt-get install prometheus curl python3. One line for each check; exits 1 if one fails.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/chain.sh
long=${SECONDS_LONG:-60}

promtool check rules config/prometheus-alerts.yml >"$work/out" || fail "$(cat "$work/out")"
promtool check config config/prometheus.yml >"$work/out" || fail "$(cat "$work/out")"
promtool test rules tests/prometheus/alerts_test.yml >"$work/out" 2>&1 || fail "$(cat "$work/out")"
ok "alerts: rules, configuration, tests"

# Each query of the dashboard, as a rule: promtool knows no other way to read one.
"$python" - config/grafana-dashboard.json >"$work/queries.yml" <<'END'
import json, sys
dashboard = json.load(open(sys.argv[1]))
panels = [inner for panel in dashboard["panels"] for inner in [panel, *panel.get("panels", [])]]
queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
assert len(queries) > 20, queries
numbers = [panel["id"] for panel in panels]
assert len(set(numbers)) == len(numbers), "two panels have one id"
for variable, value in [("$__rate_interval", "1m"), ("$__interval", "1m"), ("$__range", "5m"), ("$instance", ".*"), ("$agent", ".*")]:
    queries = [query.replace(variable, value) for query in queries]
rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
END
promtool check rules "$work/queries.yml" >"$work/out" || fail "$(cat "$work/out")"
ok "dashboard: every query can be read"

broker=$(free_port) gateway=$(free_port) service=$(free_port) prometheus=$(free_port)
export RECADO_BROKER=mqtt://127.0.0.1:$broker no_proxy='*'
start broker "$bin/broker" --listen "127.0.0.1:$broker"
start service "$bin/api_2" --listen "127.0.0.1:$service"
start gateway "$bin/api_1" --listen "127.0.0.1:$gateway"
start agent "$bin/agent" --upstream "http://127.0.0.1:$service" --demo
until_it_answers "http://127.0.0.1:$gateway/ping" gateway
curl -s -o /dev/null "http://127.0.0.1:$gateway/agents/nobody/x"

curl -sf "http://127.0.0.1:$gateway/metrics" >"$work/metrics"
promtool check metrics <"$work/metrics" >"$work/out" 2>&1 || fail "$(cat "$work/out")"
[ ! -s "$work/out" ] || fail "promtool has something to say: $(cat "$work/out")"
curl -sfi -H 'Accept: application/openmetrics-text; version=1.0.0' "http://127.0.0.1:$gateway/metrics" >"$work/open"
grep -qi '^content-type: application/openmetrics-text; version=1.0.0' "$work/open" || fail "no OpenMetrics"
[ "$(tail -n 1 "$work/open")" = '# EOF' ] || fail "OpenMetrics without its end"
ok "metrics: both forms"

sed -e 's/127.0.0.1:5000/127.0.0.1:'"$gateway/" -e 's/scrape_interval: .*/scrape_interval: 1s/' \
  -e "s|prometheus-alerts.yml|$PWD/config/prometheus-alerts.yml|" config/prometheus.yml >"$work/prometheus.yml"
start prometheus prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
  --web.listen-address="127.0.0.1:$prometheus"
until_it_answers "http://127.0.0.1:$prometheus/-/ready" prometheus
for ((second = 0; second < long; second++)); do
  curl -sf -o /dev/null "http://127.0.0.1:$gateway/ping"
  sleep 1
done
query() {
  curl -sf -G "http://127.0.0.1:$prometheus/api/v1/query" --data-urlencode "query=$1" |
    "$python" -c 'import json, sys; print(*(it["value"][1] for it in json.load(sys.stdin)["data"]["result"]))'
}
[ "$(query 'up{job="recado"}')" = 1 ] || fail "Prometheus can't scrape it: $(query 'up')"
scrapes=$(query "count_over_time(up{job=\"recado\"}[${long}s])")
((scrapes > long / 2)) || fail "only $scrapes scrapes within $long s"
[ "$(query 'recado_ready')" = 1 ] || fail "it is not ready"
[ "$(query 'recado_agent_upstream_accepts{agent="demo", service="direct"}')" = 1 ] || fail "no figures of the agent"
answered=$(query 'recado_http_requests_total{route="/ping", code="200"}')
((${answered%.*} >= long)) || fail "$answered pings were counted of $long"
[ -n "$(query 'histogram_quantile(0.99, sum by (le) (rate(recado_request_duration_seconds_bucket{hop="total"}[30s])))')" ] ||
  fail "no latencies"
"$python" - "$work/queries.yml" "http://127.0.0.1:$prometheus" <<'END' || fail "a query of the dashboard says nothing"
import json, sys, urllib.parse, urllib.request
rules = json.load(open(sys.argv[1]))["groups"][0]["rules"]
silent = []
for rule in rules:
    url = sys.argv[2] + "/api/v1/query?" + urllib.parse.urlencode({"query": rule["expr"]})
    answer = json.load(urllib.request.urlopen(url))
    if not answer["data"]["result"]:
        silent.append(rule["expr"])
print(f"ok    dashboard: {len(rules) - len(silent)} of {len(rules)} queries have an answer", flush=True)
sys.exit(len(silent) > len(rules) // 4)
END
firing=$(curl -sf "http://127.0.0.1:$prometheus/api/v1/alerts" |
  "$python" -c 'import json, sys; print(*(it["labels"]["alertname"] for it in json.load(sys.stdin)["data"]["alerts"] if it["state"] == "firing"))')
[ -z "$firing" ] || fail "alerts of a chain that is well: $firing"
ok "Prometheus: $scrapes scrapes, no alert"
