//! What is defined twice because the arrows forbid sharing it must be the same on both sides.

use cocoon_evidence::Digest32;
use cocoon_measurements::{MODEL_DEVICE, VerityTree};
use cocoon_protocol::VerityVolume;

#[test]
fn auditor_and_agent_make_the_same_model_event() {
    let volume = VerityVolume {
        data_blocks: 1234,
        salt: Digest32::of(b"salt"),
        root_hash: Digest32::of(b"root"),
    };
    let document = serde_json::json!({ "model": { "name": "m", "verity": volume } });
    let predicted = cocoon_measurements::model_event(document.to_string().as_bytes()).unwrap();
    assert_eq!(predicted, volume.table(MODEL_DEVICE));
}

#[test]
fn an_images_verity_parameters_read_as_a_launch_documents() {
    let tree = VerityTree {
        data_blocks: 7,
        salt: Digest32::of(b"salt"),
        root_hash: Digest32::of(b"root"),
    };
    let text = serde_json::to_string(&tree).unwrap();
    let volume: VerityVolume = serde_json::from_str(&text).unwrap();
    assert_eq!(volume.table("/dev/vda"), tree.table("/dev/vda"));
}

#[test]
fn limits_of_the_launch_document_agree() {
    assert_eq!(
        cocoon_measurements::LAUNCH_DOCUMENT_BYTES_MAX,
        cocoon_protocol::LAUNCH_DOCUMENT_BYTES_MAX
    );
}

#[test]
fn policies_expect_the_simulated_td_that_the_simulator_makes() {
    assert_eq!(
        cocoon_measurements::SIMULATED_TD_ATTRIBUTES,
        cocoon_simulator::SIMULATED_TD_ATTRIBUTES
    );
    assert_eq!(
        cocoon_measurements::SIMULATED_XFAM,
        cocoon_simulator::SIMULATED_XFAM
    );
}
