//! Next hops as the control side keeps them: each has its number for as long as anything leads to it, so that a station
//! whose MAC address changes is one entry of the tables, whatever the number of prefixes behind it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::ids::{NextHopIndex, PortIndex};
use crate::ipsec::flow_hash::mix;
use crate::policy::tables::{BUCKETS, HopGroup, NextHop};

/// One of several next hops.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Member {
    pub(super) hop: NextHopIndex,
    /// Its share of the flows.
    pub(super) weight: u16,
}

struct Station {
    port: PortIndex,
    address: IpAddr,
    mac: Option<[u8; 6]>,
    uses: u32,
}

struct Group {
    members: Arc<[Member]>,
    published: HopGroup,
    uses: u32,
}

/// Entries that keep their place.
struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, entry: T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.entries[at as usize] = Some(entry);
        at
    }

    fn get(&self, at: u32) -> Option<&T> {
        self.entries.get(at as usize)?.as_ref()
    }

    fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.entries.get_mut(at as usize)?.as_mut()
    }

    fn remove(&mut self, at: u32) -> Option<T> {
        let entry = self.entries.get_mut(at as usize)?.take();
        self.free.extend(entry.is_some().then_some(at));
        entry
    }
}

/// All next hops of all ports.
pub(super) struct NextHops {
    /// By `PortIndex`: the port's own MAC address and MTU.
    ports: Vec<([u8; 6], u16)>,
    stations: Slab<Station>,
    by_address: FxHashMap<(PortIndex, IpAddr), NextHopIndex>,
    groups: Slab<Group>,
    by_members: FxHashMap<Arc<[Member]>, NextHopIndex>,
    /// What the last tables have; `None` where something changed since.
    published: Option<Published>,
}

/// What tables have of next hops.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) hops: Arc<[NextHop]>,
    pub(super) groups: Arc<[HopGroup]>,
}

impl NextHops {
    pub(super) fn new(ports: Vec<([u8; 6], u16)>) -> Self {
        Self {
            ports,
            stations: Slab::default(),
            by_address: FxHashMap::default(),
            groups: Slab::default(),
            by_members: FxHashMap::default(),
            published: None,
        }
    }

    /// The number of a station, which is in use once more; of a new one `mac` counts.
    pub(super) fn station(
        &mut self,
        port: PortIndex,
        address: IpAddr,
        mac: Option<[u8; 6]>,
    ) -> NextHopIndex {
        if let Some(hop) = self.by_address.get(&(port, address)) {
            if let Some(station) = self.stations.get_mut(hop.0) {
                station.uses += 1;
            }
            return *hop;
        }
        self.published = None;
        let hop = NextHopIndex(self.stations.insert(Station {
            port,
            address,
            mac,
            uses: 1,
        }));
        self.by_address.insert((port, address), hop);
        hop
    }

    /// The number that stands for one of `members`, two or more, each of which was taken into use for it.
    pub(super) fn group(&mut self, mut members: Vec<Member>) -> NextHopIndex {
        members.sort_unstable();
        if let Some(known) = self.by_members.get(&members[..]).copied() {
            if let Some(group) = known.group().and_then(|at| self.groups.get_mut(at)) {
                group.uses += 1;
            }
            for member in members {
                self.release(member.hop);
            }
            return known;
        }
        self.published = None;
        let members: Arc<[Member]> = members.into();
        let published = self.spread(&members);
        let hop = NextHopIndex::of_group(self.groups.insert(Group {
            members: Arc::clone(&members),
            published,
            uses: 1,
        }));
        self.by_members.insert(members, hop);
        hop
    }

    /// One use less; what is in use no more is gone.
    pub(super) fn release(&mut self, hop: NextHopIndex) {
        if let Some(at) = hop.group() {
            let Some(group) = self.groups.get_mut(at) else {
                return;
            };
            group.uses -= 1;
            if group.uses == 0
                && let Some(group) = self.groups.remove(at)
            {
                self.published = None;
                self.by_members.remove(&group.members);
                group
                    .members
                    .iter()
                    .for_each(|member| self.release(member.hop));
            }
            return;
        }
        let Some(station) = self.stations.get_mut(hop.0) else {
            return;
        };
        station.uses -= 1;
        if station.uses == 0
            && let Some(station) = self.stations.remove(hop.0)
        {
            self.published = None;
            self.by_address.remove(&(station.port, station.address));
        }
    }

