//! Fetches the bytes of a patch over HTTP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// The content of `path` on the daemon at `addr`, which must answer with exactly `size` bytes.
pub fn download(addr: SocketAddr, path: &str, token: &str, size: u64) -> io::Result<Vec<u8>> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path"));
    }
    let mut stream = TcpStream::connect_timeout(&addr, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(size.saturating_add(MAX_HEAD_BYTES)).read_to_end(&mut answer)?;
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let head_end = head_end.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        let status = answer.split(|&byte| byte == b'\r').next().unwrap_or_default();
        return Err(io::Error::new(io::ErrorKind::Other, String::from_utf8_lossy(status)));
    }
    Ok(answer.split_off(head_end + 4))
}
