//! TD attributes and XFAM: what each bit means, and which are accepted when no policy says otherwise (Intel TDX
//! Module ABI Specification 348551, "ATTRIBUTES" and "XFAM").

/// The host sees and changes everything in the TD.
pub(crate) const DEBUG: u64 = 1;
/// Profiling by the host: HGS+, performance, telemetry.
pub(crate) const PROFILING: u64 = 0b111 << 4;
/// A hash of service TDs that are bound later is in the report.
pub(crate) const SERVICE_TD_EXT: u64 = 1 << 17;
/// A removed page cannot be turned into an exception that the guest's kernel handles.
pub(crate) const SEPT_VE_DISABLE: u64 = 1 << 28;
/// A migration TD, which is not judged here, can take the TD to another machine.
pub(crate) const MIGRATABLE: u64 = 1 << 29;

/// Known bits, harmless by what is known, that a policy has to state.
pub(crate) const STATED: [(u64, &str); 6] = [
    (1 << 16, "ICSSD"),
    (1 << 27, "LASS"),
    (1 << 30, "PKS"),
    (1 << 31, "key locker"),
    (1 << 62, "TPA"),
    (1 << 63, "PERFMON"),
];

/// All bits in [`STATED`].
pub(crate) const STATED_BITS: u64 = 1 << 16 | 1 << 27 | 1 << 30 | 1 << 31 | 1 << 62 | 1 << 63;

/// Bits that mean nothing that is known here, whatever a policy says.
pub(crate) const UNKNOWN: u64 =
    !(DEBUG | PROFILING | SERVICE_TD_EXT | SEPT_VE_DISABLE | MIGRATABLE | STATED_BITS);

/// x87 and SSE: every TD has them.
pub(crate) const XFAM_REQUIRED: u64 = 0b11;

/// State components (Intel SDM volume 1, 13.1) that a guest without a policy may use: x87, SSE, AVX, AVX-512 (5 to
/// 7), PKRU (9), CET (11, 12), UINTR (14), AMX (17, 18). Not: processor trace (8), PASID (10), LBR (15), hardware
/// P-states (16), which show the host or a device more of the guest, and what is not known.
pub(crate) const XFAM_ACCEPTED: u64 = 0b111 | 0b111 << 5 | 1 << 9 | 0b11 << 11 | 1 << 14 | 0b11 << 17;

/// The names of all bits, for people.
pub(crate) fn names(attributes: u64) -> Vec<String> {
    const OTHERS: [(u64, &str); 7] = [
        (DEBUG, "DEBUG"),
        (1 << 4, "HGS+ profiling"),
        (1 << 5, "performance profiling"),
        (1 << 6, "telemetry profiling"),
        (SERVICE_TD_EXT, "SERVTD_EXT"),
        (SEPT_VE_DISABLE, "SEPT_VE_DISABLE"),
        (MIGRATABLE, "MIGRATABLE"),
    ];
    (0..u64::BITS)
        .filter(|bit| attributes & 1 << bit != 0)
        .map(|bit| {
            let named = OTHERS.iter().chain(&STATED).find(|(mask, _)| *mask == 1 << bit);
            named.map_or_else(|| format!("unknown bit {bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_belongs_to_one_group() {
        let groups = [
            DEBUG,
            PROFILING,
            SERVICE_TD_EXT,
            SEPT_VE_DISABLE,
            MIGRATABLE,
            STATED_BITS,
            UNKNOWN,
        ];
        assert_eq!(groups.iter().map(|group| group.count_ones()).sum::<u32>(), 64);
        assert_eq!(groups.iter().fold(0, |all, group| all | group), u64::MAX);
        assert_eq!(STATED.iter().fold(0, |all, (bit, _)| all | bit), STATED_BITS);
    }

    #[test]
    fn bits_have_names() {
        assert_eq!(names(1 << 28 | 1), ["DEBUG", "SEPT_VE_DISABLE"]);
        assert_eq!(names(1 << 63 | 1 << 40), ["unknown bit 40", "PERFMON"]);
        assert_eq!(XFAM_ACCEPTED & XFAM_REQUIRED, XFAM_REQUIRED);
    }
}