    /// Notes a station's MAC address, where anything leads to it. Returns whether it can be reached now and could not
    /// before, or the reverse.
    pub(super) fn set_mac(
        &mut self,
        port: PortIndex,
        address: IpAddr,
        mac: Option<[u8; 6]>,
    ) -> bool {
        let Some(hop) = self.by_address.get(&(port, address)).copied() else {
            return false;
        };
        let Some(station) = self.stations.get_mut(hop.0) else {
            return false;
        };
        if station.mac == mac {
            return false;
        }
        let turned = station.mac.is_some() != mac.is_some();
        station.mac = mac;
        self.published = None;
        if turned {
            self.spread_anew(hop);
        }
        turned
    }

    /// Deals out the flows of the groups that `hop` is in.
    fn spread_anew(&mut self, hop: NextHopIndex) {
        for at in 0..u32::try_from(self.groups.entries.len()).unwrap_or(0) {
            let members = self.groups.get(at).map(|group| Arc::clone(&group.members));
            let Some(members) = members.filter(|all| all.iter().any(|own| own.hop == hop)) else {
                continue;
            };
            let published = self.spread(&members);
            if let Some(group) = self.groups.get_mut(at) {
                group.published = published;
            }
        }
    }

    /// Deals the places of a group out to those members that can be reached: by weight, and so that few places change hands
    /// when a member comes or goes (each has a preference of its own among places, as in Maglev's table).
    fn spread(&self, members: &[Member]) -> HopGroup {
        struct Dealt {
            /// Orders them, whatever their numbers.
            seed: u128,
            hop: NextHopIndex,
            weight: u64,
            next: u32,
            skip: u32,
            has: u64,
        }
        let deal = |member: &Member| {
            let station = self.stations.get(member.hop.0)?;
            station.mac?;
            let seed = match station.address {
                IpAddr::V4(address) => address.to_bits().into(),
                IpAddr::V6(address) => address.to_bits(),
            };
            let hash = mix(crate::bits::low_64(seed ^ seed >> 64));
            Some(Dealt {
                seed,
                hop: member.hop,
                weight: member.weight.max(1).into(),
                next: hash,
                // Odd, so that it goes through all places.
                skip: hash >> 16 | 1,
                has: 0,
            })
        };
        let mut dealt: Vec<Dealt> = members.iter().filter_map(deal).collect();
        dealt.sort_unstable_by_key(|dealt| dealt.seed);
        let mut buckets = vec![None; BUCKETS];
        for _ in 0..BUCKETS {
            // Whose turn it is: the one who has the least for its weight.
            let Some(turn) = dealt
                .iter_mut()
                .min_by(|a, b| ((a.has + 1) * b.weight).cmp(&((b.has + 1) * a.weight)))
            else {
                return HopGroup::default();
            };
            turn.has += 1;
            loop {
                let at = turn.next as usize % BUCKETS;
                turn.next = turn.next.wrapping_add(turn.skip);
                if buckets[at].is_none() {
                    buckets[at] = Some(turn.hop);
                    break;
                }
            }
        }
        HopGroup::new(buckets.into_iter().flatten().collect())
    }

    /// The members of a group, or the one next hop that `hop` is.
    pub(super) fn members(&self, hop: NextHopIndex) -> Vec<NextHopIndex> {
        match hop.group() {
            Some(at) => self.groups.get(at).map_or_else(Vec::new, |group| {
                group.members.iter().map(|member| member.hop).collect()
            }),
            None => vec![hop],
        }
    }

    /// The members of groups whose MAC address is not known.
    pub(super) fn left_out(&self) -> BTreeSet<(PortIndex, IpAddr)> {
        let members = self.by_members.keys().flat_map(|members| members.iter());
        let stations = members.filter_map(|member| self.stations.get(member.hop.0));
        stations
            .filter(|station| station.mac.is_none())
            .map(|station| (station.port, station.address))
            .collect()
    }

    /// The station, and whether its MAC address is known.
    pub(super) fn address(&self, hop: NextHopIndex) -> Option<(IpAddr, bool)> {
        let station = self.stations.get(hop.0)?;
        Some((station.address, station.mac.is_some()))
    }

    /// What `hop` comes to for whatever has this `hash`; `None` where none can be reached.
    pub(super) fn choose(&self, hop: NextHopIndex, hash: u32) -> Option<NextHopIndex> {
        match hop.group() {
            Some(at) => self.groups.get(at)?.published.choose(hash),
            None => self.stations.get(hop.0)?.mac.map(|_| hop),
        }
    }

