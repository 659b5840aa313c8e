//! Verifies a guest, then talks to it.
