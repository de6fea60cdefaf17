//! A thread of every process that ends the job where another process has failed, was killed, or stands still.
//!
//! A process that waits in MPI or NCCL for one that is gone waits forever, and most launchers notice at most that a
//! process has ended. So rank 0 and every other process send each other a byte a second over TCP. A connection that
//! closes means that the process has ended, silence of [`PATIENCE`] that it was stopped, or its machine is gone. Who
//! fails tells rank 0, which prints the error with the rank, tells the others to end, and ends. Nobody calls
//! `MPI_Abort`: not every library takes it from a thread while another one waits. A process that ends without
//! `MPI_Finalize` is what launchers look for, and the others end by their own watch. Files are whole or absent at any
//! moment, so no process has to end gently.
use super::star::{ALIVE, BEAT, DONE, Peer};
use crate::system::error::{Error, Result};
use crate::system::process::{end_at_once, refused};
use crate::system::siblings::host_name;
use crate::system::terminal::complain_of;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After so long without a word a process stands still.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time between two looks at the connections.
const LOOK: Duration = Duration::from_millis(50);
/// How long rank 0 waits, once another process has failed, for its own failure: most errors come to all processes, and
/// are then said once.
const GRACE: Duration = Duration::from_millis(600);
/// How long processes behind rank 1 wait before they say themselves that rank 0 is gone.
const DEFERENCE: Duration = Duration::from_secs(2);
/// How long a process waits for rank 0 to print its error.
const PRINTING: Duration = Duration::from_secs(5);
/// Exit status of a mistake of the user.
const USAGE: u8 = 2;
/// Longest error that is sent.
const LONGEST: usize = 1 << 20;

// What processes say besides. A failure is followed by its exit status and its text with the length before it.
const END: u8 = b'e';
const FAILURE: u8 = b'f';

/// A failed process's last words.
#[derive(Clone, PartialEq)]
struct Failure {
    status: u8,
    text: String,
}

#[derive(Default)]
struct Shared {
    /// This process's failure.
    own: Mutex<Option<(Failure, Instant)>>,
    /// The work of all is done.
    is_done: AtomicBool,
}

impl Shared {
    fn own(&self) -> MutexGuard<'_, Option<(Failure, Instant)>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch of this process over its peers: all others at rank 0, and rank 0 at all others.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// A connection cannot be set up, or the thread not started.
    pub fn start(rank: usize, peers: Vec<Peer>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = |peer: Peer| {
            let failed = |e| Error::Failed(format!("cannot watch over rank {}: {e}", peer.rank));
            peer.stream.set_nonblocking(true).map_err(failed)?;
            Ok(Watched { peer, heard: Instant::now(), is_gone: false, input: vec![] })
        };
        let peers = peers.into_iter().map(watched).collect::<Result<Vec<_>>>()?;
        let watcher =
            Watcher { rank, peers, shared: shared.clone(), beaten: Instant::now(), woken: None, failed: vec![] };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watcher.run());
        Ok(Self { shared, thread: Mutex::new(Some(thread.map_err(|e| refused("the watch over other processes", e))?)) })
    }

    /// Ends the job for this problem: it is printed once, with the rank, and all processes end.
    pub fn fail(&self, problem: &Error) -> ! {
        let own = Failure { status: problem.exit_status(), text: problem.to_string() };
        self.shared.own().get_or_insert((own, Instant::now()));
        // The thread ends the process.
        std::thread::sleep(PRINTING + DEFERENCE);
        complain_of(problem);
        end_at_once(problem.exit_status())
    }

    /// Says to all that this process is done, and looks no more.
    pub fn close(&self) {
        self.shared.is_done.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // One that panicked has printed its message.
            let _ = thread.join();
        }
    }
}

struct Watched {
    peer: Peer,
    heard: Instant,
    is_gone: bool,
    /// What came and is not yet understood.
    input: Vec<u8>,
}