    /// What tables are to have.
    pub(super) fn publish(&mut self) -> Published {
        if let Some(published) = &self.published {
            return published.clone();
        }
        let hop = |station: &Option<Station>| {
            let reached = station.as_ref().and_then(|station| {
                let (own, mtu) = *self.ports.get(station.port.index())?;
                let mut macs = [0; 12];
                macs[..6].copy_from_slice(&station.mac?);
                macs[6..].copy_from_slice(&own);
                Some(NextHop {
                    macs,
                    port: station.port,
                    mtu,
                })
            });
            reached.unwrap_or(NextHop::UNRESOLVED)
        };
        let group = |group: &Option<Group>| {
            let group = group.as_ref().map(|group| group.published.clone());
            group.unwrap_or_default()
        };
        let published = Published {
            hops: self.stations.entries.iter().map(hop).collect(),
            groups: self.groups.entries.iter().map(group).collect(),
        };
        self.published = Some(published.clone());
        published
    }

    /// Stations and groups in use.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.by_address.len(), self.by_members.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_stations(count: u8) -> (NextHops, Vec<NextHopIndex>) {
        let mut hops = NextHops::new(vec![([2; 6], 1500)]);
        let station = |hops: &mut NextHops, last| {
            let address = IpAddr::from([192, 0, 2, last]);
            hops.station(PortIndex(0), address, Some([last; 6]))
        };
        let stations = (1..=count).map(|last| station(&mut hops, last)).collect();
        (hops, stations)
    }

    fn members(stations: &[NextHopIndex], weights: &[u16]) -> Vec<Member> {
        let both = stations.iter().zip(weights);
        both.map(|(hop, weight)| Member {
            hop: *hop,
            weight: *weight,
        })
        .collect()
    }

    /// How many of all places each of `stations` has.
    fn shares(hops: &NextHops, group: NextHopIndex, stations: &[NextHopIndex]) -> Vec<usize> {
        let places: Vec<_> = places(hops, group);
        stations
            .iter()
            .map(|hop| places.iter().filter(|at| **at == Some(*hop)).count())
            .collect()
    }

    fn places(hops: &NextHops, group: NextHopIndex) -> Vec<Option<NextHopIndex>> {
        let all = u32::try_from(BUCKETS).expect("few");
        let step = (u32::MAX / all) + 1;
        (0..all).map(|at| hops.choose(group, at * step)).collect()
    }

    #[test]
    fn flows_are_dealt_out_by_weight() {
        let (mut hops, stations) = with_stations(3);
        let group = hops.group(members(&stations, &[1, 1, 2]));
        assert_eq!(shares(&hops, group, &stations), [64, 64, 128]);
        let (mut hops, stations) = with_stations(3);
        let group = hops.group(members(&stations, &[1, 1, 1]));
        let shares = shares(&hops, group, &stations);
        assert!(
            shares.iter().all(|share| (85..=86).contains(share)),
            "{shares:?}"
        );
    }

    #[test]
    fn flows_stay_where_they_are_when_another_next_hop_goes() {
        let (mut hops, stations) = with_stations(4);
        let group = hops.group(members(&stations, &[1; 4]));
        let before = places(&hops, group);
        assert!(hops.set_mac(PortIndex(0), IpAddr::from([192, 0, 2, 4]), None));
        let after = places(&hops, group);
        assert!(after.iter().all(|hop| *hop != Some(stations[3])));
        let moved = |(before, after): &(&_, &_)| **before != Some(stations[3]) && before != after;
        let moved = before.iter().zip(&after).filter(moved).count();
        assert!(moved < BUCKETS / 4, "{moved} of {BUCKETS}");
        assert!(hops.set_mac(PortIndex(0), IpAddr::from([192, 0, 2, 4]), Some([4; 6])));
        assert_eq!(places(&hops, group), before);
    }

    #[test]
    fn nothing_is_chosen_where_nothing_can_be_reached() {
        let (mut hops, stations) = with_stations(2);
        let group = hops.group(members(&stations, &[1; 2]));
        for last in 1..=2 {
            hops.set_mac(PortIndex(0), IpAddr::from([192, 0, 2, last]), None);
        }
        assert_eq!(hops.choose(group, 7), None);
        let published = hops.publish();
        assert_eq!(published.hops[0].mtu, 0);
        hops.release(group);
        assert_eq!(hops.in_use(), (0, 0), "what nothing leads to is gone");
    }

    #[test]
    fn same_next_hops_are_one_group() {
        let (mut hops, stations) = with_stations(2);
        let group = hops.group(members(&stations, &[1; 2]));
        for station in &stations {
            let address = hops.address(*station).expect("a station").0;
            hops.station(PortIndex(0), address, None);
        }
        let turned: Vec<_> = stations.iter().rev().copied().collect();
        assert_eq!(hops.group(members(&turned, &[1; 2])), group);
        hops.release(group);
        assert_eq!(hops.in_use(), (2, 1));
        hops.release(group);
        assert_eq!(hops.in_use(), (0, 0));
    }
}
