//! What HTTP asks of an intermediary, as a table: section, requirement, and what proves it.
//!
//! api_1, the broker and the agent together are one intermediary. Rows that begin with `case` are
//! proved by a case of `hostile_http.txt`, which sends the same to the front alone.

use std::sync::{Arc, Mutex};

use crate::support::http::{Answer, Connection};
use crate::support::upstream::RawUpstream;
use crate::support::{Kind, TestBroker, gateway_settings_of, start_agent, start_gateway_with};

type Lines = &'static [&'static str];

enum Proof {
    /// This request arrives with these lines, and without these beginnings of lines.
    Arrives(&'static str, Lines, Lines),
    /// This request gets this status, with these lines, and never arrives.
    Refused(&'static str, u16, Lines),
    /// This answer of the upstream to this method arrives with this status, these lines, this body,
    /// and without these beginnings of lines.
    Comes(&'static str, &'static str, u16, Lines, &'static str, Lines),
    /// This case of hostile_http.txt.
    Case(&'static str),
}
use Proof::{Arrives, Case, Comes, Refused};

const GET: &str = "GET /agents/demo/x HTTP/1.1\r\nHost: gateway.example\r\n";

const TABLE: &[(&str, &str, Proof)] = &[
    (
        "RFC 9110, 5.3",
        "the order of fields with one name is kept",
        Arrives(
            "GET * HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\nA: 3\r\n",
            &["a: 1", "a: 3", "b: 2"],
            &[],
        ),
    ),
    (
        "RFC 9110, 7.6.1",
        "Connection, and what it lists, stays at its hop",
        Arrives(
            "GET * HTTP/1.1\r\nHost: x\r\nConnection: X-Own, close\r\nX-Own: 1\r\nX-Other: 1\r\n",
            &["x-other: 1"],
            &["x-own", "connection: x-own"],
        ),
    ),
    (
        "RFC 9110, 7.6.1",
        "Keep-Alive, Proxy-Connection, TE, Transfer-Encoding and Upgrade stay at their hop",
        Arrives(
            "GET * HTTP/1.1\r\nHost: x\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
             TE: trailers\r\nConnection: TE, Upgrade\r\nUpgrade: h2c\r\n",
            &[],
            &["keep-alive", "proxy-connection", "te:", "upgrade"],
        ),
    ),
    (
        "RFC 9110, 7.6.1",
        "the same of an answer",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nConnection: X-Own\r\nX-Own: 1\r\nX-Other: 1\r\nContent-Length: 2\r\n\r\nok",
            200,
            &["x-other: 1"],
            "ok",
            &["x-own", "connection: x-own"],
        ),
    ),
    (
        "RFC 9110, 7.6.2",
        "Max-Forwards of OPTIONS and TRACE is counted down",
        Arrives(
            "OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 3\r\n",
            &["max-forwards: 2"],
            &[],
        ),
    ),
    (
        "RFC 9110, 7.6.2",
        "OPTIONS with none left is answered here",
        Refused(
            "OPTIONS /agents/demo/x HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n",
            200,
            &["allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"],
        ),
    ),
    (
        "RFC 9110, 7.6.2",
        "TRACE with none left is answered here",
        Refused(
            "TRACE /agents/demo/x HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n",
            200,
            &["content-type: message/http"],
        ),
    ),
    (
        "RFC 9110, 7.6.3",
        "Via is added to requests, behind what is there",
        Arrives(
            "GET * HTTP/1.1\r\nHost: x\r\nVia: 1.0 fred\r\n",
            &["via: 1.0 fred, 1.1 recado"],
            &[],
        ),
    ),
    (
        "RFC 9110, 7.6.3",
        "Via is added to answers, behind what is there",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nVia: 1.0 fred\r\nContent-Length: 0\r\n\r\n",
            200,
            &["via: 1.0 fred, 1.1 recado"],
            "",
            &[],
        ),
    ),
    (
        "RFC 9110, 7.7",
        "a body with no-transform, and any other, is not changed",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nCache-Control: no-transform\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x01x",
            200,
            &["cache-control: no-transform", "content-encoding: gzip"],
            "\x1f\x01x",
            &[],
        ),
    ),
    (
        "RFC 9110, 7.8",
        "Upgrade in HTTP/1.0 is ignored",
        Arrives(
            "GET * HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
            &[],
            &["upgrade"],
        ),
    ),
    (
        "RFC 9110, 8.6",
        "no Content-Length is made up for HEAD",
        Comes(
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            200,
            &[],
            "",
            &["content-length"],
        ),
    ),
    (
        "RFC 9110, 8.6",
        "no Content-Length in a 204",
        Comes(
            "GET",
            "HTTP/1.1 204 No Content\r\n\r\n",
            204,
            &[],
            "",
            &["content-length", "transfer-encoding"],
        ),
    ),
    (
        "RFC 9110, 8.8.3",
        "validators pass, and so does a 304 without a body",
        Comes(
            "GET",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            304,
            &["etag: \"a\""],
            "",
            &["content-length"],
        ),
    ),
    (
        "RFC 9110, 10.1.1",
        "Expect is met here and not passed on",
        Arrives(
            "POST * HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n",
            &["content-length: 0"],
            &["expect"],
        ),
    ),
    (
        "RFC 9110, 11.7",
        "what is for a proxy is not for the upstream",
        Arrives(
            "GET * HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\nAuthorization: Basic eA==\r\n",
            &["authorization: Basic eA=="],
            &["proxy-authorization"],
        ),
    ),
    (
        "RFC 9110, 14.2",
        "a part of a body passes as such",
        Comes(
            "GET",
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
            206,
            &["content-range: bytes 0-1/9"],
            "ok",
            &[],
        ),
    ),
    (
        "RFC 9110, 15",
        "a status that is not known passes with its class",
        Comes(
            "GET",
            "HTTP/1.1 471 Odd\r\nContent-Length: 2\r\n\r\nok",
            471,
            &[],
            "ok",
            &[],
        ),
    ),
    (
        "RFC 9110, 15.2",
        "answers that only inform are no answers",
        Comes(
            "GET",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            200,
            &[],
            "ok",
            &["link"],
        ),
    ),
    (
        "RFC 9112, 2.3",
        "the version is the intermediary's own",
        Arrives(
            "GET * HTTP/1.0\r\nHost: x\r\n",
            &["get /x http/1.1"],
            &["get /x http/1.0"],
        ),
    ),
    (
        "RFC 9112, 3.2",
        "the target passes byte for byte",
        Arrives(
            "GET *%2Fa//b;c?d=%20&&e HTTP/1.1\r\nHost: x\r\n",
            &["get /x%2fa//b;c?d=%20&&e http/1.1"],
            &[],
        ),
    ),
    (
        "RFC 9112, 3.2",
        "Host is the upstream's, and the gateway's is told apart",
        Arrives(
            "GET * HTTP/1.1\r\nHost: gateway.example\r\n",
            &["x-forwarded-host: gateway.example"],
            &["host: gateway.example"],
        ),
    ),
    (
        "RFC 9112, 5.1",
        "white space before the colon of an answer is removed",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nName : value\r\nContent-Length: 2\r\n\r\nok",
            200,
            &["name: value"],
            "ok",
            &["name :"],
        ),
    ),
    (
        "RFC 9112, 5.2",
        "an answer with folded lines is discarded",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
            502,
            &[],
            "*",
            &[],
        ),
    ),
    (
        "RFC 9112, 6.1",
        "chunked is decoded, and what is sent on is framed anew",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nTrailer: x\r\n\r\n",
            200,
            &["content-length: 2"],
            "ok",
            &["transfer-encoding", "trailer"],
        ),
    ),
    (
        "RFC 9112, 6.1",
        "a transfer coding that is not known is not passed over",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            502,
            &[],
            "*",
            &[],
        ),
    ),
    (
        "RFC 9112, 6.3",
        "with Transfer-Encoding, Content-Length is removed",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
            &["content-length: 2"],
            "ok",
            &["content-length: 9"],
        ),
    ),
    (
        "RFC 9112, 6.3",
        "an answer with two lengths is a 502",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
            502,
            &[],
            "*",
            &[],
        ),
    ),
    (
        "RFC 9112, 8",
        "an incomplete answer is not passed on as a whole one",
        Comes(
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
            502,
            &[],
            "*",
            &[],
        ),
    ),
    (
        "RFC 9112, 9.3",
        "a method that is not idempotent is never repeated",
        Comes("POST", "", 502, &[], "*", &[]),
    ),
    (
        "RFC 9112, 2.2",
        "one empty line before a request is ignored",
        Case("one-empty-line-before"),
    ),
    (
        "RFC 9112, 2.2",
        "a bare carriage return is refused",
        Case("bare-cr-after-request-line"),
    ),
    (
        "RFC 9112, 3.2",
        "HTTP/1.1 without Host is refused",
        Case("host-missing"),
    ),
    (
        "RFC 9112, 3.2",
        "more than one Host is refused",
        Case("host-twice-in-other-case"),
    ),
    (
        "RFC 9112, 3.2.2",
        "an absolute target beats Host",
        Case("absolute-with-query-only"),
    ),
    (
        "RFC 9112, 5.1",
        "white space before the colon of a request is refused",
        Case("length-space-before-colon"),
    ),
    (
        "RFC 9112, 5.2",
        "folded lines of a request are refused",
        Case("value-folded-empty"),
    ),
    (
        "RFC 9112, 6.1",
        "a transfer coding that is not known is a 501",
        Case("coding-unknown-with-length"),
    ),
    (
        "RFC 9112, 6.3",
        "two lengths of a request are refused",
        Case("smuggled-by-two-lengths"),
    ),
    (
        "RFC 9112, 7.1",
        "a chunk size that overflows is refused",
        Case("chunk-size-2-to-the-32-plus-5"),
    ),
    (
        "RFC 9112, 7.1.1",
        "chunk extensions are ignored",
        Case("extension-several"),
    ),
    (
        "RFC 9112, 7.1.2",
        "trailer fields are not merged into the head",
        Case("trailer-host"),
    ),
    (
        "RFC 9112, 9.6",
        "close is said, and kept",
        Case("connection-close"),
    ),
];

