//! A server on the loopback address: files by ranges over HTTP/1.1, listings as S3 and Google give them, and whatever goes
//! wrong on the way, by a script.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// As it should be.
    Good,
    /// A status with further header lines and a body.
    Status(&'static str, &'static str, &'static str),
    /// Promises all and closes the connection after so many bytes.
    Cut(usize),
    /// Closes the connection without an answer.
    Dropped,
    /// The whole file, as servers send it that know no ranges.
    Whole,
    /// Another version of the file.
    Tagged(&'static str),
    /// Half of the range, said to be that.
    Half,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// From 0, over all connections.
    pub number: usize,
    /// The path without the query.
    pub path: String,
    pub query: String,
    /// First and last byte.
    pub range: Option<(usize, usize)>,
    /// The header lines.
    pub head: String,
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    script: Box<Script>,
    requests: Mutex<Vec<Request>>,
}

/// Serves until the test ends.
pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
}

impl Server {
    /// Serves these files, by their paths with a leading slash.
    pub fn new(files: &[(&str, &[u8])], script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let files = files.iter().map(|(path, bytes)| (path.to_string(), bytes.to_vec())).collect();
        let state = Arc::new(State { files, script: Box::new(script), requests: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(&state, stream));
            }
        });
        Self { address, state }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().expect("requests").clone()
    }
}

/// Answers the requests of one connection.
fn serve(state: &State, stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let mut stream = stream;
    while let Some(request) = read(&mut reader, state) {
        if answer(state, &request, &mut stream).is_none() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>, state: &State) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut head, mut range, mut length) = (String::new(), None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some((first, last)) = lower.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            range = Some((first.parse().ok()?, last.parse().ok()?));
        }
        if let Some(digits) = lower.strip_prefix("content-length: ") {
            length = digits.parse().ok()?;
        }
        head.push_str(&line);
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    let mut requests = state.requests.lock().expect("requests");
    let number = requests.len();
    let request = Request { number, path: decoded(path), query: query.to_owned(), range, head };
    requests.push(request.clone());
    Some(request)
}

/// `None` where the connection is closed.
fn answer(state: &State, request: &Request, stream: &mut TcpStream) -> Option<()> {
    let mut send = |status: &str, headers: &str, body: &[u8], length: usize| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    let answer = (state.script)(request);
    if let Answer::Status(status, headers, body) = answer {
        return send(status, headers, body.as_bytes(), body.len());
    }
    if request.query.contains("list-type=2") {
        let list = listing(state, request);
        return send("200 OK", "Content-Type: application/xml\r\n", list.as_bytes(), list.len());
    }
    let Some(file) = state.files.get(&request.path) else {
        let body = "<Error><Code>NoSuchKey</Code><Message>secret detail</Message></Error>";
        return send("404 Not Found", "", body.as_bytes(), body.len());
    };
    let tag = if let Answer::Tagged(tag) = answer { tag } else { "\"one\"" };
    let tag = format!("ETag: {tag}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n");
    let (first, last) = match (request.range, &answer) {
        (None, _) | (_, Answer::Whole) => return send("200 OK", &tag, file, file.len()),
        (Some((first, last)), Answer::Half) => (first, first + (last.min(file.len() - 1) - first) / 2),
        (Some((first, last)), _) => (first, last.min(file.len() - 1)),
    };
    if first >= file.len() {
        return send("416 Range Not Satisfiable", "", b"", 0);
    }
    let headers = format!("{tag}Content-Range: bytes {first}-{last}/{}\r\n", file.len());
    let body = &file[first..=last];
    match answer {
        Answer::Dropped => None,
        Answer::Cut(bytes) if bytes < body.len() => {
            send("206 Partial Content", &headers, &body[..bytes], body.len());
            None
        }
        _ => send("206 Partial Content", &headers, body, body.len()),
    }
}

/// The names of a bucket, which is the path's first part, below the prefix.
fn listing(state: &State, request: &Request) -> String {
    let prefix = request.query.split('&').find_map(|field| field.strip_prefix("prefix=")).unwrap_or_default();
    let bucket = format!("{}/", request.path.trim_end_matches('/'));
    let prefix = decoded(prefix);
    let names = state.files.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(&bucket)?, bytes.len())));
    let names = names.filter(|(name, _)| name.starts_with(&prefix)).map(|(name, length)| {
        format!(
            "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;one&quot;</ETag><Size>{length}</Size></Contents>"
        )
    });
    let names: String = names.collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{names}</ListBucketResult>")
}

/// Without percent signs: Google's names come with all but letters and digits encoded.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        decoded.push(u8::from_str_radix(code, 16).expect("a code") as char);
        decoded.push_str(rest);
    }
    decoded
}
