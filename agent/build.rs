//! Lets the functions that run first lie beside each other in the guest's program; `startup.order` says why and which.
//!
//! Only there: other programs of this package are linked by whatever linker the machine has.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=startup.order");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        let package = env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
        let order = Path::new(&package).join("startup.order");
        let order = format!("--symbol-ordering-file={}", order.display());
        // Each C library has some of the names.
        for argument in [order.as_str(), "--no-warn-symbol-ordering"] {
            // By two arguments, for a folder with a comma in its name.
            println!("cargo::rustc-link-arg-bins=-Xlinker");
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
