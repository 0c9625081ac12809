//! An HTTP client that sends what it is told and reads exactly one answer at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::PATIENCE;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One connection, kept alive.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        Connection::try_open(address).unwrap()
    }

    /// None if nobody listens there.
    pub fn try_open(address: SocketAddr) -> Option<Connection> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Some(Connection {
            stream: BufReader::new(stream),
        })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// False if the server has closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        self.read_answer()
    }

    pub fn read_answer(&mut self) -> Answer {
        self.try_read_answer(true).expect("an answer, not the end")
    }

    /// The answer to HEAD has a length but no body.
    pub fn read_head_answer(&mut self) -> Answer {
        self.try_read_answer(false).expect("an answer, not the end")
    }

    /// None if the server closed the connection instead.
    pub fn try_read_answer(&mut self, with_body: bool) -> Option<Answer> {
        let mut line = String::new();
        if !matches!(self.stream.read_line(&mut line), Ok(1..)) {
            return None;
        }
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let mut bytes = Vec::new();
            self.stream.read_until(b'\n', &mut bytes).unwrap();
            // A header is bytes: each is a character here.
            line = bytes.into_iter().map(char::from).collect();
            match line.trim_end().split_once(": ") {
                Some((name, value)) => answer.headers.push((name.into(), value.into())),
                None if line == "\r\n" => break,
                None => panic!("not a header line: {line:?}"),
            }
        }
        if with_body && status >= 200 {
            let length = answer
                .header("content-length")
                .map_or(0, |n| n.parse().unwrap());
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body).unwrap();
        }
        Some(answer)
    }

    /// The next chunk of an answer that comes in chunks; None behind the last one.
    ///
    /// Errors: it was cut off.
    pub fn read_chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk)?;
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// All chunks up to the last one.
    ///
    /// Errors: it was cut off; what came before is lost.
    pub fn read_chunks(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = self.read_chunk()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Exactly so many bytes.
    ///
    /// Errors: it was cut off.
    pub fn read_bytes(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).map(|()| bytes)
    }

    /// All that comes until the connection ends.
    ///
    /// Errors: it was reset.
    pub fn read_to_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).map(|_| bytes)
    }

    /// Sends no more.
    pub fn shut_down_sending(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    /// Whether the server has closed the connection, with nothing more to read.
    pub fn is_closed_by_server(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.stream.read_to_end(&mut rest), Ok(0))
    }
}

/// What is known of an agent.
pub fn get_agent(address: SocketAddr, id: &str) -> Answer {
    let mut client = Connection::open(address);
    let head =
        format!("GET /agents/{id} HTTP/1.1\r\nHost: test\r\nAccept: application/json\r\n\r\n");
    client.send(head.as_bytes());
    client.read_answer()
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Connection::open(address).get(path)
}
