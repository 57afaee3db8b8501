//! Addresses as people type them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{DEFAULT_PORT, LinkError};

/// A host and a port: `server`, `server:7433`, `192.0.2.1:7433`, `[2001:db8::1]:7433`, `::1`.
/// Without a port it is 7433.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Name or number of the host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 0 lets the system choose where one listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether this is surely the same machine: a loopback number, or `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl Default for Address {
    /// `127.0.0.1:7433`.
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: DEFAULT_PORT,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = |reason: &str| LinkError::BadAddress {
            address: text.chars().take(300).collect(),
            reason: reason.to_owned(),
        };
        if text.contains("://") {
            return Err(bad("leave the scheme out; TLS has its own flags"));
        }
        if text.len() > 300 {
            return Err(bad("it is too long"));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| bad("the `[` is not closed"))?;
            match (rest, rest.strip_prefix(':')) {
                ("", _) => (host, None),
                (_, Some(port)) => (host, Some(port)),
                _ => return Err(bad("only `:port` may follow `]`")),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.contains(':') || text.starts_with('[') {
            host.parse::<std::net::Ipv6Addr>()
                .map_err(|_| bad("this is no IPv6 address"))?;
        } else if host.is_empty() {
            return Err(bad("the host is missing"));
        } else if !host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        {
            return Err(bad("a host has letters, digits, `.` and `-` only"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .map_err(|_| bad("the port is not between 0 and 65535"))?,
            Some(_) => return Err(bad("the port is not between 0 and 65535")),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_type() {
        for (text, shown, loopback) in [
            ("127.0.0.1", "127.0.0.1:7433", true),
            ("localhost:80", "localhost:80", true),
            ("::1", "[::1]:7433", true),
            ("[::1]", "[::1]:7433", true),
            ("[2001:db8::1]:9", "[2001:db8::1]:9", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
            ("cloud.example", "cloud.example:7433", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.is_loopback(), loopback, "{text}");
        }
        assert_eq!(Address::default().to_string(), "127.0.0.1:7433");
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            ":80",
            "a:",
            "a:x",
            "a:+1",
            "a:70000",
            "[::1",
            "[a]:1",
            "[::1]x",
            "a b",
            "http://a:1",
            "1:2:3",
            "a/b:1",
            "u@h:1",
            "é",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("host:port"), "{text}: {error}");
        }
    }
}
