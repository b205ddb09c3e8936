//! Kernels of the packet path beside AES-GCM: replay window, SPD lookup, IPv4 checksum.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net};
use simplon::ids::SaIndex;
use simplon::ipsec::replay::{BlockRun, ReplayWindow};
use simplon::ipsec::selector::AddressPair;
use simplon::ipsec::spd::{SpdAction, SpdBuilder};
use simplon::wire::checksum;

/// Numbers in one burst.
const BURST: u64 = 32;

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay window");
    group.throughput(Throughput::Elements(BURST));
    group.bench_function("check and commit, number by number", |bencher| {
        let window = ReplayWindow::new(1024, 0);
        let mut next = 1;
        bencher.iter(|| {
            for seq in next..next + BURST {
                let fresh = window.get().check(black_box(seq)).is_ok();
                assert!(fresh && window.get().commit(BlockRun::new(seq)) != 0);
            }
            next += BURST;
        });
    });
    group.bench_function("commit, a run at a time", |bencher| {
        let window = ReplayWindow::new(1024, 0);
        let mut next = 32;
        bencher.iter(|| {
            let mut run = BlockRun::new(next);
            for seq in next + 1..next + BURST {
                assert!(run.push(black_box(seq)));
            }
            assert!(window.commit(run) != 0);
            next += BURST;
        });
    });
    group.finish();
}

fn spd(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("SPD lookup");
    group.throughput(Throughput::Elements(BURST));
    for policies in [1_u32, 1_000, 60_000] {
        let net = |high: u32, number: u32| {
            let address = Ipv4Addr::from(high << 24 | number << 8);
            IpNet::V4(Ipv4Net::new(address, 24).expect("a prefix length"))
        };
        let mut builder = SpdBuilder::default();
        for number in 0..policies {
            builder.add(
                &net(10, number),
                &net(11, number),
                SpdAction::Protect(SaIndex(number)),
            );
        }
        let spd = builder.build();
        let mut number = 0_u32;
        group.bench_function(BenchmarkId::from_parameter(policies), |bencher| {
            bencher.iter(|| {
                for _ in 0..BURST {
                    // Neighbours in a burst are no neighbours in the table.
                    number = number.wrapping_add(0x9e37_79b9) % policies;
                    let pair =
                        AddressPair::V4(10 << 24 | number << 8 | 1, 11 << 24 | number << 8 | 1);
                    let action = spd.lookup(black_box(pair));
                    assert!(action == SpdAction::Protect(SaIndex(number)));
                }
            });
        });
    }
    group.finish();
}

fn ipv4_checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("IPv4 checksum");
    let header: [u8; 20] = std::array::from_fn(|at| at as u8);
    group.bench_function("of 20 bytes", |bencher| {
        bencher.iter(|| checksum::finish(checksum::add_bytes(0, black_box(&header))));
    });
    group.bench_function("updated for one field", |bencher| {
        bencher.iter(|| checksum::update(black_box(0x1234), black_box(0x4000), black_box(0x3f00)));
    });
    group.finish();
}

criterion_group!(benches, replay, spd, ipv4_checksum);
criterion_main!(benches);
