use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::http::{Connection, get, get_agent};
use crate::support::process::Process;
use crate::support::upstream::RawUpstream;
use crate::support::{Kind, TempFile, TestBroker, start_backend, start_gateway, wait_until};

fn ask(address: SocketAddr, path: &str, fields: &str) -> u16 {
    let mut client = Connection::open(address);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
    client.read_answer().status
}

/// A gateway that reads this file.
fn start(broker: &TestBroker, file: &TempFile) -> Process {
    let (listen, url) = ("127.0.0.1:0", broker.url());
    let arguments = [
        "--listen",
        listen,
        "--broker",
        &url,
        "--config",
        file.path(),
    ];
    Process::own("api_1", &arguments)
}

/// Lets a program read its settings again, and waits until it says what came of it.
fn reload(process: &Process) -> String {
    let before = process.output().matches("SIGHUP: ").count();
    process.signal("HUP");
    wait_until("it has read its settings again", || {
        process.output().matches("SIGHUP: ").count() > before
    });
    let output = process.output();
    output
        .lines()
        .rev()
        .find(|line| line.contains("SIGHUP: "))
        .unwrap()
        .to_owned()
}

#[test]
fn a_gateway_goes_on_with_other_settings() {
    let broker = TestBroker::start(Kind::Embedded);
    let tokens = TempFile::new("anna 0123456789abcdef\n");
    let file = TempFile::new("");
    let gateway = start(&broker, &file);
    let address = gateway.address();
    wait_until("it is ready", || get(address, "/readyz").status == 200);
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    let anna = "Authorization: Bearer 0123456789abcdef\r\n";
    let ben = "Authorization: Bearer fedcba9876543210\r\n";
    assert_eq!(ask(address, "/agents", ""), 200);

    let access = format!("[access]\ntokens_file = {:?}\n", tokens.path());
    write(&access);
    let said = reload(&gateway);
    assert!(
        said.contains("INFO") && said.contains("read again"),
        "{said}"
    );
    assert_eq!(ask(address, "/agents", ""), 401);
    assert_eq!(ask(address, "/agents", anna), 200);
    // A token more, and one less.
    std::fs::write(tokens.path(), "ben fedcba9876543210\n").unwrap();
    reload(&gateway);
    assert_eq!(ask(address, "/agents", anna), 401);
    assert_eq!(ask(address, "/agents", ben), 200);

    // A mistake changes nothing, wherever it is.
    std::fs::write(tokens.path(), "ben short\n").unwrap();
    let said = reload(&gateway);
    assert!(said.contains("ERROR") && said.contains("line 1"), "{said}");
    assert_eq!(ask(address, "/agents", ben), 200);
    write("log = \"warn\"\nmax_wating = 3\n");
    let said = reload(&gateway);
    assert!(
        said.contains("nothing has changed") && said.contains("line 2"),
        "{said}"
    );
    assert_eq!(ask(address, "/agents", ben), 200);

    // Routes, names and limits.
    write(
        "via = true\n[http]\nmax_head_bytes = 1024\n[[route]]\npath = \"/shed/{*path}\"\nmode = \"http\"\nrequest_topic = \"recado/agents/shed/request\"\n[[host]]\nname = \"demo.example\"\nagent = \"demo\"\n",
    );
    reload(&gateway);
    assert_eq!(ask(address, "/ping", ""), 404);
    assert_eq!(
        ask(address, "/shed/x", ""),
        503,
        "it is not there, but it has a route"
    );
    assert_eq!(ask(address, "/agents", ""), 200);
    let long = format!("X-Long: {}\r\n", "x".repeat(2000));
    assert_eq!(ask(address, "/agents", &long), 431);
    let mut client = Connection::open(address);
    client.send(b"GET / HTTP/1.1\r\nHost: demo.example\r\n\r\n");
    assert_eq!(client.read_answer().status, 503);

    // What can't change is named, and the rest changes.
    write("listen = \"127.0.0.1:1\"\nmax_waiting = 3\nlog = \"warn\"\n");
    let said = reload(&gateway);
    assert!(
        said.contains("WARN") && said.contains("max_waiting"),
        "{said}"
    );
    // A flag beats the file, so that is as it was.
    assert!(!said.contains("listen"), "{said}");
    assert_eq!(
        ask(address, "/agents", &long),
        200,
        "the limits are as before"
    );
    let before = gateway.output();
    assert_eq!(ask(address, "/nowhere", ""), 404);
    gateway.signal("TERM");
    let (status, output) = gateway.wait();
    assert!(status.success());
    assert!(
        !output[before.len()..].contains("/nowhere"),
        "the log level has changed"
    );
}

