//! Ordered policies between two gateways on a real wire: some pings never leave, and everything else goes through the tunnel.
#![cfg(feature = "dpdk")]

mod testbed;

use testbed::{
    Family, Flow, Ping, Result, Site, Testbed, Transport, TunnelSpec, assert_balanced,
    assert_clean_stop,
};

/// Echo requests to and from west over IPv4 end where they are to be sealed; over IPv6 a policy has the tunnel carry them. East
/// mirrors it.
fn ordered(site: Site) -> String {
    let (west, east) = match site {
        Site::West => ("local", "remote"),
        Site::East => ("remote", "local"),
    };
    let [v4, v6] = [Family::V4, Family::V6].map(|family| Site::West.network(family));
    format!(
        "\n[[policy]]\nname = \"no-echo\"\naction = \"discard\"\n{west} = \"{v4}\"\n{east} = \"any\"\nprotocol = \"icmp\"\nicmp = \"8/0\"\n\
         \n[[policy]]\nname = \"echo6\"\naction = \"protect\"\ntunnel = \"west-east\"\n{west} = \"{v6}\"\n{east} = \"any\"\n\
         protocol = \"icmpv6\"\nicmp = [128, 129]\n\
         \n[[policy]]\nname = \"nothing-else-of-icmpv6\"\naction = \"discard\"\n{west} = \"any\"\n{east} = \"any\"\nprotocol = \"icmpv6\"\n"
    )
}

#[test]
fn what_policies_discard_is_not_sealed_and_the_rest_is() -> Result<()> {
    let spec = TunnelSpec {
        more: ordered,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    for (from, gateway) in [(Site::West, &bed.west), (Site::East, &bed.east)] {
        let ping = |family| Ping {
            from,
            family,
            ..Ping::default()
        };
        let v4 = ping(Family::V4);
        assert_eq!(bed.ping(&v4)?.received, 0);
        let discarded = gateway.dropped_for("outbound", "discarded")?;
        assert_eq!(discarded, u64::from(v4.count));
        let v6 = ping(Family::V6);
        assert_eq!(bed.ping(&v6)?.received, v6.count);
        // What no policy names goes by the tunnel's networks.
        let stream = bed.stream(&Flow {
            from,
            family: Family::V4,
            transport: Transport::Tcp,
            seconds: 1,
        })?;
        assert!(stream.bits_per_second > 0.0);
    }
    for gateway in [&bed.west, &bed.east] {
        assert_eq!(gateway.dropped_for("inbound", "selector-mismatch")?, 0);
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
