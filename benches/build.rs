//! Compiles the shim around Intel's library and links the library.

fn main() {
    println!("cargo:rerun-if-changed=intel.c");
    cc::Build::new()
        .file("intel.c")
        .warnings_into_errors(true)
        .compile("simplon_intel");
    println!("cargo:rustc-link-lib=IPSec_MB");
}
