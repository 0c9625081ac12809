use std::path::{Path, PathBuf};
use std::process::Command;

use crate::http_mode::{start_upstream, stop};
use crate::support::http::{get, get_agent};
use crate::support::process::{Process, is_installed, mosquitto_as, own_command};
use crate::support::{
    agent_settings_of, free_port, gateway_settings_of, start_agent_with, start_gateway_with,
    wait_until,
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// With an upstream of its own an agent answers the ping only when it says so.
const PING: &str = "[[service]]\nname = \"ping\"\nmode = \"json\"\nrequest_topic = \"api/ping/request\"\n\
                    response_topic = \"api/ping/response\"\npath = \"/ping\"\n";

/// A directory with certificates and passwords, and a broker that is set up with them.
struct Secure {
    directory: PathBuf,
    port: u16,
    _broker: Process,
}

fn make_certs(directory: &Path) {
    let (status, output) =
        Process::spawn(Command::new(file("scripts/make_certs.sh")).arg(directory)).wait();
    assert!(status.success(), "{output}");
}

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("recado-secure-{}-{name}", std::process::id()))
}

impl Secure {
    /// The shipped files as they are, but for paths and port; None without Mosquitto.
    fn start(name: &str, change: impl Fn(String) -> String) -> Option<Secure> {
        if !is_installed("mosquitto") || !is_installed("openssl") {
            return None;
        }
        let directory = directory(name);
        make_certs(&directory);
        std::fs::copy(file("config/mosquitto-secure.acl"), directory.join("acl")).unwrap();
        for (number, user) in ["gateway-1", "demo"].iter().enumerate() {
            let mut command = Command::new("mosquitto_passwd");
            command.arg("-b");
            if number == 0 {
                command.arg("-c");
            }
            command.arg(directory.join("passwd"));
            let (status, output) = Process::spawn(command.args([*user, &password_of(user)])).wait();
            assert!(status.success(), "{output}");
            std::fs::write(directory.join(user), password_of(user)).unwrap();
        }
        let original = std::fs::read_to_string(file("config/mosquitto-secure.conf")).unwrap();
        let text = original.replace("/etc/mosquitto/recado", directory.to_str().unwrap());
        // Where the tests run as root, the files belong to root.
        let text = change(text) + "\nuser root\n";
        for _ in 0..10 {
            let port = free_port();
            let text = text
                .replace("listener 8883\n", "listener 8883 127.0.0.1\n")
                .replace("listener 8883", &format!("listener {port}"));
            if let Some(broker) = mosquitto_as(port, &text) {
                return Some(Secure {
                    directory,
                    port,
                    _broker: broker,
                });
            }
        }
        panic!("mosquitto does not start");
    }

    fn url(&self) -> String {
        format!("mqtts://localhost:{}", self.port)
    }

    /// Settings for who has this name.
    fn settings(&self, user: &str) -> String {
        let directory = self.directory.display();
        format!(
            "id = \"{user}\"\nusername = \"{user}\"\npassword_file = \"{directory}/{user}\"\n\
             tls = {{ ca_file = \"{directory}/ca.pem\" }}\n"
        )
    }