#[test]
fn a_route_that_needs_another_topic_waits_for_a_restart() {
    let broker = TestBroker::start(Kind::Embedded);
    let file = TempFile::new("");
    let gateway = start(&broker, &file);
    let address = gateway.address();
    std::fs::write(
        file.path(),
        "[[route]]\npath = \"/lamp\"\nrequest_topic = \"lamp/ask\"\nresponse_topic = \"lamp/answer\"\n",
    )
    .unwrap();
    let said = reload(&gateway);
    assert!(said.contains("WARN") && said.contains("/lamp"), "{said}");
    assert_eq!(get(address, "/lamp").status, 404);
    assert_eq!(get(address, "/ping").status, 404, "the file has it no more");
    std::fs::write(file.path(), "").unwrap();
    assert!(reload(&gateway).contains("INFO"));
    assert_ne!(get(address, "/ping").status, 404, "its replies can come in");
}

#[test]
fn an_agent_goes_on_with_other_settings() {
    let broker = TestBroker::start(Kind::Embedded);
    let [first, second] = ["first", "second"].map(|name| {
        let length = name.len();
        RawUpstream::answering(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}"
        ))
    });
    let gateway = start_gateway(&broker);
    let address = gateway.address();
    let settings = |upstream: SocketAddr, more: &str| {
        format!("id = \"shed\"\nupstream = \"http://{upstream}\"\nupstream_check_ms = 0\n{more}")
    };
    let file = TempFile::new(&settings(first.address(), ""));
    let agent = Process::own(
        "agent",
        &["--broker", &broker.url(), "--config", file.path()],
    );
    wait_until("it is there", || get_agent(address, "shed").status == 200);
    assert_eq!(get(address, "/agents/shed/x").text(), "first");
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    write(&settings(
        second.address(),
        "[direct]\npaths = [\"/public/{*rest}\"]\n",
    ));
    let said = reload(&agent);
    assert!(said.contains("INFO"), "{said}");
    assert_eq!(get(address, "/agents/shed/x").status, 403);
    assert_eq!(get(address, "/agents/shed/public/x").text(), "second");
    write("id = \"shed\"\nupstream = \"https://[\"\n");
    assert!(reload(&agent).contains("nothing has changed"));
    assert_eq!(get(address, "/agents/shed/public/x").text(), "second");
    write(&settings(
        first.address(),
        "workers = 3\nkeep_alive_s = 20\n",
    ));
    let said = reload(&agent);
    assert!(
        said.contains("keep_alive_s") && said.contains("workers"),
        "{said}"
    );
    assert_eq!(
        get(address, "/agents/shed/public/x").text(),
        "second",
        "no service has changed"
    );
    gateway.stop().unwrap();
}

#[test]
fn no_request_is_lost_while_settings_are_read_again() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let file = TempFile::new("");
    let gateway = start(&broker, &file);
    let upstream = format!("http://{}", backend.address());
    let own = [
        "--broker",
        &broker.url(),
        "--config",
        file.path(),
        "--upstream",
        &upstream,
        "--demo",
    ];
    let agent = Process::own("agent", &own);
    let address = gateway.address();
    wait_until("all of it is there", || get(address, "/ping").status == 200);
    let (stop, answered) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Connection::open(address);
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(client.get("/ping").status, 200);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for number in 0..20 {
            let log = if number % 2 == 0 { "warn" } else { "error" };
            std::fs::write(file.path(), format!("log = \"{log}\"\n")).unwrap();
            let before = answered.load(Ordering::SeqCst);
            gateway.signal("HUP");
            agent.signal("HUP");
            wait_until("requests go on", || {
                answered.load(Ordering::SeqCst) > before + 20
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
    backend.stop().unwrap();
}
