//! What `simplon show neighbours` tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::control::report::{NeighbourEntry, NeighboursReport};
use crate::ids::PortIndex;
use crate::policy::model::MacAddr;
use crate::policy::plan::{Learned, Plan};

/// What the control thread knows of stations.
pub(super) struct Sources<'a> {
    /// The policy's.
    pub(super) plan: &'a Plan,
    /// The kernel's, by `PortIndex`.
    pub(super) learned: &'a [Learned],
    /// Those that are needed and may not be known.
    pub(super) wanted: BTreeSet<(PortIndex, IpAddr)>,
}

/// Every station by port and address. Where policy and kernel both name one, the policy is obeyed and told.
pub(super) fn report(sources: Sources<'_>, ports: &[String]) -> NeighboursReport {
    let mut neighbours = Vec::new();
    for (index, port) in (0u16..).map(PortIndex).zip(ports) {
        let entry = |address: &IpAddr, mac: Option<&[u8; 6]>, origin: &str| NeighbourEntry {
            address: address.to_string(),
            port: port.clone(),
            mac: mac.map(|mac| MacAddr(*mac).to_string()),
            origin: origin.into(),
            state: if mac.is_some() { "known" } else { "unresolved" }.into(),
        };
        let first = (index, IpAddr::from([0; 4]));
        let mut all: BTreeMap<IpAddr, NeighbourEntry> = sources
            .wanted
            .range(first..)
            .take_while(|(port, _)| *port == index)
            .map(|(_, address)| (*address, entry(address, None, "learned")))
            .collect();
        for (address, mac) in sources
            .learned
            .get(index.index())
            .map(|learned| &learned.neighbours)
            .into_iter()
            .flatten()
        {
            all.insert(*address, entry(address, Some(mac), "learned"));
        }
        for (address, mac) in sources.plan.neighbours_of_policy(index) {
            all.insert(*address, entry(address, Some(mac), "static"));
        }
        neighbours.extend(all.into_values());
    }
    NeighboursReport { neighbours }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::Topology;
    use crate::policy::{Secrets, Source, parse};
    use std::path::Path;

    const POLICY: &str = r#"
[gateway]
name = "west"
workers = [0]
state_dir = "/nowhere"
control_socket = "/nowhere/socket"

[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"

[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.1/24"]

[[neighbour]]
address = "192.0.2.2"
mac = "02:00:00:00:00:02"
port = "wan"
"#;

    #[test]
    fn stations_come_by_port_and_the_policys_word_counts() {
        let source = Source::new(Path::new("policy.toml"), POLICY);
        let Ok(policy) = parse(&source, &Secrets::with_environment([])) else {
            panic!("the policy is refused");
        };
        let macs = vec![MacAddr([2; 6]); 2];
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut wan = Learned::default();
        wan.neighbours.insert(ip(2), [9; 6]);
        wan.neighbours.insert(ip(3), [3; 6]);
        let report = report(
            Sources {
                plan: &Plan::new(&policy, &Topology { macs }),
                learned: &[Learned::default(), wan],
                wanted: BTreeSet::from([
                    (PortIndex(0), ip(77)),
                    (PortIndex(1), ip(3)),
                    (PortIndex(1), ip(4)),
                ]),
            },
            &["lan".to_owned(), "wan".to_owned()],
        );
        let told: Vec<String> = report
            .neighbours
            .iter()
            .map(|own| {
                let mac = own.mac.as_deref().unwrap_or("-");
                let (address, port) = (&own.address, &own.port);
                format!("{port} {address} {mac} {} {}", own.origin, own.state)
            })
            .collect();
        assert_eq!(
            told,
            [
                "lan 192.0.2.77 - learned unresolved",
                "wan 192.0.2.2 02:00:00:00:00:02 static known",
                "wan 192.0.2.3 03:03:03:03:03:03 learned known",
                "wan 192.0.2.4 - learned unresolved",
            ]
        );
    }
}
