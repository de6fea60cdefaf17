//! TCP connections of rank 0 with every other process: over them they hear of each other's end, whatever the engine.
use crate::system::error::{Error, Result};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
#[cfg(feature = "mpi")]
use std::net::{IpAddr, UdpSocket};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Begins what both sides say, so that neither takes a stranger for its own.
const MAGIC: &[u8; 8] = b"seg4diff";
/// How long one side waits for the other's words once they are connected.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest name of a machine, and longest answer.
const LONGEST: usize = 4096;

/// What a process says every [`BEAT`] for as long as it runs, and when its work is done.
pub const ALIVE: u8 = b'.';
pub const DONE: u8 = b'd';
/// Time between two words.
pub const BEAT: Duration = Duration::from_secs(1);

/// Another process, and the connection with it.
pub struct Peer {
    pub rank: usize,
    /// Its machine's name.
    pub host: String,
    pub stream: TcpStream,
}

/// Takes connections at rank 0 until all `size - 1` others are there, who know the job's `token`, which no other job has, and
/// sends each of them `welcome`. Those that are there
/// hear that rank 0 lives while the others are waited for.
///
/// # Errors
/// Some did not come within `patience`: their ranks are named.
pub fn serve(
    listener: &TcpListener,
    token: u64,
    size: usize,
    welcome: &[u8],
    host: &str,
    patience: Duration,
) -> Result<Vec<Peer>> {
    let started = Instant::now();
    let mut beaten = started;
    let mut peers: BTreeMap<usize, Peer> = BTreeMap::new();
    listener.set_nonblocking(true).map_err(failed)?;
    while peers.len() + 1 < size {
        if beaten.elapsed() >= BEAT {
            beaten = Instant::now();
            tell(&mut peers, ALIVE);
        }
        match listener.accept() {
            Ok((stream, _)) => {
                // Whoever does not speak as one of this job is not one.
                if let Ok(peer) = greet(stream, token, welcome, host) {
                    peers.insert(peer.rank, peer);
                }
            }
            Err(_) if started.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => {
                tell(&mut peers, DONE);
                let missing: Vec<String> =
                    (1..size).filter(|rank| !peers.contains_key(rank)).take(8).map(|rank| rank.to_string()).collect();
                return Err(Error::Failed(format!(
                    "after {} s, {} of {size} processes have not come to rank 0 on {host} (rank {})",
                    patience.as_secs(),
                    size - 1 - peers.len(),
                    missing.join(", ")
                )));
            }
        }
    }
    Ok(peers.into_values().collect())
}

/// Who has gone is noticed elsewhere.
fn tell(peers: &mut BTreeMap<usize, Peer>, word: u8) {
    peers.values_mut().for_each(|peer| drop(peer.stream.write(&[word])));
}

fn greet(mut stream: TcpStream, token: u64, welcome: &[u8], host: &str) -> io::Result<Peer> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    let mut hello = [0; 20];
    stream.read_exact(&mut hello)?;
    if hello[..8] != MAGIC[..] || hello[8..16] != token.to_le_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let rank = u32::from_le_bytes([hello[16], hello[17], hello[18], hello[19]]) as usize;
    let name = read_bytes(&mut stream)?;
    let mut answer = MAGIC.to_vec();
    push_bytes(&mut answer, host.as_bytes());
    push_bytes(&mut answer, welcome);
    stream.write_all(&answer)?;
    Ok(Peer { rank, host: String::from_utf8_lossy(&name).into_owned(), stream })
}

