//! Predicts what a launch must measure to.
