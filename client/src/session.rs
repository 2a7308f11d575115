//! One connection to the daemon, from finding it to losing it.

use crate::daemon::Address;
use crate::download::download;
use crate::hex::{hex, random_hex};
use crate::patcher::Patcher;
use crate::wire::{Body, Dylib, FromDaemon, Hello, Numbered, Reason, Refusal, ToDaemon, MAX_FRAME_BYTES, PROTOCOL};
use crate::LOOK_AGAIN;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tungstenite::http::Uri;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const OPENING_LIMIT: Duration = Duration::from_secs(5);
/// The daemon pings every 20 s and gives up after another 20 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// How a session ended.
pub enum End {
    /// What the daemon patches is not there.
    Absent,
    /// No daemon was there, or it could not prove itself.
    Unopened,
    /// The connection was lost after it had been opened.
    Lost,
    /// The daemon does not want this client.
    Rejected,
}

/// Why no next message comes.
enum Broken {
    Gone,
    /// The daemon broke the rules; it is told so with this code.
    Breach(CloseCode),
}

/// Closing code for a token that does not match.
const WRONG_TOKEN: CloseCode = CloseCode::Library(4401);

struct Connection {
    socket: WebSocket<Stream>,
    addr: SocketAddr,
    token: String,
    silence_limit: Duration,
    sent: u64,
    received: u64,
}

/// Connects to the daemon and serves it until the connection ends.
pub fn run(patcher: &mut dyn Patcher, daemon: &Address) -> End {
    let Some(mut connection) = connect(daemon) else { return End::Unopened };
    let (broken, end) = match connection.open(patcher) {
        Ok(None) => (connection.serve(patcher), End::Lost),
        Ok(Some(end)) => return end,
        Err(broken) => (broken, End::Unopened),
    };
    if let Broken::Breach(code) = broken {
        let _ = connection.socket.close(Some(CloseFrame { code, reason: "".into() }));
    }
    end
}

fn connect(daemon: &Address) -> Option<Connection> {
    let uri: Uri = daemon.url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let mut addrs = (host, uri.port_u16()?).to_socket_addrs().ok()?;
    // Nothing protects what goes over the connection: it must not leave the machine, or the cable to it.
    let addr = addrs.find(|addr| addr.ip().is_loopback())?;
    let stream = TcpStream::connect_timeout(&addr, OPENING_LIMIT).ok()?;
    stream.set_nodelay(true).ok()?;
    let mut stream = Stream { inner: stream, patience: Duration::ZERO };
    stream.wait_for(OPENING_LIMIT).ok()?;
    let config = WebSocketConfig {
        max_message_size: Some(MAX_FRAME_BYTES),
        max_frame_size: Some(MAX_FRAME_BYTES),
        ..WebSocketConfig::default()
    };
    let (socket, _) = tungstenite::client::client_with_config(uri, stream, Some(config)).ok()?;
    Some(Connection { socket, addr, token: daemon.token.clone(), silence_limit: OPENING_LIMIT, sent: 0, received: 0 })
}

impl Connection {
    /// Says hello, each side proving that it knows the token. `None` means welcome.
    fn open(&mut self, patcher: &mut dyn Patcher) -> Result<Option<End>, Broken> {
        let FromDaemon::Challenge { protocol: PROTOCOL, nonce: challenge } = self.receive(patcher)? else {
            return Err(Broken::Breach(CloseCode::Protocol));
        };
        let nonce = random_hex::<32>().map_err(|_| Broken::Gone)?;
        self.send(Body::Hello(Hello {
            protocol: PROTOCOL,
            proof: proof(&self.token, "client", &challenge),
            nonce: &nonce,
            pid: std::process::id(),
            program: patcher.describe(),
        }))?;
        match self.receive(patcher)? {
            FromDaemon::Welcome { proof: answer } if answer == proof(&self.token, "daemon", &nonce) => {
                self.silence_limit = SILENCE_LIMIT;
                patcher.tell_again();
                Ok(None)
            }
            FromDaemon::Welcome { .. } => Err(Broken::Breach(WRONG_TOKEN)),
            FromDaemon::Reject { retry: true } => Ok(Some(End::Unopened)),
            FromDaemon::Reject { retry: false } => Ok(Some(End::Rejected)),
            _ => Err(Broken::Breach(CloseCode::Protocol)),
        }
    }

    fn serve(&mut self, patcher: &mut dyn Patcher) -> Broken {
        loop {
            let served = self.receive(patcher).and_then(|message| {
                let answers = self.received;
                let result = match message {
                    #[cfg(target_os = "linux")]
                    FromDaemon::Patch(patch) => {
                        let bytes = self.receive_bytes(patcher)?;
                        patcher.apply_image(&patch, &bytes)
                    }
                    FromDaemon::Dylib(patch) => {
                        let bytes = self.bytes_of(&patch, patcher)?;
                        bytes.and_then(|bytes| patcher.apply_dylib(&patch, &bytes))
                    }
                    FromDaemon::Undo { to } => patcher.undo(to.as_deref()),
                    _ => return Err(Broken::Breach(CloseCode::Protocol)),
                };
                self.send(match result {
                    Ok(applied) => Body::Applied { answers, applied },
                    Err(refusal) => Body::Refused { answers, refusal },
                })
            });
            if let Err(broken) = served {
                return broken;
            }
        }
    }

