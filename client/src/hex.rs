//! Bytes as text, and random ones.

use std::io;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `text` gives in hex.
#[cfg(target_os = "linux")]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
    digits
        .filter(|digits| digits.len() % 2 == 0)
        .map(|digits| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// `N` random bytes in hex.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    getrandom::getrandom(&mut bytes).map_err(|error| io::Error::new(io::ErrorKind::Other, error.to_string()))?;
    Ok(hex(&bytes))
}
