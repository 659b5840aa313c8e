//! Judges evidence against a policy, without I/O or clock.
