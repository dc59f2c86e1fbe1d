//! Links ISA-L where it is installed.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    match pkg_config::probe_library("libisal") {
        Ok(_) => println!("cargo::rustc-cfg=isal"),
        Err(_) => println!(
            "cargo::warning=ISA-L is not installed and left out (Debian: apt-get install libisal-dev pkg-config)"
        ),
    }
}
