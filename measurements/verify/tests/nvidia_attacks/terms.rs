//! Terms that nothing meets, and bytes that are no evidence.

use crate::nvidia_lab::{Answer, Lab, terms};
use cocoon_verify::nvidia::{NvidiaTerms, NvidiaTermsError, Report, Revocations, Rim, read_evidence};
use proptest::prelude::*;

#[test]
fn terms_that_nothing_meets_are_an_error() {
    let check = |edit: fn(&mut NvidiaTerms), error: NvidiaTermsError| {
        let mut terms = terms();
        edit(&mut terms);
        assert_eq!(terms.check(), Err(error));
    };
    assert_eq!(terms().check(), Ok(()));
    check(
        |terms| terms.architectures.clear(),
        NvidiaTermsError::EmptyList("architectures"),
    );
    check(
        |terms| terms.driver_versions.clear(),
        NvidiaTermsError::EmptyList("driver_versions"),
    );
    check(
        |terms| terms.firmware_versions.clear(),
        NvidiaTermsError::EmptyList("firmware_versions"),
    );
    check(|terms| terms.modes.clear(), NvidiaTermsError::EmptyList("modes"));
    check(|terms| terms.count = 0, NvidiaTermsError::NoDevices);
    check(|terms| terms.count = 65, NvidiaTermsError::TooManyDevices(65));
}

#[test]
fn terms_are_read_from_toml_and_unknown_keys_refused() {
    let text = toml::to_string(&terms()).unwrap();
    assert_eq!(toml::from_str::<NvidiaTerms>(&text).unwrap(), terms());
    assert!(toml::from_str::<NvidiaTerms>(&format!("{text}\nallow_debug = true\n")).is_err());
    assert!(toml::from_str::<NvidiaTerms>(&text.replace("count = 1\n", "")).is_err());
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512), cut in 0_usize..2000) {
        static LAB: std::sync::LazyLock<(Vec<u8>, Vec<u8>, Vec<u8>)> = std::sync::LazyLock::new(|| {
            let lab = Lab::new();
            let answer = Answer::good(&lab.boot_rom, &lab.provisioner).der();
            (lab.report(), lab.firmware_rim(), answer)
        });
        let (report, rim, answer) = &*LAB;
        let spliced = |good: &[u8]| [&good[..cut.min(good.len() - 1)], &bytes].concat();
        prop_assert!(Report::parse(&spliced(report)).is_err());
        // Any of these may by chance be whole again; what counts is that there is an answer.
        let _ = (Rim::parse(&spliced(rim)), Revocations::parse(&spliced(answer)), read_evidence(&bytes));
    }
}
