//! One connection to the daemon, from finding it to losing it.

use crate::arch::TARGET;
use crate::engine::Engine;
use crate::host::{hex, random_hex};
use crate::wire::{Body, FromDaemon, Hello, Numbered, ToDaemon, MAX_FRAME_BYTES, PROTOCOL};
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;
use tungstenite::http::Uri;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const OPENING_LIMIT: Duration = Duration::from_secs(5);
/// The daemon pings every 20 s and gives up after another 20 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct DaemonFile {
    url: String,
    token: String,
}

/// How a session ended.
pub enum End {
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
    socket: WebSocket<TcpStream>,
    sent: u64,
    received: u64,
}

/// Connects to the daemon that `state` names and serves it until the connection ends.
pub fn run(engine: &mut Engine, state: &Path) -> End {
    let Some((token, mut connection)) = connect(state) else { return End::Unopened };
    let (broken, end) = match connection.open(engine, &token) {
        Ok(None) => (connection.serve(engine), End::Lost),
        Ok(Some(end)) => return end,
        Err(broken) => (broken, End::Unopened),
    };
    if let Broken::Breach(code) = broken {
        let _ = connection.socket.close(Some(CloseFrame { code, reason: "".into() }));
    }
    end
}

fn connect(state: &Path) -> Option<(String, Connection)> {
    let daemon: DaemonFile = serde_json::from_slice(&fs::read(state.join("daemon.json")).ok()?).ok()?;
    let uri: Uri = daemon.url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let addr = (host, uri.port_u16()?).to_socket_addrs().ok()?.next()?;
    let stream = TcpStream::connect_timeout(&addr, OPENING_LIMIT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(OPENING_LIMIT)).ok()?;
    let config = WebSocketConfig {
        max_message_size: Some(MAX_FRAME_BYTES),
        max_frame_size: Some(MAX_FRAME_BYTES),
        ..WebSocketConfig::default()
    };
    let (socket, _) = tungstenite::client::client_with_config(uri, stream, Some(config)).ok()?;
    Some((daemon.token, Connection { socket, sent: 0, received: 0 }))
}

impl Connection {
    /// Says hello, each side proving that it knows the token. `None` means welcome.
    fn open(&mut self, engine: &Engine, token: &str) -> Result<Option<End>, Broken> {
        let FromDaemon::Challenge { protocol: PROTOCOL, nonce: challenge } = self.receive()? else {
            return Err(Broken::Breach(CloseCode::Protocol));
        };
        let nonce = random_hex::<32>().map_err(|_| Broken::Gone)?;
        let host = &engine.host;
        self.send(Body::Hello(Hello {
            protocol: PROTOCOL,
            proof: proof(token, "client", &challenge),
            nonce: &nonce,
            instance: &engine.instance,
            build_id: &host.build_id,
            pid: std::process::id(),
            exe: &host.exe.to_string_lossy(),
            target: TARGET,
            slide: host.module.slide,
            region: engine.region(),
            thread_locals: engine.thread_locals(),
            page_size: host.page_size,
            patches: engine.patches(),
        }))?;
        match self.receive()? {
            FromDaemon::Welcome { proof: answer } if answer == proof(token, "daemon", &nonce) => {
                let stream = self.socket.get_ref();
                stream.set_read_timeout(Some(SILENCE_LIMIT)).map_err(|_| Broken::Gone)?;
                Ok(None)
            }
            FromDaemon::Welcome { .. } => Err(Broken::Breach(WRONG_TOKEN)),
            FromDaemon::Reject { retry: true } => Ok(Some(End::Unopened)),
            FromDaemon::Reject { retry: false } => Ok(Some(End::Rejected)),
            _ => Err(Broken::Breach(CloseCode::Protocol)),
        }
    }

    fn serve(&mut self, engine: &mut Engine) -> Broken {
        loop {
            let served = self.receive().and_then(|message| {
                let answers = self.received;
                let result = match message {
                    FromDaemon::Patch(patch) => engine.apply(&patch, &self.receive_bytes()?),
                    FromDaemon::Undo { to } => engine.undo(to.as_deref()),
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

    fn send(&mut self, body: Body) -> Result<(), Broken> {
        self.sent += 1;
        let text = serde_json::to_string(&ToDaemon { seq: self.sent, body }).map_err(|_| Broken::Gone)?;
        self.socket.send(Message::Text(text)).map_err(Broken::from)
    }

    fn receive(&mut self) -> Result<FromDaemon, Broken> {
        let breach = |_| Broken::Breach(CloseCode::Protocol);
        let text = match self.next_frame()? {
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

    fn receive_bytes(&mut self) -> Result<Vec<u8>, Broken> {
        match self.next_frame()? {
            Message::Binary(bytes) => Ok(bytes),
            _ => Err(Broken::Breach(CloseCode::Protocol)),
        }
    }

    /// The next text or binary frame.
    fn next_frame(&mut self) -> Result<Message, Broken> {
        loop {
            match self.socket.read()? {
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
