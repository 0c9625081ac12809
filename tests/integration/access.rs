use std::process::Command;

use recado::gateway::Gateway;

use crate::failures::problem;
use crate::http_mode::{ask, start_upstream, stop};
use crate::support::http::{Answer, get};
use crate::support::process::{Process, own_command};
use crate::support::{
    Kind, TempFile, TestBroker, gateway_settings_of, start_agent, start_gateway_with,
};

const ANNA: &str = "0123456789abcdef-anna";
const BEN: &str = "0123456789abcdef-ben";

fn setting(tokens: &TempFile) -> String {
    format!("[access]\ntokens_file = {:?}\n", tokens.path())
}

fn asked_with(gateway: &Gateway, target: &str, token: &str, further: &str) -> Answer {
    let fields = format!("Authorization: Bearer {token}\r\n{further}");
    ask(gateway.address(), "POST", target, &fields, b"body")
}

#[test]
fn only_who_has_a_token_may_call() {
    let tokens = TempFile::new(&format!("# who may call\n\nanna {ANNA}\nben\t{BEN}\n"));
    let routes = r#"
        [[route]]
        path = "/agents/{id}/{*path}"
        request_topic = "recado/agents/{id}/request"
        mode = "http"
        [[route]]
        path = "/bens/{id}/{*path}"
        request_topic = "recado/agents/{id}/request"
        mode = "http"
        tokens = ["ben"]
        [[route]]
        path = "/open/{id}/{*path}"
        request_topic = "recado/agents/{id}/request"
        mode = "http"
        access = "public"
    "#;
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let settings = setting(&tokens) + routes;
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &settings));

    for path in ["/agents/demo/x", "/agents", "/agents/demo", "/bens/demo/x"] {
        let refused = get(gateway.address(), path);
        assert_eq!(refused.status, 401, "{path}");
        assert_eq!(refused.json()["outcome"], "not-executed");
        let challenge = refused.header("www-authenticate");
        assert_eq!(challenge, Some("Bearer realm=\"recado\""));
    }
    assert_eq!(get(gateway.address(), "/healthz").status, 200);
    assert_eq!(
        asked_with(&gateway, "/agents/demo/x", "nobodys-0123456789", "").status,
        401
    );
    assert_eq!(asked_with(&gateway, "/bens/demo/x", ANNA, "").status, 403);

    let forged = "X-Recado-Caller: ben\r\n";
    let passed = asked_with(&gateway, "/agents/demo/x", ANNA, forged);
    assert_eq!(passed.status, 200);
    assert!(
        passed.text().contains("x-recado-caller: \"anna\"\n"),
        "{}",
        passed.text()
    );
    assert!(
        !passed.text().contains("authorization"),
        "{}",
        passed.text()
    );
    assert!(!passed.text().contains("\"ben\""), "{}", passed.text());
    assert_eq!(asked_with(&gateway, "/bens/demo/x", BEN, "").status, 200);

    // There the field is the upstream's.
    let open = asked_with(&gateway, "/open/demo/x", "anything", "");
    assert!(
        open.text().contains("authorization: \"Bearer anything\""),
        "{}",
        open.text()
    );

    // Nobody gets the answer to another's question.
    let key = "Idempotency-Key: one\r\n";
    for (token, name) in [(ANNA, "anna"), (BEN, "ben"), (ANNA, "anna")] {
        let answer = asked_with(&gateway, "/agents/demo/x", token, key);
        let own = format!("x-recado-caller: \"{name}\"");
        assert!(answer.text().contains(&own), "{}", answer.text());
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

/// `htpasswd -nbB -C 4 carla secret`.
const CARLA: &str = "carla:$2y$04$6td68BC1b0cuF7kEW5R8Q.Eg/0QXQ6oEokGO1rF832yfCiTDukTaC";

#[test]
fn a_browser_asks_for_name_and_password() {
    let users = TempFile::new(&format!("# who may come in\n{CARLA}\n"));
    let settings = format!(
        "route = []\n[[host]]\nname = \"*.localhost\"\nusers_file = {:?}\n[[host]]\nname = \"open.example\"\nagent = \"demo\"",
        users.path()
    );
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &settings));
    let ask_as = |host: &str, credentials: &str| {
        let target = format!("http://{host}/x");
        ask(gateway.address(), "GET", &target, credentials, b"")
    };
    for (credentials, challenge) in [
        ("", "Basic realm=\"recado\", charset=\"UTF-8\""),
        // carla:other, and nothing that could be read.
        (
            "Authorization: Basic Y2FybGE6b3RoZXI=\r\n",
            "Basic realm=\"recado\", charset=\"UTF-8\"",
        ),
        (
            "Authorization: Basic %\r\n",
            "Basic realm=\"recado\", charset=\"UTF-8\"",
        ),
        (
            "Authorization: Bearer 0123456789abcdef\r\n",
            "Basic realm=\"recado\", charset=\"UTF-8\"",
        ),
    ] {
        let refused = ask_as("demo.localhost", credentials);
        problem(&refused, 401, "gateway", "not-executed");
        assert_eq!(
            refused.header("www-authenticate"),
            Some(challenge),
            "{credentials}"
        );
    }
    // carla:secret
    let credentials = "Authorization: basic Y2FybGE6c2VjcmV0\r\n";
    for _ in 0..2 {
        let answer = ask_as("demo.localhost", credentials);
        assert_eq!(answer.status, 200);
        let text = answer.text();
        assert!(text.contains("x-recado-caller: \"carla\"\n"), "{text}");
        assert!(!text.contains("authorization"), "{text}");
    }
    // Nor is there a way around.
    assert_eq!(get(gateway.address(), "/agents/demo/x").status, 404);
    // Where nobody is asked, the field is the application's.
    let own = ask_as("open.example", credentials);
    assert!(
        own.text()
            .contains("authorization: \"basic Y2FybGE6c2VjcmV0\""),
        "{}",
        own.text()
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_name_that_asks_can_not_be_walked_around() {
    let users = TempFile::new(CARLA);
    let tokens = TempFile::new(&format!("anna {ANNA}\nben {BEN}\n"));
    let name = "[[host]]\nname = \"shed.example\"\nagent = \"shed\"\n";
    for (settings, is_fine) in [
        (format!("{name}users_file = {:?}", users.path()), false),
        (
            format!("{}{name}tokens = [\"ben\"]", setting(&tokens)),
            false,
        ),
        (
            format!("route = []\n{name}users_file = {:?}", users.path()),
            true,
        ),
        (
            format!("[access]\nusers_file = {:?}\n{name}", users.path()),
            true,
        ),
        (format!("{}{name}", setting(&tokens)), true),
    ] {
        let config = TempFile::new(&settings);
        let mut command: Command = own_command("api_1");
        command.args(["--check", "--config", config.path()]);
        let (status, output) = Process::spawn(&mut command).wait();
        assert_eq!(status.success(), is_fine, "{settings}: {output}");
        assert!(is_fine || output.contains("route = []"), "{output}");
    }
}

#[test]
fn a_bad_users_file_is_refused_without_showing_it() {
    for (text, wanted) in [
        ("carla:hush", "line 1: a hash is one of bcrypt"),
        ("\ncarla:$apr1$hush$hush", "line 2: a hash is one of bcrypt"),
        ("hush", "line 1: allowed is a name, a colon and a hash"),
        (
            &format!("{CARLA}\n{CARLA}"),
            "line 2: this name is there twice",
        ),
        ("", "there is no name in it"),
    ] {
        let users = TempFile::new(text);
        let own = format!(
            "route = []\n[[host]]\nname = \"*.localhost\"\nusers_file = {:?}",
            users.path()
        );
        for settings in [format!("[access]\nusers_file = {:?}", users.path()), own] {
            let config = TempFile::new(&settings);
            let mut command: Command = own_command("api_1");
            command.args(["--check", "--config", config.path()]);
            let (status, output) = Process::spawn(&mut command).wait();
            assert_eq!(status.code(), Some(1), "{text}");
            assert!(output.contains(wanted), "{text}: {output}");
            assert!(
                !output.contains("hush") && !output.contains("$2y"),
                "{output}"
            );
        }
    }
}

#[test]
fn a_bad_tokens_file_is_refused_without_showing_it() {
    for (name, text, wanted) in [
        ("short", "anna hush", "line 1: a token is 16 or more"),
        ("one", "\nhush-hush-hush-hush", "line 2: allowed is a name"),
        (
            "twice",
            "a hush-hush-hush-hush\nb hush-hush-hush-hush",
            "line 2: this name",
        ),
        ("empty", "# hush\n", "there is no token in it"),
    ] {
        let tokens = TempFile::new(text);
        let config = TempFile::new(&setting(&tokens));
        let mut command: Command = own_command("api_1");
        command.args(["--check", "--config", config.path()]);
        let (status, output) = Process::spawn(&mut command).wait();
        assert_eq!(status.code(), Some(1), "{name}");
        assert!(output.contains(wanted), "{name}: {output}");
        assert!(!output.contains("hush"), "{name}: {output}");
    }
}

#[test]
fn listening_to_everybody_without_tokens_is_worth_a_warning() {
    let arguments = ["--broker", "mqtt://127.0.0.1:1", "--listen"];
    let open = Process::own("api_1", &[&arguments[..], &["0.0.0.0:0"]].concat());
    open.wait_for_output("without tokens: whoever reaches it");
    let local = Process::own("api_1", &[&arguments[..], &["127.0.0.1:0"]].concat());
    local.address();
    assert!(!local.output().contains("without tokens"));
}
