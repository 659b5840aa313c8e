//! What the fuzz targets do with their bytes.
//!
//! Each function of [`targets`] hands hostile bytes to one parser and asserts what has to hold for whatever it
//! accepts. Panics, overflows, endless loops and broken assertions are findings. docs/FUZZING.md says how to run
//! them.

pub mod targets;
