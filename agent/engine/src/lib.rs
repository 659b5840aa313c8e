//! Runs a model with libtorch.
