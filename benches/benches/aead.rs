//! AES-GCM through the interface that the gateway uses: each tier, bursts of 32 packets of one SA.
//!
//! For development on one machine; what is claimed is measured by `make bench-aead`, which compares within one run.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, OpenJob, SALT_LEN, SealJob, open_burst, seal_burst,
};
use simplon::crypto::tier::Tier;
use simplon_benches::burst::{BURST, key_bytes, stride};
use zeroize::Zeroizing;

const LENGTHS: [usize; 5] = [48, 256, 576, 1408, 8192];

fn key(cipher: Cipher, tier: Tier) -> AeadKey {
    let mut bytes = key_bytes(cipher, 0);
    bytes.extend([0; SALT_LEN]);
    let material = KeyMaterial::new(cipher, Zeroizing::new(bytes)).expect("its length");
    AeadKey::for_tier(&material, tier).expect("an available tier")
}

fn nonce(at: usize) -> [u8; 12] {
    let mut nonce = [0x5a; 12];
    nonce[4..].copy_from_slice(&(at as u64).to_be_bytes());
    nonce
}

fn aad(at: usize) -> Aad {
    Aad::short(0x1001, u32::try_from(at).expect("small"))
}

fn seal_all(key: &AeadKey, len: usize, memory: &mut [u8]) -> bool {
    let slots = memory.chunks_exact_mut(stride(len)).enumerate();
    let mut jobs: Vec<_> = slots
        .map(|(at, slot)| SealJob {
            key: key.get(),
            nonce: nonce(at),
            aad: aad(at),
            text: &mut slot[50..50 + len + ICV_LEN],
            sealed: false,
        })
        .collect();
    seal_burst(black_box(&mut jobs));
    jobs.iter().all(|job| job.sealed)
}

fn open_all(key: &AeadKey, len: usize, memory: &mut [u8]) -> bool {
    let slots = memory.chunks_exact_mut(stride(len)).enumerate();
    let mut jobs: Vec<_> = slots
        .map(|(at, slot)| OpenJob {
            key: key.get(),
            nonce: nonce(at),
            aad: aad(at),
            text: &mut slot[50..50 + len + ICV_LEN],
            authentic: false,
        })
        .collect();
    open_burst(black_box(&mut jobs));
    jobs.iter().all(|job| job.authentic)
}

fn aead(criterion: &mut Criterion) {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
        for way in ["seal", "open"] {
            let mut group = criterion.benchmark_group(format!("{cipher}/{way}"));
            for tier in Tier::available() {
                let key = key(cipher, tier);
                for len in LENGTHS {
                    let mut memory = vec![0x3c; BURST * stride(len)];
                    if way == "open" {
                        assert!(seal_all(&key, len, &mut memory));
                    }
                    group.throughput(Throughput::Bytes((BURST * len) as u64));
                    group.bench_function(BenchmarkId::new(tier.name(), len), |bencher| {
                        bencher.iter_batched_ref(
                            || memory.clone(),
                            |memory| match way {
                                "open" => assert!(open_all(&key, len, memory)),
                                _ => assert!(seal_all(&key, len, memory)),
                            },
                            BatchSize::NumIterations(4),
                        );
                    });
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, aead);
criterion_main!(benches);
