//! Tokens, certificates, and when they are needed.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::LinkError;

/// Bytes a token file may have.
const MAX_TOKEN_FILE: u64 = 4 << 10;
/// Bytes a certificate or key file may have.
const MAX_PEM_FILE: u64 = 1 << 20;

/// A shared secret. Debug output does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of 1 to 4096 visible ASCII characters.
    ///
    /// # Errors
    /// When it is empty, too long or has other characters; the text does not repeat it.
    pub fn new(text: &str) -> Result<Self, LinkError> {
        if text.is_empty() || text.len() as u64 > MAX_TOKEN_FILE {
            return Err(LinkError::BadOption(format!(
                "a token has 1 to {MAX_TOKEN_FILE} characters, this one {}",
                text.len()
            )));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(LinkError::BadOption(
                "a token has visible ASCII characters only, without spaces".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads a token from a file; white space around it does not count.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub fn from_file(path: &Path) -> Result<Self, LinkError> {
        let bytes = read_small(path, "token file", MAX_TOKEN_FILE)?;
        let bad = |reason: String| LinkError::File {
            what: "token file",
            path: path.display().to_string(),
            reason,
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| bad("not text".to_owned()))?;
        Self::new(text.trim()).map_err(|e| bad(e.to_string()))
    }

    /// The value of the `authorization` header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether an `authorization` header carries this token. Looks at every byte whatever they
    /// are, so the time taken tells only the length.
    pub(super) fn admits(&self, header: &[u8]) -> bool {
        // The scheme's case is free (RFC 9110, section 11.1).
        let Some((scheme, given)) = header.split_at_checked(7) else {
            return false;
        };
        let want = self.0.as_bytes();
        scheme.eq_ignore_ascii_case(b"bearer ")
            && given.len() == want.len()
            && std::hint::black_box(want.iter().zip(given).fold(0, |differing, (a, b)| {
                differing | std::hint::black_box(a ^ b)
            })) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What the server shows to prove who it is.
#[derive(Clone)]
pub struct ServerTls {
    cert_pem: Vec<u8>,
    key_pem: Vec<u8>,
}

impl ServerTls {
    /// From PEM text: the certificate (with its chain) and its private key.
    pub fn from_pem(cert_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        Self {
            cert_pem: cert_pem.into(),
            key_pem: key_pem.into(),
        }
    }

    /// From PEM files, as `--tls-cert` and `--tls-key` name them.
    ///
    /// # Errors
    /// When a file cannot be read or does not look like PEM.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, LinkError> {
        Ok(Self {
            cert_pem: read_pem(cert, "certificate file")?,
            key_pem: read_pem(key, "key file")?,
        })
    }

    pub(super) fn config(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(Identity::from_pem(&self.cert_pem, &self.key_pem))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(..)")
    }
}

/// Whom the edge trusts.
#[derive(Clone, Debug, Default)]
pub struct EdgeTls {
    /// PEM text of the authorities to trust; without it, those the system trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// Name expected in the server's certificate, where it is not the host dialled.
    pub server_name: Option<String>,
}

impl EdgeTls {
    /// Trusts the authorities in a PEM file only, as `--tls-ca` names it. A self-signed server
    /// certificate is its own authority.
    ///
    /// # Errors
    /// When the file cannot be read or does not look like PEM.
    pub fn from_ca_file(path: &Path) -> Result<Self, LinkError> {
        Ok(Self {
            ca_pem: Some(read_pem(path, "CA file")?),
            server_name: None,
        })
    }

    pub(super) fn config(&self, host: &str) -> ClientTlsConfig {
        let config =
            ClientTlsConfig::new().domain_name(self.server_name.as_deref().unwrap_or(host));
        match &self.ca_pem {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        }
    }
}

/// What is missing for an address that other machines can reach.
pub(super) fn missing(tls: bool, token: bool) -> Option<&'static str> {
    match (tls, token) {
        (true, true) => None,
        (false, true) => Some("TLS"),
        (true, false) => Some("token"),
        (false, false) => Some("TLS and no token"),
    }
}

fn read_pem(path: &Path, what: &'static str) -> Result<Vec<u8>, LinkError> {
    let bytes = read_small(path, what, MAX_PEM_FILE)?;
    if bytes.windows(11).any(|w| w == b"-----BEGIN ") {
        Ok(bytes)
    } else {
        Err(LinkError::File {
            what,
            path: path.display().to_string(),
            reason: "not PEM (it has no `-----BEGIN` line)".to_owned(),
        })
    }
}

fn read_small(path: &Path, what: &'static str, limit: u64) -> Result<Vec<u8>, LinkError> {
    let bad = |reason: String| LinkError::File {
        what,
        path: PathBuf::from(path).display().to_string(),
        reason,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|e| bad(e.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(bad(format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_admits_only_itself() {
        let token = Token::new("s3cret").unwrap();
        assert!(token.admits(b"Bearer s3cret") && token.admits(b"bearer s3cret"));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3creT",
            "Bearer s3cret ",
            "Basic s3cret",
        ] {
            assert!(!token.admits(header.as_bytes()), "{header}");
        }
        assert!(token.admits(token.header().as_bytes()));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn files_are_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Token::from_file(&path)
        };
        assert!(read(b" abc\n").unwrap().admits(b"Bearer abc"));
        for bytes in [&b""[..], b"\n", b"a b", b"\xff", &[b'a'; 5000]] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::write(&path, "no pem").unwrap();
        let error = EdgeTls::from_ca_file(&path).unwrap_err().to_string();
        assert!(error.contains("not PEM"), "{error}");
        let error = Token::from_file(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, LinkError::File { .. }), "{error}");
    }
}
