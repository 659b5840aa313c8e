//! Lets development builds and tests find libtorch where `LIBTORCH` says it is.
//!
//! Only there: in release profiles, the guest's among them, no path of the build machine may get into the
//! binary; the guest has libtorch where the dynamic linker looks by itself.

use std::env;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("PROFILE").as_deref() == Ok("debug")
        && let Ok(libtorch) = env::var("LIBTORCH")
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
