//! Programs as processes of their own: this project's, Mosquitto, and Mosquitto's clients.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{PATIENCE, TempFile, local, wait_until};

/// Whether a program is installed. In CI everything must be: a case that is left out unnoticed
/// is worse than one that fails.
pub fn is_installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    // Debian puts servers where ordinary users do not look.
    let found = found || std::path::Path::new("/usr/sbin").join(program).exists();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "{program} is not installed, but in CI it must be"
    );
    if !found {
        eprintln!("left out: {program} is not installed");
    }
    found
}

/// A running program, its output collected; killed when dropped.
pub struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// What a process takes of the system.
#[derive(Debug, Default)]
pub struct Resources {
    pub threads: u64,
    pub descriptors: usize,
    pub memory_kib: u64,
    pub most_memory_kib: u64,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            collect(child.stdout.take().unwrap(), &output),
            collect(child.stderr.take().unwrap(), &output),
        ];
        Process {
            child,
            output,
            readers,
        }
    }

    /// Starts one of this project's programs.
    pub fn own(program: &str, arguments: &[&str]) -> Process {
        Process::spawn(own_command(program).args(arguments))
    }

    /// What it takes of the system at the moment.
    pub fn resources(&self) -> Resources {
        let descriptors = format!("/proc/{}/fd", self.child.id());
        Resources {
            threads: self.status("Threads:"),
            descriptors: std::fs::read_dir(descriptors).unwrap().count(),
            memory_kib: self.status("VmRSS:"),
            most_memory_kib: self.status("VmHWM:"),
        }
    }

    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The scheduling class of each of its threads, a number of sched(7), with the thread's name.
    pub fn scheduling(&self) -> Vec<(String, u32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // One that ends meanwhile is left out.
        let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
        let stats = tasks.filter_map(|task| stat(task.unwrap()));
        let class = |stat: String| {
            let (name, rest) = stat.rsplit_once(')').unwrap();
            let (_, name) = name.split_once('(').unwrap();
            // The third field of proc_pid_stat(5) is the first one here, the class is the 41st.
            let class = rest.split_whitespace().nth(41 - 3).unwrap();
            (name.to_owned(), class.parse().unwrap())
        };
        stats.map(class).collect()
    }

    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    pub fn wait_for_output(&self, text: &str) {
        wait_until(&format!("{text:?} is printed"), || {
            self.output().contains(text)
        });
    }

    /// Waits until it says where it listens, and returns that.
    pub fn address(&self) -> SocketAddr {
        let mut found = None;
        wait_until("it says where it listens", || {
            found = self.output().lines().find_map(|line| {
                let (_, address) = line.split_once("listening on ")?;
                let (_, address) = address.split_once("://")?;
                address.trim().parse().ok()
            });
            found.is_some()
        });
        found.unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end and returns the exit status and all it printed.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {}",
                self.output()
            );
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.output())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// One of this project's programs, in an environment without settings.
pub fn own_command(program: &str) -> Command {
    let path = match program {
        "api_1" => env!("CARGO_BIN_EXE_api_1"),
        "api_2" => env!("CARGO_BIN_EXE_api_2"),
        "agent" => env!("CARGO_BIN_EXE_agent"),
        "client_a" => env!("CARGO_BIN_EXE_client_a"),
        "client_b" => env!("CARGO_BIN_EXE_client_b"),
        "broker" => env!("CARGO_BIN_EXE_broker"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    for (name, _) in std::env::vars() {
        if name.starts_with("RECADO_") {
            command.env_remove(name);
        }
    }
    command
}

/// Mosquitto on this port, with further settings, accepting; None if it did not start.
pub fn mosquitto(port: u16, settings: &str) -> Option<Process> {
    let original = concat!(env!("CARGO_MANIFEST_DIR"), "/config/mosquitto.conf");
    let text = std::fs::read_to_string(original).unwrap();
    let text = text.replace("listener 1883", &format!("listener {port}")) + settings;
    mosquitto_as(port, &text)
}

/// Mosquitto with this configuration, accepting on this port; None if it did not start.
pub fn mosquitto_as(port: u16, configuration: &str) -> Option<Process> {
    let file = TempFile::new(configuration);
    let path = match std::path::Path::new("/usr/sbin/mosquitto") {
        sbin if sbin.exists() => sbin.to_owned(),
        _ => "mosquitto".into(),
    };
    let mut process = Process::spawn(Command::new(path).args(["-c", file.path()]));
    let mut ended = false;
    wait_until("mosquitto accepts or ends", || {
        ended = process.child.try_wait().unwrap().is_some();
        ended || TcpStream::connect(local(port)).is_ok()
    });
    (!ended).then_some(process)
}

/// What `scripts/make_certs.sh` makes, as long as this lives.
pub struct Certificates(PathBuf);

impl Certificates {
    /// None where openssl is not installed.
    pub fn make(name: &str) -> Option<Certificates> {
        if !is_installed("openssl") {
            return None;
        }
        let own = format!("recado-certificates-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(own);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make_certs.sh");
        let (status, output) = Process::spawn(Command::new(script).arg(&directory)).wait();
        assert!(status.success(), "{output}");
        Some(Certificates(directory))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
