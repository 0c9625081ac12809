//! Other ways to an upstream than TCP: a Unix socket, and TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A socket that leads to an upstream, as long as the test's process lives.
pub struct Socket(PathBuf);

impl Socket {
    pub fn start(target: SocketAddr) -> Socket {
        let name = format!("recado-{}-{}.sock", std::process::id(), target.port());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let upstream = TcpStream::connect(target).unwrap();
                let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &from, &mut &to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &upstream, &mut &client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Socket(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Starts a server at this address that speaks TLS, with these protocols if any, and passes on what it gets;
/// returns its port.
pub fn start_tls(
    at: IpAddr,
    target: SocketAddr,
    certificate: &Path,
    key: &Path,
    protocols: &[&str],
) -> u16 {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            chain.map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    let config = Arc::new(config);
    let listener = TcpListener::bind((at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let client = StreamOwned::new(session, client.unwrap());
            std::thread::spawn(move || pass_on(client, target));
        }
    });
    port
}

// Looks at both sides in turns: one session can't be read and written at the same time.
fn pass_on(mut client: StreamOwned<ServerConnection, TcpStream>, target: SocketAddr) {
    let mut upstream = TcpStream::connect(target).unwrap();
    let turn = Some(Duration::from_millis(1));
    client.sock.set_read_timeout(turn).unwrap();
    upstream.set_read_timeout(turn).unwrap();
    let mut bytes = vec![0; 64 * 1024];
    let mut has_client_ended = false;
    loop {
        if !has_client_ended {
            match client.read(&mut bytes) {
                Ok(0) => {
                    has_client_ended = true;
                    let _ = upstream.shutdown(Shutdown::Write);
                }
                Ok(count) => drop(upstream.write_all(&bytes[..count])),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return,
            }
        }
        match upstream.read(&mut bytes) {
            Ok(0) => {
                client.conn.send_close_notify();
                let _ = client.flush();
                return;
            }
            Ok(count) if client.write_all(&bytes[..count]).is_err() => return,
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