/// What came of listening to a peer.
enum Heard {
    Nothing,
    Done,
    /// Rank 0 tells to end.
    End(u8),
    Failed(Failure),
    /// The connection is closed.
    Closed,
}

impl Watched {
    fn name(&self) -> String {
        format!("rank {} on {}", self.peer.rank, self.peer.host)
    }

    /// Takes what has come.
    fn listen(&mut self) -> Heard {
        let mut buffer = [0; 4096];
        let is_closed = loop {
            match self.peer.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => {
                    self.heard = Instant::now();
                    self.input.extend(&buffer[..count]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        while let Some(word) = self.input.first() {
            match *word {
                DONE => return Heard::Done,
                END => match self.input.get(1) {
                    Some(status) => return Heard::End(*status),
                    None => break,
                },
                FAILURE => match read_failure(&self.input) {
                    Some(failure) => {
                        self.input.clear();
                        return Heard::Failed(failure);
                    }
                    None => break,
                },
                _ => drop(self.input.remove(0)),
            }
        }
        if is_closed { Heard::Closed } else { Heard::Nothing }
    }

    /// Sends all of it, unless the other side takes nothing for long.
    fn send(&mut self, mut message: &[u8]) {
        let started = Instant::now();
        while !message.is_empty() && started.elapsed() < DEFERENCE {
            match self.peer.stream.write(message) {
                Ok(count) => message = &message[count..],
                // That byte too many unheard: the silence is noticed elsewhere.
                Err(e) if e.kind() == ErrorKind::WouldBlock && message == [ALIVE] => return,
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn write_failure(failure: &Failure) -> Vec<u8> {
    let text = &failure.text.as_bytes()[..failure.text.len().min(LONGEST)];
    let mut message = vec![FAILURE, failure.status];
    message.extend((text.len() as u32).to_le_bytes());
    message.extend(text);
    message
}

/// A failure where it is complete.
fn read_failure(message: &[u8]) -> Option<Failure> {
    let status = *message.get(1)?;
    let length = u32::from_le_bytes(message.get(2..6)?.try_into().ok()?) as usize;
    let text = message.get(6..6 + length.min(LONGEST))?;
    Some(Failure { status, text: String::from_utf8_lossy(text).into_owned() })
}

struct Watcher {
    rank: usize,
    peers: Vec<Watched>,
    shared: Arc<Shared>,
    beaten: Instant,
    /// When this process went on after it was stopped itself.
    woken: Option<Instant>,
    /// Failures that rank 0 was told of, with who failed, and when the first was.
    failed: Vec<(String, Failure, Instant)>,
}

impl Watcher {
    fn run(mut self) {
        loop {
            let is_due = self.beaten.elapsed() >= BEAT;
            if self.beaten.elapsed() >= PATIENCE {
                self.woken = Some(Instant::now());
            }
            if is_due {
                self.beaten = Instant::now();
            }
            for place in 0..self.peers.len() {
                self.look(place, is_due);
            }
            let own = self.shared.own().clone();
            match own {
                Some((own, _)) if self.rank > 0 => self.report(own),
                own => self.end_if_failed(own),
            }
            if self.shared.is_done.load(Ordering::Relaxed) {
                self.peers.iter_mut().for_each(|peer| peer.send(&[DONE]));
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self, place: usize, is_due: bool) {
        let peer = &mut self.peers[place];
        if peer.is_gone {
            return;
        }
        if is_due {
            peer.send(&[ALIVE]);
        }
        let heard = peer.listen();
        if matches!(heard, Heard::Nothing) && peer.heard.elapsed() < PATIENCE {
            return;
        }
        peer.is_gone = true;
        let problem = match heard {
            Heard::Nothing => {
                let seconds = PATIENCE.as_secs();
                format!("{} has been silent for {seconds} s: it was stopped, or its machine is gone", peer.name())
            }
            Heard::Done => return,
            Heard::End(status) => end_at_once(status),
            Heard::Failed(failure) => {
                let name = peer.name();
                self.failed.push((name, failure, Instant::now()));
                return;
            }
            Heard::Closed => {
                let advice = "was it killed, as for want of memory?";
                format!("{} has ended before its work was done ({advice})", peer.name())
            }
        };
        self.lost(problem);
    }

    /// Ends the job, since a process is gone. What this process has to say of itself explains more.
    fn lost(&mut self, problem: String) {
        if self.woken.is_some_and(|woken| woken.elapsed() < PATIENCE) {
            // The others have ended because this process stood still, and have said so.
            end_at_once(1);
        }
        if self.rank > 1 {
            std::thread::sleep(DEFERENCE);
        }
        let failure = self.shared.own().clone().map_or(Failure { status: 1, text: problem }, |(own, _)| own);
        complain_of(failure.text);
        self.tell_all_to_end(failure.status)
    }

    /// Rank 0 ends the job where it or another process has failed, once all others had time to fail as well.
    fn end_if_failed(&mut self, own: Option<(Failure, Instant)>) {
        // A mistake of the user is that of all processes, as is what all have found.
        let as_own = |own: &Failure| self.failed.iter().filter(|(_, failure, _)| failure == own).count();
        let is_of_all = |own: &Failure| own.status == USAGE || as_own(own) == self.peers.len();
        let is_of_all = own.as_ref().is_some_and(|(own, _)| is_of_all(own));
        let first = self.failed.first().map(|(_, _, since)| *since);
        let mut since = own.iter().map(|(_, since)| *since).chain(first);
        if is_of_all || since.any(|since| since.elapsed() >= GRACE) {
            self.end_job(own.map(|(own, _)| own), is_of_all);
        }
    }

    /// Rank 0 prints what failed, each problem once, and ends all. Its own failure may be that of all.
    fn end_job(&mut self, own: Option<Failure>, is_of_all: bool) -> ! {
        let of_own = if is_of_all { String::new() } else { format!("rank 0 on {}: ", host_name()) };
        let others = self.failed.iter().map(|(name, failure, _)| (format!("{name}: "), failure.clone()));
        let mut said: Vec<Failure> = vec![];
        for (name, failure) in own.map(|own| (of_own, own)).into_iter().chain(others) {
            if said.iter().all(|said| said.text != failure.text) {
                complain_of(format_args!("{name}{}", failure.text));
                said.push(failure);
            }
        }
        let status = said.first().map_or(1, |first| first.status);
        self.tell_all_to_end(status)
    }

    /// Ends this process, and at rank 0 all others before it. Their answers are awaited: what lies unread when a
    /// connection is closed would take the last words with it.
    fn tell_all_to_end(&mut self, status: u8) -> ! {
        if self.rank == 0 {
            self.peers.iter_mut().for_each(|peer| peer.send(&[END, status]));
            let started = Instant::now();
            let mut open: Vec<&mut Watched> = self.peers.iter_mut().collect();
            while !open.is_empty() && started.elapsed() < BEAT {
                open.retain_mut(|peer| !matches!(peer.listen(), Heard::Closed));
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        end_at_once(status)
    }

    /// Tells rank 0 of this process's failure and waits for the word to end; prints it where that does not come.
    fn report(&mut self, own: Failure) -> ! {
        let message = write_failure(&own);
        self.peers.iter_mut().for_each(|peer| peer.send(&message));
        let started = Instant::now();
        'waiting: while started.elapsed() < PRINTING {
            for peer in &mut self.peers {
                match peer.listen() {
                    Heard::End(_) => end_at_once(own.status),
                    Heard::Closed => break 'waiting,
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        complain_of(format_args!("rank {}: {}", self.rank, own.text));
        end_at_once(own.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_as_they_were_written() {
        let message = write_failure(&Failure { status: 2, text: "no such file".into() });
        let read = read_failure(&message).expect("complete");
        assert_eq!((read.status, read.text.as_str()), (2, "no such file"));
        assert!((0..message.len()).all(|length| read_failure(&message[..length]).is_none()));
    }
}
