use std::process::Command;

use crate::support::process::{Process, own_command};
use crate::support::{Kind, TempFile, TestBroker, free_port};

fn config(name: &str) -> String {
    format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs to its end; returns the exit code and everything printed.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let (status, output) = Process::spawn(command).wait();
    (status.code(), output)
}

#[test]
fn the_shipped_files_say_what_the_defaults_are() {
    for (program, file) in [("api_1", "api_1.toml"), ("agent", "agent.toml")] {
        let with_file = run(own_command(program).args(["--check", "--config", &config(file)]));
        let without = run(own_command(program).arg("--check"));
        assert_eq!(with_file.0, Some(0), "{}", with_file.1);
        assert_eq!(with_file, without, "{program}");
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let file = config("agent.toml");
    let checked = |environment: &[(&str, &str)], flags: &[&str]| {
        let mut command = own_command("agent");
        command.envs(environment.iter().copied());
        run(command.args(["--check", "--config", &file]).args(flags)).1
    };
    let environment = [
        ("RECADO_BROKER", "mqtt://from-env"),
        ("RECADO_UPSTREAM", "http://env"),
    ];
    assert!(checked(&[], &[]).contains("broker = \"mqtt://127.0.0.1:1883\""));
    let from_environment = checked(&environment, &[]);
    assert!(from_environment.contains("broker = \"mqtt://from-env:1883\""));
    assert!(from_environment.contains("upstream = \"http://env\""));
    let flags = ["--broker", "mqtt://from-flag:9", "--id", "shed"];
    let from_flags = checked(&environment, &flags);
    assert!(from_flags.contains("broker = \"mqtt://from-flag:9\""));
    assert!(from_flags.contains("id = \"shed\""));
}

#[test]
fn secrets_are_masked() {
    let mut command = own_command("api_1");
    command
        .env("RECADO_MQTT_USERNAME", "me")
        .env("RECADO_MQTT_PASSWORD", "hush")
        .args(["--check", "--broker", "mqtt://other:secret@host"]);
    let (code, output) = run(&mut command);
    assert_eq!(code, Some(0));
    assert!(output.contains("mqtt://me:***@host:1883"), "{output}");
    assert!(
        !output.contains("hush") && !output.contains("secret"),
        "{output}"
    );
}

#[test]
fn bad_flags_and_variables_are_usage_errors() {
    let broken: [(&str, &[&str], &str); 7] = [
        ("api_1", &["--broker", "host"], "mqtt://"),
        ("api_1", &["--listen", "5000"], "ADDRESS:PORT"),
        ("api_1", &["--front", "nginx"], "guarded"),
        ("agent", &["--upstream", "ftp://x"], "http://host"),
        ("agent", &["--id", "a/b"], "1 to 64"),
        (
            "client_a",
            &["--topic", "a/#/b"],
            "# may only be the last level",
        ),
        ("client_b", &["--qos", "3"], "0..=2"),
    ];
    for (program, arguments, hint) in broken {
        let (code, output) = run(own_command(program).args(arguments));
        assert_eq!(code, Some(2), "{program} {arguments:?}: {output}");
        assert!(output.contains(hint), "{program} {arguments:?}: {output}");
    }
    let (code, output) = run(own_command("api_2").env("RECADO_LOG", "loud"));
    assert_eq!(code, Some(2));
    assert!(output.contains("RECADO_LOG: found \"loud\""), "{output}");
}

#[test]
fn a_bad_file_is_named_with_its_line() {
    let file = std::env::temp_dir().join(format!("recado-bad-{}.toml", std::process::id()));
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\nmax_waiting = 0\n").unwrap();
    let path = file.to_str().unwrap();
    let (code, output) = run(own_command("api_1").args(["--check", "--config", path]));
    assert_eq!(code, Some(1));
    assert!(
        output.contains(&format!("{path} line 2, key max_waiting: ")),
        "{output}"
    );
    assert!(
        output.contains("a whole number from 1 to 65535"),
        "{output}"
    );
    std::fs::remove_file(&file).unwrap();
    let (code, output) = run(own_command("api_1").args(["--config", path]));
    assert_eq!(code, Some(1));
    assert!(
        output.contains(&format!("cannot read {path}: ")),
        "{output}"
    );
}

#[test]
fn what_can_not_be_told_apart_is_refused() {
    let file = std::env::temp_dir().join(format!("recado-twice-{}.toml", std::process::id()));
    let path = file.to_str().unwrap();
    for (program, text, key) in [
        (
            "api_1",
            "[[route]]\npath = \"/a\"\nrequest_topic = \"a\"\nresponse_topic = \"b\"\n\
             [[route]]\npath = \"/b\"\nrequest_topic = \"a\"\nresponse_topic = \"b\"\n",
            "response_topic",
        ),
        (
            "agent",
            "[[service]]\nname = \"a\"\nmode = \"http\"\nrequest_topic = \"t\"\n\
             [[service]]\nname = \"b\"\nmode = \"http\"\nrequest_topic = \"t\"\n",
            "request_topic",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, output) = run(own_command(program).args(["--check", "--config", path]));
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(&format!("key {key}: found ")), "{output}");
        assert!(output.contains(" twice"), "{output}");
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn every_program_knows_help_and_version() {
    for program in ["api_1", "api_2", "agent", "client_a", "client_b", "broker"] {
        let (code, output) = run(own_command(program).arg("--help"));
        assert_eq!(code, Some(0));
        assert!(output.contains("Usage: "), "{output}");
        let (code, output) = run(own_command(program).arg("--version"));
        assert_eq!(code, Some(0));
        let number = env!("CARGO_PKG_VERSION");
        let begin = format!("{program} {number} (commit ");
        assert!(output.starts_with(&begin), "{output}");
        assert!(
            output.contains(", features tls,websocket,proxy,page,tiny-front,broker)"),
            "{output}"
        );
    }
}

#[test]
fn a_taken_port_is_named() {
    let port = free_port();
    let _holder = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let address = format!("127.0.0.1:{port}");
    for program in ["api_1", "api_2", "broker"] {
        let (code, output) = run(own_command(program).args(["--listen", &address]));
        assert_eq!(code, Some(1), "{program}: {output}");
        assert!(
            output.contains(&format!("cannot listen on {address}")),
            "{output}"
        );
    }
}

#[test]
fn the_mosquitto_file_works() {
    if Kind::Mosquitto.is_here() {
        // It is what every test with Mosquitto runs on; see `process::mosquitto`.
        let broker = TestBroker::start(Kind::Mosquitto);
        crate::support::mqtt311::Client::connect(broker.port()).subscribe("a");
    }
}

#[test]
fn a_check_finds_what_a_start_would() {
    let check = |program: &str, text: &str| {
        let file = TempFile::new(text);
        run(own_command(program).args(["--check", "--config", file.path()]))
    };
    let route = "[[route]]\npath = \"/healthz\"\nrequest_topic = \"a/b\"\nmode = \"http\"\n";
    let (code, output) = check("api_1", route);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(" line 2, key path: found "), "{output}");
    assert!(output.contains("in conflict"), "{output}");
    let twice = "[[route]]\npath = \"/a/{b}\"\nrequest_topic = \"a\"\nmode = \"http\"\n\
                 [[route]]\npath = \"/a/{c}\"\nrequest_topic = \"b\"\nmode = \"http\"\n";
    let (code, output) = check("api_1", twice);
    assert_eq!(code, Some(1), "{output}");
    assert!(
        output.contains(" line 6, key path: found \"/a/{c}\""),
        "{output}"
    );
    assert!(output.contains("\"/a/{b}\""), "{output}");
    let (code, output) = check("api_1", "[http]\nmax_body_bytes = 10000000\n");
    assert_eq!(code, Some(0), "{output}");
    assert!(
        output.contains("max_buffered_bytes = 20000000"),
        "what is used: {output}"
    );
    let service =
        "[[service]]\nname = \"web\"\nmode = \"http\"\npaths = [\"/a/{b}\", \"/a/{c}\"]\n";
    let (code, output) = check("agent", service);
    assert_eq!(code, Some(1), "{output}");
    assert!(
        output.contains(" line 1: paths: found \"/a/{c}\""),
        "{output}"
    );
}
