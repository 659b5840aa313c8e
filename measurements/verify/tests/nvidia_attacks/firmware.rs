//! RIM files: which firmware a device may have measured.

use crate::nvidia_lab::{
    Lab, Role, Signer, assert_fails, assert_passes, measurement, rim_body, signed_rim, status, terms,
};
use cocoon_verify::judgement::FailureClass::{Policy, Signature, Tcb};
use cocoon_verify::judgement::Status;
use cocoon_verify::nvidia::Rim;

#[test]
fn a_rim_file_that_is_withheld_is_refused_if_the_policy_asks_for_it() {
    let mut lab = Lab::with_rims();
    lab.policy = Some(terms());
    lab.rims.pop();
    let judgement = lab.judge();
    assert_fails(&judgement, Tcb, &["rim.firmware"]);
    assert_eq!(status(&judgement, "device.debug"), Status::Skip);
}

#[test]
fn modified_firmware_is_refused_and_its_measurement_named() {
    let mut lab = Lab::with_rims();
    lab.rims[1] = lab.rim("96.00.A5.00.01", &[(0, measurement(0)), (2, [0xee; 48])]);
    let judgement = lab.judge();
    assert_fails(
        &judgement,
        Policy,
        &["rim.firmware.measurement-2", "rim.firmware.measurements"],
    );
    let row = judgement
        .checks()
        .iter()
        .find(|check| check.id == "rim.firmware.measurement-2")
        .unwrap();
    assert_eq!(
        (&row.expected, &row.actual),
        (&"ee".repeat(48), &hex::encode(measurement(2)))
    );
    assert_eq!(status(&judgement, "device.secure-boot"), Status::Skip);
}

#[test]
fn the_video_decoders_measurement_counts_if_it_is_there() {
    let mut lab = Lab::with_rims();
    assert_passes(&lab.judge());
    lab.set_opaque(11, &[0xaa]);
    assert_fails(
        &lab.judge(),
        Policy,
        &["rim.driver.measurement-35", "rim.driver.measurements"],
    );
    // A status that is neither hides nothing.
    lab.set_opaque(11, &[0x00]);
    assert_fails(
        &lab.judge(),
        Policy,
        &["rim.driver.measurement-35", "rim.driver.measurements"],
    );
}

#[test]
fn two_rim_files_for_one_measurement_or_version_are_refused() {
    let mut lab = Lab::with_rims();
    lab.rims[1] = lab.rim("96.00.A5.00.01", &[(1, measurement(1))]);
    assert_fails(&lab.judge(), Policy, &["rim.overlap"]);
    lab.rims[1] = lab.rims[0].clone();
    assert_fails(&lab.judge(), Policy, &["rim.driver"]);
}

#[test]
fn a_rim_file_of_a_foreign_signer_is_refused() {
    let mut lab = Lab::with_rims();
    let root = Signer::new("Lab RIM Root", &Role::Authority, None);
    let authority = Signer::new("Lab RIM L3", &Role::Authority, Some(&root));
    let own = std::mem::replace(&mut lab.rim_root, root);
    lab.rim_authority = authority;
    lab.rim_signer = Signer::new("Lab RIM L4", &Role::Leaf, Some(&lab.rim_authority));
    lab.rims = vec![lab.firmware_rim()];
    lab.rim_root = own;
    assert_fails(&lab.judge(), Signature, &["rim.firmware.chain.root"]);
}

#[test]
fn a_rim_file_whose_signature_covers_less_than_the_document_is_refused() {
    let lab = Lab::with_rims();
    let rim = String::from_utf8(lab.firmware_rim()).unwrap();
    assert!(Rim::parse(rim.as_bytes()).is_ok());
    let refuse = |from: &str, to: &str| {
        let changed = rim.replacen(from, to, 1);
        assert_ne!(changed, rim, "{from}");
        assert!(Rim::parse(changed.as_bytes()).is_err(), "{to}");
    };
    refuse("URI=\"\"", "URI=\"#payload\"");
    refuse("xmldsig#enveloped-signature", "TR/1999/REC-xpath-19991116");
    refuse("xml-c14n11\"></ds:Transform>", "xml-c14n11\"><x/></ds:Transform>");
    refuse("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384");
    refuse("xmldsig-more#sha384", "xmldsig#sha1");
    refuse("<Payload>", "<Payload></Payload><Payload>");
    refuse(
        "<Meta ",
        "<Meta colloquialVersion=\"1\" edition=\"GPU\" product=\"GH100\"/><Meta ",
    );
    refuse("<Payload>", "<Payload><!-- -->");
    refuse(
        "<SoftwareIdentity",
        "<!DOCTYPE x [<!ENTITY e \"x\">]><SoftwareIdentity",
    );
    refuse("name=\"GH100\"", "xml:base=\"x\" name=\"GH100\"");
    refuse(
        "<ds:Signature xmlns",
        "<ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\"/><ds:Signature xmlns",
    );
    refuse("index=\"2\"", "index=\"0\"");
    refuse("index=\"2\"", "index=\"254\"");
    refuse("alternatives=\"1\"", "alternatives=\"2\"");
    refuse("active=\"True\"", "active=\"true\"");
}

/// The signed document wrapped in another one, with values of the attacker's.
#[test]
fn a_wrapped_rim_file_is_refused() {
    let lab = Lab::with_rims();
    let signed = String::from_utf8(lab.firmware_rim()).unwrap();
    let forged = rim_body("96.00.A5.00.01", &[(0, [0xbb; 48])]);
    let wrapped = format!("{forged}<x>{signed}</x></SoftwareIdentity>");
    assert!(Rim::parse(wrapped.as_bytes()).is_err());
    let chain = [&lab.rim_signer, &lab.rim_authority, &lab.rim_root];
    let chain = chain.map(|one| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &one.der));
    let foreign = Signer::new("Attacker", &Role::Leaf, None);
    let mut lab = Lab {
        rims: vec![signed_rim(&forged, &foreign, &chain)],
        ..lab
    };
    let judgement = lab.judge();
    assert_eq!(status(&judgement, "rim.firmware.signature"), Status::Fail);
    lab.rims = vec![wrapped.into_bytes()];
    assert_fails(&lab.judge(), Signature, &["rim-file-0.format"]);
}