/// Connects with rank 0, which listens at one of `addresses`; returns it, and its welcome.
///
/// # Errors
/// It was not found within `patience`.
pub fn join(addresses: &[String], token: u64, rank: usize, host: &str, patience: Duration) -> Result<(Peer, Vec<u8>)> {
    let started = Instant::now();
    let mut last = String::from("no address");
    loop {
        for address in addresses {
            match address.to_socket_addrs() {
                Ok(found) => {
                    for address in found {
                        match knock(address, token, rank, host) {
                            Ok(found) => return Ok(found),
                            Err(problem) => last = format!("{address}: {problem}"),
                        }
                    }
                }
                Err(problem) => last = format!("{address}: {problem}"),
            }
        }
        if started.elapsed() >= patience {
            let seconds = patience.as_secs();
            return Err(Error::Failed(format!(
                "after {seconds} s, rank {rank} on {host} has not found rank 0: {last}"
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn knock(address: SocketAddr, token: u64, rank: usize, host: &str) -> io::Result<(Peer, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    let mut hello = MAGIC.to_vec();
    hello.extend(token.to_le_bytes());
    hello.extend((rank as u32).to_le_bytes());
    push_bytes(&mut hello, host.as_bytes());
    stream.write_all(&hello)?;
    let mut magic = [0; 8];
    stream.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another program answers there"));
    }
    let name = read_bytes(&mut stream)?;
    let welcome = read_bytes(&mut stream)?;
    Ok((Peer { rank: 0, host: String::from_utf8_lossy(&name).into_owned(), stream }, welcome))
}

fn push_bytes(message: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    message.extend((bytes.len() as u32).to_le_bytes());
    message.extend(bytes);
}

fn read_bytes(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A port of this machine's own choice.
///
/// # Errors
/// The system has none.
#[cfg(any(feature = "mpi", test))]
pub fn listen() -> Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", 0)).map_err(failed)
}

/// Where other processes may find a listener of this machine, `host` by name; the ones on it first.
#[cfg(feature = "mpi")]
pub fn addresses(listener: &TcpListener, host: &str) -> Result<Vec<String>> {
    let port = listener.local_addr().map_err(failed)?.port();
    let mut found = vec![format!("{host}:{port}")];
    found.extend(outward().map(|address| SocketAddr::new(address, port).to_string()));
    Ok(found)
}

/// The address that this machine has for others. Nothing is sent.
#[cfg(feature = "mpi")]
fn outward() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // An address that is reserved for documentation: only the way there is asked for.
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn failed(problem: io::Error) -> Error {
    Error::Failed(format!("cannot listen for the other processes: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_find_rank_0_and_strangers_do_not() {
        let listener = listen().expect("listener");
        let address = format!("127.0.0.1:{}", listener.local_addr().expect("address").port());
        let (token, soon) = (7, Duration::from_secs(20));
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| serve(&listener, token, 3, b"welcome", "here", soon).expect("all came"));
            let mut stranger = TcpStream::connect(&address).expect("connects");
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n........").expect("sent");
            assert!(knock(address.parse().expect("address"), 8, 1, "other").is_err());
            let joined: Vec<_> = [2, 1]
                .map(|rank| {
                    let (address, host) = (vec![address.clone()], format!("host-{rank}"));
                    scope.spawn(move || join(&address, token, rank, &host, soon).expect("joined"))
                })
                .into_iter()
                .map(|joined| joined.join().expect("no panic"))
                .collect();
            let peers = serving.join().expect("no panic");
            let named: Vec<(usize, &str)> = peers.iter().map(|peer| (peer.rank, peer.host.as_str())).collect();
            assert_eq!(named, [(1, "host-1"), (2, "host-2")]);
            assert!(
                joined
                    .iter()
                    .all(|(peer, welcome)| (peer.rank, peer.host.as_str()) == (0, "here") && welcome == b"welcome")
            );
        });
    }

    #[test]
    fn who_does_not_come_is_named() {
        let listener = listen().expect("listener");
        let problem = serve(&listener, 1, 3, b"", "here", Duration::from_millis(50)).err().expect("nobody came");
        assert_eq!(problem.to_string(), "after 0 s, 2 of 3 processes have not come to rank 0 on here (rank 1, 2)");
        let nowhere = vec!["127.0.0.1:1".to_string()];
        let problem = join(&nowhere, 1, 2, "there", Duration::from_millis(50)).err().expect("nobody is there");
        assert!(problem.to_string().starts_with("after 0 s, rank 2 on there has not found rank 0"), "{problem}");
    }
}