    /// An agent as a process, as somebody who knows what the environment says.
    fn agent(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Process {
        let mut command = own_command("agent");
        command.env("RECADO_TLS_CA_FILE", self.directory.join("ca.pem"));
        command.envs(environment.iter().copied());
        command.args(["--broker", &self.url()]).args(arguments);
        Process::spawn(&mut command)
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn password_of(user: &str) -> String {
    format!("the password of {user}")
}

#[test]
fn the_shipped_files_let_the_right_ones_in() {
    let Some(broker) = Secure::start("right", |text| text) else {
        return;
    };
    let upstream = start_upstream();
    let settings =
        broker.settings("demo") + &format!("upstream = \"http://{}\"\n{PING}", upstream.address());
    let agent = start_agent_with(agent_settings_of(&broker.url(), &settings));
    let settings = broker.settings("gateway-1");
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &settings));
    let address = gateway.address();
    wait_until("the agent is known", || {
        get_agent(address, "demo").status == 200
    });
    assert_eq!(get(address, "/agents/demo/x?y").status, 200);
    // The upstream is no ping service; but the question has reached it, and the answer us.
    assert_eq!(get(address, "/ping").json()["hop"], "upstream");

    wait_until("what the agent does is known", || {
        get_agent(address, "demo").json()["in_work"] == 0
    });
    let password = password_of("demo");
    let who = [
        ("RECADO_MQTT_USERNAME", "demo"),
        ("RECADO_MQTT_PASSWORD", &*password),
    ];
    let asked = broker.agent(&who, &["--id", "demo", "--health"]).wait();
    assert_eq!(asked.0.code(), Some(0), "{}", asked.1);
    assert!(!asked.1.contains(&password), "{}", asked.1);

    // Who has a password may not pose as another all the same.
    let poser = broker.agent(
        &[
            ("RECADO_MQTT_USERNAME", "demo"),
            ("RECADO_MQTT_PASSWORD", &password),
        ],
        &["--id", "another"],
    );
    poser.wait_for_output("the broker refused a message on recado/agents/another/presence");
    let absent = get(address, "/agents/another/x");
    assert_eq!(absent.status, 503, "{}", absent.text());
    assert_eq!(absent.json()["hop"], "agent");
    assert!(!poser.output().contains(&password), "{}", poser.output());

    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn strangers_learn_why_they_are_refused() {
    let Some(broker) = Secure::start("strangers", |text| text) else {
        return;
    };
    let nobody = broker.agent(&[], &[]);
    nobody.wait_for_output("check user name and password");

    let guess = ("RECADO_MQTT_PASSWORD", "guessed-password");
    let guesser = broker.agent(&[("RECADO_MQTT_USERNAME", "demo"), guess], &[]);
    guesser.wait_for_output("check user name and password");
    assert!(
        !guesser.output().contains("guessed-password"),
        "{}",
        guesser.output()
    );

    let other = directory("other");
    make_certs(&other);
    let ca_file = other.join("ca.pem");
    let elsewhere = ("RECADO_TLS_CA_FILE", ca_file.to_str().unwrap());
    let distrustful = broker.agent(&[elsewhere], &[]);
    distrustful.wait_for_output("not from an authority that is trusted here, see ca_file");
    std::fs::remove_dir_all(other).unwrap();

    let plain = format!("mqtt://localhost:{}", broker.port);
    let plain = Process::own("agent", &["--broker", &plain]);
    plain.wait_for_output("no connection to mqtt://");
}

#[test]
fn the_brokers_name_is_checked() {
    let Some(broker) = Secure::start("name", |text| {
        let files = text.lines().filter(|line| {
            ["certfile ", "keyfile "]
                .iter()
                .any(|key| line.starts_with(key))
        });
        let files: Vec<&str> = files.collect();
        format!("{text}\nlistener 8883 127.0.0.2\n{}\n", files.join("\n"))
    }) else {
        return;
    };
    // The same broker by an address that its certificate does not have.
    let mut command = own_command("agent");
    command.env("RECADO_TLS_CA_FILE", broker.directory.join("ca.pem"));
    let url = format!("mqtts://127.0.0.2:{}", broker.port);
    let misled = Process::spawn(command.args(["--broker", &url]));
    misled.wait_for_output("its certificate is for another name");
}

#[test]
fn a_client_certificate_where_the_broker_wants_one() {
    let Some(broker) = Secure::start("certificate", |text| {
        let text = text.replace("require_certificate false", "require_certificate true");
        // The name in the certificate is the user name then.
        text + "\nuse_identity_as_username true\n"
    }) else {
        return;
    };
    let without = broker.agent(&[], &[]);
    without.wait_for_output("it wants a client certificate, see certificate_file");

    let own = |name: &str| broker.directory.join(name).display().to_string();
    let (certificate, key) = (own("client.pem"), own("client.key"));
    let environment = [
        ("RECADO_TLS_CERTIFICATE_FILE", certificate.as_str()),
        ("RECADO_TLS_KEY_FILE", key.as_str()),
    ];
    let with = broker.agent(&environment, &["--id", "demo"]);
    with.wait_for_output("ready as agent demo");
}

#[test]
fn files_that_can_not_be_used_are_named() {
    let check = |broker: &str, environment: &[(&str, &str)]| {
        let mut command = own_command("agent");
        command.envs(environment.iter().copied());
        let (status, output) = Process::spawn(command.args(["--check", "--broker", broker])).wait();
        (status.code(), output)
    };
    let missing = [("RECADO_TLS_CA_FILE", "/nowhere/ca.pem")];
    let (code, output) = check("mqtts://localhost", &missing);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("/nowhere/ca.pem"), "{output}");

    let (code, output) = check("mqtt://localhost", &missing);
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("not mqtts://"), "{output}");

    let manifest = file("Cargo.toml").display().to_string();
    let (code, output) = check("mqtts://localhost", &[("RECADO_TLS_CA_FILE", &manifest)]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("no certificate"), "{output}");

    let half = [("RECADO_TLS_KEY_FILE", manifest.as_str())];
    let (code, output) = check("mqtts://localhost", &half);
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("belong together"), "{output}");

    let (code, output) = check(
        "mqtt://localhost",
        &[("RECADO_MQTT_PASSWORD_FILE", "/nowhere")],
    );
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("/nowhere"), "{output}");
}