    fn bytes_of(&mut self, patch: &Dylib, patcher: &mut dyn Patcher) -> Result<Result<Vec<u8>, Refusal>, Broken> {
        let Some(path) = &patch.url else { return self.receive_bytes(patcher).map(Ok) };
        let size = patch.size.min(MAX_FRAME_BYTES as u64);
        let fetched = download(self.addr, path, &self.token, size);
        Ok(fetched.map_err(|error| Reason::Hash.because(format!("cannot fetch {path}: {error}"))))
    }

    fn send(&mut self, body: Body) -> Result<(), Broken> {
        self.sent += 1;
        let text = serde_json::to_string(&ToDaemon { seq: self.sent, body }).map_err(|_| Broken::Gone)?;
        self.socket.send(Message::Text(text)).map_err(Broken::from)
    }

    fn receive(&mut self, patcher: &mut dyn Patcher) -> Result<FromDaemon, Broken> {
        let breach = |_| Broken::Breach(CloseCode::Protocol);
        let text = match self.next_frame(patcher)? {
            Message::Text(text) => text,
            _ => return Err(Broken::Breach(CloseCode::Unsupported)),
        };
        self.received += 1;
        let numbered: Numbered = serde_json::from_str(&text).map_err(breach)?;
        if numbered.seq != self.received {
            return Err(Broken::Breach(CloseCode::Protocol));
        }
        serde_json::from_str(&text).map_err(breach)
    }

    fn receive_bytes(&mut self, patcher: &mut dyn Patcher) -> Result<Vec<u8>, Broken> {
        match self.next_frame(patcher)? {
            Message::Binary(bytes) => Ok(bytes),
            _ => Err(Broken::Breach(CloseCode::Protocol)),
        }
    }

    /// Tells what has run and panicked, and makes sure to be back in time for the next look.
    fn look_around(&mut self, patcher: &mut dyn Patcher) -> Result<(), Broken> {
        #[cfg(target_os = "linux")]
        for ran in patcher.take_ran() {
            self.send(Body::Ran(ran))?;
        }
        #[cfg(target_os = "linux")]
        if patcher.has_panicked() {
            self.send(Body::Panicked {})?;
        }
        let patience = if patcher.is_lasting() { SILENCE_LIMIT } else { LOOK_AGAIN };
        let patience = patcher.next_look().map_or(patience, |next| patience.min(next));
        self.socket.get_mut().wait_for(patience).map_err(|_| Broken::Gone)
    }

    /// The next text or binary frame, as long as there is something to patch.
    fn next_frame(&mut self, patcher: &mut dyn Patcher) -> Result<Message, Broken> {
        let mut heard = Instant::now();
        loop {
            if self.silence_limit == SILENCE_LIMIT {
                self.look_around(patcher)?;
            }
            let read = match self.socket.read() {
                Err(tungstenite::Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                        && heard.elapsed() < self.silence_limit
                        && patcher.is_there() =>
                {
                    continue
                }
                read => read?,
            };
            heard = Instant::now();
            match read {
                Message::Close(_) => {
                    let _ = self.socket.flush();
                    return Err(Broken::Gone);
                }
                Message::Ping(_) | Message::Pong(_) => self.socket.flush()?,
                frame => return Ok(frame),
            }
        }
    }
}

/// A stream of which reading ends without result after a while.
struct Stream {
    inner: TcpStream,
    patience: Duration,
}

impl Stream {
    fn wait_for(&mut self, patience: Duration) -> io::Result<()> {
        if patience != self.patience {
            self.inner.set_read_timeout(Some(patience))?;
            self.patience = patience;
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // The kernel ends a read at the next tick of a clock that may have but a hundred a second.
        #[cfg(target_os = "linux")]
        {
            let mut polled = libc::pollfd { fd: self.inner.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let limit_ms = self.patience.as_millis().try_into().unwrap_or(i32::MAX);
            if unsafe { libc::poll(&mut polled, 1, limit_ms) } < 1 {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        self.inner.read(into)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl From<tungstenite::Error> for Broken {
    fn from(error: tungstenite::Error) -> Broken {
        match error {
            tungstenite::Error::Capacity(_) => Broken::Breach(CloseCode::Size),
            tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8 => Broken::Breach(CloseCode::Protocol),
            _ => Broken::Gone,
        }
    }
}

fn proof(token: &str, side: &str, nonce: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{side}:{nonce}").as_bytes());
    hex(&mac.finalize().into_bytes())
}
