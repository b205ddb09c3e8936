//! Generates the DPDK bindings and builds the C shim. Does nothing without the feature `dpdk`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    dpdk::build();
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use std::path::PathBuf;
    use std::process::{Command, exit};
    use std::{env, panic};

    /// The one DPDK release this is written for. Its ABI, the mbuf layout included, is fixed within a release.
    const RELEASE: &str = "22.11.";
    /// What we call. Drivers are not here: EAL loads them from its plugin directory.
    const LIBRARIES: &str = "rte_eal rte_ethdev rte_mbuf rte_mempool rte_ring rte_net_ring";
    const FUNCTIONS: &[&str] = &[
        "gw_.*",
        "rte_eal_(init|cleanup|has_hugepages|get_runtime_dir)",
        "rte_version",
        "rte_log_set_global_level",
        "rte_get_tsc_hz",
        "rte_thread_(register|unregister)",
        "rte_pktmbuf_free_bulk",
        "rte_mempool_in_use_count",
        "rte_ring_create",
        "rte_eth_from_rings",
        "rte_eth_dev_(info_get|configure|start|stop|close|set_mtu|get_port_by_name|is_valid_port)",
        "rte_eth_(rx|tx)_queue_setup",
        "rte_eth_promiscuous_(enable|disable)",
        "rte_eth_(macaddr_get|link_get_nowait|stats_get)",
        "rte_eth_dev_rss_(hash_conf_get|hash_update|reta_query|reta_update)",
    ];
    const CONSTANTS: &[&str] = &[
        "GW_.*",
        "RTE_PKTMBUF_HEADROOM",
        "RTE_MAX_ETHPORTS",
        "RTE_MEMPOOL_CACHE_MAX_SIZE",
        "RTE_MBUF_F_(INDIRECT|EXTERNAL|RX_VLAN_STRIPPED)",
        "RTE_LOG_WARNING",
        "RTE_ETH_MQ_RX_RSS",
        "RTE_ETH_SPEED_NUM_UNKNOWN",
    ];

    pub(crate) fn build() {
        println!("cargo:rerun-if-changed=dpdk-config");
        let library = pkg_config::Config::new()
            .cargo_metadata(false)
            .probe("libdpdk")
            .unwrap_or_else(|error| {
                stop(&format!("DPDK {RELEASE}x was not found ({error}). On Debian: apt-get install libdpdk-dev pkg-config"))
            });
        if !library.version.starts_with(RELEASE) {
            let found = &library.version;
            stop(&format!(
                "DPDK {RELEASE}x is needed and {found} was found. Debian 12 has the right one in libdpdk-dev"
            ));
        }
        let flags = compiler_flags();
        let mut shim = cc::Build::new();
        shim.file("dpdk-config/shim.c").warnings(true);
        for flag in &flags {
            shim.flag(flag);
        }
        shim.compile("gw_shim");
        bind(&flags);
        let paths = library.link_paths.iter();
        paths.for_each(|path| println!("cargo:rustc-link-search=native={}", path.display()));
        for name in LIBRARIES.split(' ') {
            println!("cargo:rustc-link-lib=dylib={name}");
        }
    }

    /// All of pkg-config's flags, in order: `-include rte_config.h` and `-march` matter as much as the paths, and the
    /// crate keeps the paths only.
    fn compiler_flags() -> Vec<String> {
        println!("cargo:rerun-if-env-changed=PKG_CONFIG");
        let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
        match Command::new(&program)
            .args(["--cflags", "libdpdk"])
            .output()
        {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            _ => stop(&format!("`{program} --cflags libdpdk` failed")),
        }
    }

    fn bind(flags: &[String]) {
        let mut builder = bindgen::builder()
            .header("dpdk-config/wrapper.h")
            .clang_args(flags)
            .opaque_type("rte_mempool|rte_ring|rte_device")
            .derive_default(true)
            .generate_comments(false);
        for name in FUNCTIONS {
            builder = builder.allowlist_function(name);
        }
        for name in CONSTANTS {
            builder = builder.allowlist_var(name);
        }
        // bindgen panics where it finds no libclang.
        let clang = "bindings to DPDK could not be made. bindgen needs libclang; on Debian: apt-get install libclang-14-dev clang";
        let bindings = panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate()))
            .unwrap_or_else(|_| stop(clang))
            .unwrap_or_else(|error| stop(&format!("{clang} ({error})")));
        let path = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("dpdk.rs");
        if let Err(error) = bindings.write_to_file(&path) {
            stop(&format!("writing {}: {error}", path.display()));
        }
    }

    fn stop(message: &str) -> ! {
        eprintln!("simplon: {message}");
        exit(1)
    }
}