#[test]
fn what_an_intermediary_must_do_is_done() {
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let seen_too = Arc::clone(&seen);
    let upstream = RawUpstream::choosing(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        let number = path.trim_start_matches("/answer/").parse::<usize>();
        match number.ok().map(|number| &TABLE[number].2) {
            Some(Comes(_, bytes, ..)) => (*bytes).to_owned(),
            _ => {
                seen_too.lock().unwrap().push(head.to_ascii_lowercase());
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
        }
    });
    let broker = TestBroker::start(Kind::Embedded);
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), "via = true"));
    let exchange = |bytes: &str, is_head: bool| -> Answer {
        let mut client = Connection::open(gateway.address());
        client.send(bytes.as_bytes());
        match is_head {
            true => client.read_head_answer(),
            false => client.read_answer(),
        }
    };
    assert_eq!(exchange(&format!("{GET}\r\n"), false).status, 200);
    let cases = include_str!("hostile_http.txt");
    for (number, (section, requirement, proof)) in TABLE.iter().enumerate() {
        let what = format!("{section}: {requirement}");
        seen.lock().unwrap().clear();
        match proof {
            Arrives(request, has, lacks) => {
                let request = request.replacen(" *", " /agents/demo/x", 1);
                let answer = exchange(&format!("{request}\r\n"), false);
                assert_eq!(answer.status, 200, "{what}: {}", answer.text());
                let arrived = seen.lock().unwrap().clone();
                assert_eq!(arrived.len(), 1, "{what}");
                let lines: Vec<&str> = arrived[0].lines().collect();
                check(&lines, has, lacks, &what);
            }
            Refused(request, status, has) => {
                let answer = exchange(request, false);
                assert_eq!(answer.status, *status, "{what}");
                let lines = lines_of(&answer);
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                check(&lines, has, &[], &what);
                assert!(seen.lock().unwrap().is_empty(), "{what}: it arrived");
            }
            Comes(method, _, status, has, body, lacks) => {
                let request =
                    format!("{method} /agents/demo/answer/{number} HTTP/1.1\r\nHost: x\r\n\r\n");
                let answer = exchange(&request, *method == "HEAD");
                assert_eq!(answer.status, *status, "{what}: {answer:?}");
                let lines = lines_of(&answer);
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                check(&lines, has, lacks, &what);
                assert!(*body == "*" || answer.body == body.as_bytes(), "{what}");
            }
            Case(name) => {
                let begins = |line: &str| line.starts_with(&format!("{name} |"));
                assert!(cases.lines().any(begins), "{what}: there is no case {name}");
            }
        }
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

fn lines_of(answer: &Answer) -> Vec<String> {
    let fields = answer.headers().iter();
    let lines = fields.map(|(name, value)| format!("{name}: {value}").to_ascii_lowercase());
    lines.collect()
}

fn check(lines: &[&str], has: &[&str], lacks: &[&str], what: &str) {
    for line in has {
        let line = line.to_ascii_lowercase();
        assert!(
            lines.contains(&line.as_str()),
            "{what}: {line:?} in {lines:?}"
        );
    }
    for begin in lacks {
        let found = lines.iter().find(|line| line.starts_with(begin));
        assert_eq!(found, None, "{what}");
    }
}
