//! The bits of GUEST_POLICY and PLATFORM_INFO: AMD 56860, tables "Guest Policy Structure" and "PLATFORM_INFO".

/// Bit 17 is reserved and one.
const MUST_BE_ONE: u64 = 1 << 17;
const MIGRATE_MA: u64 = 1 << 18;
const DEBUG: u64 = 1 << 19;
/// ABI version and bits 16 to 25.
const KNOWN: u64 = (1 << 26) - 1;

/// Bits 16 to 25 by name, 17 left out.
const NAMES: [(u32, &str); 9] = [
    (16, "smt-allowed"),
    (18, "migration-agent"),
    (19, "debug"),
    (20, "single-socket"),
    (21, "cxl-allowed"),
    (22, "aes-256-xts"),
    (23, "rapl-disabled"),
    (24, "ciphertext-hiding"),
    (25, "page-swap-disabled"),
];

/// PLATFORM_INFO by name; bit 6 is reserved.
const PLATFORM_NAMES: [(u32, &str); 7] = [
    (0, "smt"),
    (1, "tsme"),
    (2, "ecc"),
    (3, "rapl-disabled"),
    (4, "ciphertext-hiding"),
    (5, "alias-check-complete"),
    (7, "tio"),
];

pub(super) fn allows_debug(policy: u64) -> bool {
    policy & DEBUG != 0
}

pub(super) fn allows_migration(policy: u64) -> bool {
    policy & MIGRATE_MA != 0
}

/// Whether every bit is one that AMD described, and the one that must be set is.
pub(super) fn is_known(policy: u64) -> bool {
    policy & !KNOWN == 0 && policy & MUST_BE_ONE != 0
}

/// What a policy gives the host, if it gives it anything that cannot be accepted.
pub(super) fn dangerous(policy: u64) -> Option<&'static str> {
    match policy {
        _ if !is_known(policy) => Some("has bits that AMD reserves"),
        _ if allows_debug(policy) => Some("lets the host read the guest's memory"),
        _ if allows_migration(policy) => Some("lets a migration agent move the guest"),
        _ => None,
    }
}

/// The version and the set bits, for a person.
pub(super) fn describe(policy: u64) -> String {
    let abi = format!("ABI {}.{}", policy >> 8 & 0xff, policy & 0xff);
    join(&abi, policy, &NAMES)
}

pub(super) fn platform_is_known(info: u64) -> bool {
    let known = PLATFORM_NAMES.iter().fold(0, |known, (bit, _)| known | 1 << bit);
    info & !known == 0
}

pub(super) fn describe_platform(info: u64) -> String {
    join("", info, &PLATFORM_NAMES)
}

/// The names of the set bits.
pub(super) fn platform_names(info: u64) -> Vec<&'static str> {
    set(info, &PLATFORM_NAMES).collect()
}

pub(super) fn policy_names(policy: u64) -> Vec<&'static str> {
    set(policy, &NAMES).collect()
}

fn set(bits: u64, names: &[(u32, &'static str)]) -> impl Iterator<Item = &'static str> {
    let set = names.iter().filter(move |(bit, _)| bits & 1 << bit != 0);
    set.map(|(_, name)| *name)
}

fn join(first: &str, bits: u64, names: &[(u32, &'static str)]) -> String {
    let mut words = set(bits, names).collect::<Vec<_>>();
    if !first.is_empty() {
        words.insert(0, first);
    }
    let text = words.join(" ");
    format!("{bits:#018x} ({text})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_described_bits_are_known() {
        assert!(is_known(0x3_001f));
        assert!(!is_known(0x1_001f), "bit 17 must be one");
        assert!(!is_known(1 << 26 | MUST_BE_ONE));
        assert!(platform_is_known(0xbf) && !platform_is_known(0x40) && !platform_is_known(0x100));
    }

    #[test]
    fn debug_and_migration_are_dangerous() {
        assert_eq!(dangerous(0x3_0000), None);
        assert!(dangerous(0xb_0000).is_some_and(|why| why.contains("memory")));
        assert!(dangerous(0x7_0000).is_some_and(|why| why.contains("migration")));
        assert_eq!(describe(0x3_001f), "0x000000000003001f (ABI 0.31 smt-allowed)");
    }
}
