//! Announcement of an ASD by UDP multicast (wire-protocol §8), for discovery by the original's tools. Off by default; what
//! is lost on the way is sent again later.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use alba_core::env::osd::DiskUsage;

use crate::home::Identity;

/// Where receivers listen.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 2, 3), 8123);

/// Through any number of routers.
const TTL: u32 = 255;

/// Sends announcements.
pub(super) struct Announcer(UdpSocket);

impl Announcer {
    /// From an address of `from`'s machine.
    pub(super) fn open(from: SocketAddr) -> io::Result<Self> {
        // The interface follows from the address where one was given.
        let own = match from.ip() {
            IpAddr::V4(own) if !own.is_loopback() => own,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_nonblocking(true)?;
        socket.set_multicast_ttl_v4(TTL)?;
        Ok(Self(socket))
    }

    /// Sends one.
    pub(super) fn send(&self, identity: &Identity, listen: SocketAddr, usage: DiskUsage) -> io::Result<()> {
        self.0.send_to(announcement(identity, listen, usage).as_bytes(), GROUP).map(drop)
    }
}

/// One datagram, spaced exactly as the original does it.
fn announcement(identity: &Identity, listen: SocketAddr, usage: DiskUsage) -> String {
    // A name is without anything that JSON would escape; should one not be, a receiver must still be able to parse it.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut json = format!(
        "{{ \"id\" : {}, \"node_id\" : {}, \"port\" : {}, \"used_bytes\" : \"{}\", \"total_bytes\" : \"{}\", \
         \"version\" : \"AsdV1\", \"network_interfaces\":[",
        text(identity.long_id.as_str()),
        text(identity.place.node().as_str()),
        listen.port(),
        usage.used.get(),
        usage.capacity.get(),
    );
    // None: the receiver takes the address it came from.
    if let IpAddr::V4(own) = listen.ip()
        && !own.is_unspecified()
    {
        // Writing to a string cannot fail.
        let _ = write!(json, "{{\"ipv4_addr\": \"{own}\"}}");
    }
    json + " ]}"
}

#[cfg(test)]
mod tests {
    use alba_core::units::ByteCount;

    use super::*;

    #[test]
    fn an_announcement_is_exactly_the_originals() {
        let identity: Identity = toml::from_str(
            "format = 1\nlong_id = \"asd_0\"\nplace = \"rack/node_0\"\nstore_id = \"00000000000000000000000000000000\"",
        )
        .unwrap();
        let usage = DiskUsage { used: ByteCount(4096), capacity: ByteCount(1_000_000_000_000) };
        let said = announcement(&identity, ([127, 0, 0, 1], 8000).into(), usage);
        assert_eq!(
            said,
            r#"{ "id" : "asd_0", "node_id" : "node_0", "port" : 8000, "used_bytes" : "4096", "total_bytes" : "1000000000000", "version" : "AsdV1", "network_interfaces":[{"ipv4_addr": "127.0.0.1"} ]}"#
        );
        serde_json::from_str::<serde_json::Value>(&said).unwrap();
        let anywhere = announcement(&identity, ([0, 0, 0, 0], 8000).into(), usage);
        assert!(anywhere.ends_with(r#""network_interfaces":[ ]}"#), "{anywhere}");
    }
}
