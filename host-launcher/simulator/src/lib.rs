//! A software TDX module and quoting enclave for machines without TDX.
