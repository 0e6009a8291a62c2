//! Which pages may connect, by the `Origin` that browsers send (RFC 6454): scripts cannot set it, other programs can.

use std::str::FromStr;
use std::sync::Arc;

/// A list of origins.
#[derive(Debug, Clone)]
pub struct Origins(Arc<[String]>);

/// It is not a list of origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOrigins;

impl FromStr for Origins {
    type Err = NotOrigins;

    fn from_str(text: &str) -> Result<Self, NotOrigins> {
        let origin = |text: &str| {
            if text == "null" {
                return Ok(text.to_owned());
            }
            let url = reqwest::Url::parse(text).map_err(|_| NotOrigins)?;
            // With a path it would look as if that were compared, too.
            let is_alone =
                url.path() == "/" && !text.ends_with('/') && url.query().is_none() && url.fragment().is_none();
            let origin = url.origin();
            // As browsers write it: small letters, and no port that goes without saying.
            if is_alone && origin.is_tuple() { Ok(origin.ascii_serialization()) } else { Err(NotOrigins) }
        };
        text.split(',').map(|item| origin(item.trim())).collect::<Result<Vec<_>, _>>().map(|all| Self(all.into()))
    }
}

impl Origins {
    /// Whether this one is in the list.
    pub fn allow(&self, origin: &[u8]) -> bool {
        self.0.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_without_case_and_with_their_port() {
        let origins: Origins =
            "https://Chat.example.com, http://localhost:8080,https://b.example:443,null".parse().unwrap();
        for allowed in [
            "https://chat.example.com",
            "HTTPS://CHAT.EXAMPLE.COM",
            "http://localhost:8080",
            "https://b.example",
            "null",
        ] {
            assert!(origins.allow(allowed.as_bytes()), "{allowed}");
        }
        for other in [
            "http://chat.example.com",
            "https://chat.example.com:8443",
            "https://chat.example.com.evil.example",
            "https://evil.chat.example.com",
            "http://localhost",
            "",
            "\u{ff}",
        ] {
            assert!(!origins.allow(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in
            ["", "example.com", "https://", "https://a/", "https://a/path", "https://a?q", "https://a,", "*", "data:x"]
        {
            assert_eq!(text.parse::<Origins>().map(|_| ()), Err(NotOrigins), "{text}");
        }
    }
}
