//! A minimal HTTP client.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::wait::TIMEOUT;

/// A response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The fields of the header, with lower-case names.
    pub headers: HashMap<String, String>,
    /// The body, up to the end of the connection.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the body as text.
    ///
    /// # Panics
    /// Panics if it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Whether the body has the announced length.
    pub fn is_complete(&self) -> bool {
        self.headers.get("content-length").is_none_or(|length| *length == self.body.len().to_string())
    }
}

/// A request whose body is being sent.
#[derive(Debug)]
pub struct Sending(TcpStream);

/// Sends the header of a request with these lines.
///
/// # Panics
/// Panics if the server cannot be reached.
#[track_caller]
pub fn begin(address: &str, method: &str, path: &str, headers: &[&str]) -> Sending {
    let mut stream = TcpStream::connect(address).expect("cannot connect");
    stream.set_read_timeout(Some(TIMEOUT)).expect("cannot set a timeout");
    let host = if headers.iter().any(|line| line.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{host}{lines}\r\n");
    stream.write_all(text.as_bytes()).expect("cannot send the request");
    Sending(stream)
}

impl Sending {
    /// Sends a part of the body.
    ///
    /// # Panics
    /// Panics if the server has closed the connection.
    #[track_caller]
    pub fn send(&mut self, part: &[u8]) {
        self.0.write_all(part).expect("cannot send the body");
    }

    /// Reads the response line by line, for as long as it takes.
    pub fn lines(self) -> impl Iterator<Item = String> {
        BufReader::new(self.0).lines().map_while(Result::ok)
    }

    /// Reads the whole response.
    ///
    /// # Panics
    /// Panics if there is no response.
    #[track_caller]
    pub fn response(self) -> Response {
        let mut reader = BufReader::new(self.0);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("cannot read the header");
            line.trim_end().to_owned()
        };
        let status_line = line();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut fields = HashMap::new();
        while let Some((name, value)) = line().split_once(": ") {
            fields.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut body = Vec::new();
        // A body that ends too early is the business of the test.
        let _ = reader.read_to_end(&mut body);
        Response {
            status: status.unwrap_or_else(|| panic!("not a response: {status_line:?}")),
            headers: fields,
            body,
        }
    }
}

/// Sends a request with these header lines and reads the whole response.
#[track_caller]
pub fn request(address: &str, method: &str, path: &str, headers: &[&str]) -> Response {
    begin(address, method, path, headers).response()
}

/// Sends a request with a body and reads the whole response.
#[track_caller]
pub fn send(address: &str, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Response {
    let length = format!("Content-Length: {}", body.len());
    let mut sending = begin(address, method, path, &[headers, &[&length]].concat());
    sending.send(body);
    sending.response()
}

/// Sends a `GET` request.
#[track_caller]
pub fn get(address: &str, path: &str, headers: &[&str]) -> Response {
    request(address, "GET", path, headers)
}
