//! Deposit contract, chain access and the local chain.
