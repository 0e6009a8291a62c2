//! Where a client comes from, behind proxies: each adds to `X-Forwarded-For`, on the right, from whom it has the request.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

/// Proxies whose word is believed.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<[IpNet]>);

/// It is not a list of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotNetworks;

impl FromStr for Proxies {
    type Err = NotNetworks;

    fn from_str(text: &str) -> Result<Self, NotNetworks> {
        let network = |text: &str| match text.parse::<IpAddr>() {
            Ok(alone) => Ok(IpNet::from(alone)),
            Err(_) => text.parse().map_err(|_| NotNetworks),
        };
        let items = text.split(',').filter(|_| !text.is_empty());
        items.map(|item| network(item.trim())).collect::<Result<Vec<_>, _>>().map(|all| Self(all.into()))
    }
}

impl Proxies {
    /// The address of a client: that of its connection, or, where that is one of ours, what the proxies say: from the right,
    /// the first that is not one of them. What cannot be read was written by nobody whom we know; then it is the last known one.
    pub fn client<'a>(&self, peer: IpAddr, forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>) -> IpAddr {
        let mut client = peer.to_canonical();
        let said = forwarded_for.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
        for said in said {
            if !self.trust(client) {
                break;
            }
            let Some(before) = std::str::from_utf8(said).ok().and_then(|said| address(said.trim())) else { break };
            client = before;
        }
        client
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Some proxies add the port.
fn address(text: &str) -> Option<IpAddr> {
    let alone = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = alone.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let proxies: Proxies = "10.0.0.0/8, 192.0.2.1,fd00::/8".parse().unwrap();
        proxies.client(peer.parse().unwrap(), lines.iter().map(|line| line.as_bytes())).to_string()
    }

    #[test]
    fn only_the_word_of_trusted_proxies_counts() {
        for (peer, lines, expected) in [
            // Whoever connects itself may say what it likes.
            ("203.0.113.9", &["1.1.1.1"][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
            // What stands left of the first stranger was written by it.
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.9, 192.0.2.1"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, 192.0.2.1,10.2.3.4"], "203.0.113.9"),
            // All are ours: the first of them.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["203.0.113.9:5555"], "203.0.113.9"),
            ("fd00::1", &["[2001:db8::7]:5555"], "2001:db8::7"),
            ("fd00::1", &["[2001:db8::7]"], "2001:db8::7"),
            ("10.0.0.1", &["2001:db8::7"], "2001:db8::7"),
            // What cannot be read tells nothing.
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, , 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
        ] {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn networks() {
        assert!("".parse::<Proxies>().is_ok_and(|none| none.0.is_empty()));
        for text in ["10.0.0.0/33", "10.0.0.0/8,", "proxy.example", "10.0.0.1:80"] {
            assert_eq!(text.parse::<Proxies>().map(|_| ()), Err(NotNetworks), "{text}");
        }
    }
}
