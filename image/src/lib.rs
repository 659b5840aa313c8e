//! Builds the guest image.
