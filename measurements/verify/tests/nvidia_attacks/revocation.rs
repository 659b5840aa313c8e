//! OCSP: whether a certificate was revoked, and who says so.

use crate::nvidia_lab::{Answer, Lab, NOW_S, Role, Signer, assert_fails, assert_passes, status, terms};
use cocoon_verify::judgement::FailureClass::{Signature, Tcb};
use cocoon_verify::judgement::Status;
use cocoon_verify::nvidia::{Demand, Hold, NvidiaTerms, Revocations};

#[test]
fn revoked_and_suspended_certificates_are_refused() {
    let mut lab = Lab::new();
    let all_good = |lab: &Lab| {
        [
            (&lab.boot_rom, &lab.provisioner),
            (&lab.provisioner, &lab.identity),
            (&lab.identity, &lab.root),
        ]
        .map(|(subject, issuer)| Answer::good(subject, issuer).der())
        .to_vec()
    };
    lab.ocsp = all_good(&lab);
    let judgement = lab.judge();
    assert_passes(&judgement);
    assert_eq!(status(&judgement, "chain.revocation-1"), Status::Pass);
    for (reason, said) in [(1, "keyCompromise"), (6, "certificateHold")] {
        lab.ocsp = all_good(&lab);
        lab.ocsp[1] = Answer {
            reason: Some(reason),
            ..Answer::good(&lab.provisioner, &lab.identity)
        }
        .der();
        let judgement = lab.judge();
        assert_fails(&judgement, Tcb, &["chain.revocation-2"]);
        let row = judgement
            .checks()
            .iter()
            .find(|check| check.id == "chain.revocation-2")
            .unwrap();
        assert!(row.actual.ends_with(said), "{row:#?}");
    }
    // A good answer beside the bad one does not outweigh it.
    lab.ocsp.push(Answer::good(&lab.provisioner, &lab.identity).der());
    assert_fails(&lab.judge(), Tcb, &["chain.revocation-2"]);
}

#[test]
fn a_rim_signer_on_hold_is_refused_unless_the_policy_accepts_holds() {
    let mut lab = Lab::with_rims();
    lab.ocsp = vec![
        Answer {
            reason: Some(6),
            ..Answer::good(&lab.rim_signer, &lab.rim_authority)
        }
        .der(),
    ];
    assert_fails(
        &lab.judge(),
        Tcb,
        &["rim.driver.chain.revocation-0", "rim.firmware.chain.revocation-0"],
    );
    lab.policy = Some(NvidiaTerms {
        certificate_hold: Hold::Accepted,
        ..terms()
    });
    assert_passes(&lab.judge());
    lab.ocsp = vec![
        Answer {
            reason: Some(1),
            ..Answer::good(&lab.rim_signer, &lab.rim_authority)
        }
        .der(),
    ];
    assert_eq!(lab.judge().failure(), Some(Tcb));
}

#[test]
fn a_gpu_on_hold_is_refused_even_where_signers_of_rims_on_hold_are_accepted() {
    let mut lab = Lab::with_rims();
    lab.policy = Some(NvidiaTerms {
        certificate_hold: Hold::Accepted,
        ..terms()
    });
    let chain = [
        (&lab.boot_rom, &lab.provisioner),
        (&lab.provisioner, &lab.identity),
    ];
    let on_hold = chain.map(|(subject, issuer)| {
        Answer {
            reason: Some(6),
            ..Answer::good(subject, issuer)
        }
        .der()
    });
    for (answer, id) in on_hold
        .into_iter()
        .zip(["chain.revocation-1", "chain.revocation-2"])
    {
        lab.ocsp = vec![answer];
        assert_fails(&lab.judge(), Tcb, &[id]);
    }
}

#[test]
fn withheld_ocsp_responses_are_refused_if_the_policy_asks_for_them() {
    let mut lab = Lab::new();
    let required = NvidiaTerms {
        revocation: Demand::Required,
        rims: Demand::IfGiven,
        ..terms()
    };
    lab.policy = Some(required);
    assert_fails(
        &lab.judge(),
        Tcb,
        &["chain.revocation-1", "chain.revocation-2", "chain.revocation-3"],
    );
}

#[test]
fn stale_ocsp_responses_are_refused() {
    let check = |this_update_s, next_update_s, fresh: bool| {
        let mut lab = Lab::new();
        let answer = Answer {
            this_update_s,
            next_update_s,
            ..Answer::good(&lab.boot_rom, &lab.provisioner)
        };
        lab.ocsp = vec![answer.der()];
        match fresh {
            true => assert_passes(&lab.judge()),
            false => assert_fails(&lab.judge(), Tcb, &["chain.revocation-1"]),
        }
    };
    check(NOW_S - 60, Some(NOW_S), true);
    check(NOW_S - 60, Some(NOW_S - 1), false);
    check(NOW_S + 1, Some(NOW_S + 60), false);
    check(NOW_S - 3600, None, true);
    check(NOW_S - 86_401, None, false);
}

#[test]
fn ocsp_responses_of_anyone_but_the_issuer_and_its_responder_are_refused() {
    let check = |responder: fn(&Lab) -> Signer, accepted: bool| {
        let mut lab = Lab::new();
        let responder = responder(&lab);
        let good = Answer::good(&lab.boot_rom, &lab.provisioner);
        lab.ocsp = vec![
            Answer {
                signer: &responder,
                responder: Some(&responder),
                ..good
            }
            .der(),
        ];
        match accepted {
            true => assert_passes(&lab.judge()),
            false => assert_fails(&lab.judge(), Signature, &["chain.revocation-1"]),
        }
    };
    check(
        |lab| Signer::new("Responder", &Role::Responder, Some(&lab.provisioner)),
        true,
    );
    check(
        |lab| Signer::new("Responder", &Role::Responder, Some(&lab.identity)),
        false,
    );
    check(|_| Signer::new("Responder", &Role::Responder, None), false);
    check(
        |lab| Signer::new("Not a responder", &Role::Leaf, Some(&lab.provisioner)),
        false,
    );
    check(
        |lab| {
            Signer::edited(
                "Old responder",
                &Role::Responder,
                Some(&lab.provisioner),
                |params| {
                    params.not_after = rcgen::date_time_ymd(2025, 1, 1);
                },
            )
        },
        false,
    );
}

#[test]
fn an_ocsp_response_with_a_flipped_bit_or_a_missing_byte_is_refused() {
    let mut lab = Lab::new();
    let good = Answer {
        reason: Some(1),
        ..Answer::good(&lab.boot_rom, &lab.provisioner)
    }
    .der();
    for bit in (0..good.len() * 8).step_by(7) {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        lab.ocsp = vec![flipped];
        let row = lab
            .judge()
            .checks()
            .iter()
            .find(|check| check.id == "chain.revocation-1")
            .map(|row| row.status);
        assert_ne!(row, Some(Status::Pass), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(Revocations::parse(&good[..length]).is_err(), "{length} bytes");
    }
    assert!(Revocations::parse(&[good, vec![0]].concat()).is_err());
}
