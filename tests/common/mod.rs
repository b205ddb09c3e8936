//! What the EAL tests share.
#![allow(dead_code)]

use simplon::dpdk::{Device, EalConfig, PortSettings};

/// A small EAL of this process's own name.
pub(crate) fn config(name: &str, devices: &[Device]) -> EalConfig {
    EalConfig {
        name: format!("simplon_test_{name}_{}", std::process::id()),
        memory_mib: 64,
        devices: devices.to_vec(),
    }
}

/// A port with as many receive as transmit queues.
pub(crate) fn settings(name: &str, queues: u16) -> PortSettings {
    PortSettings {
        name: name.into(),
        mtu: 1500,
        rx_queues: queues,
        tx_queues: queues,
        rx_descriptors: 512,
        tx_descriptors: 512,
    }
}
