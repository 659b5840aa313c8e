//! What is judged, with what, and what is expected of it.

use std::path::PathBuf;

use cocoon_verify::judgement::{FailureClass, Judgement, Status, Verdict};
use cocoon_verify::nvidia::{NvidiaInputs, NvidiaRoots, judge_nvidia, read_certificates, read_evidence};

use crate::public_vectors;

/// 2026-06-01, when every RIM file that is not meant to be expired is valid.
pub(crate) const NOW_S: u64 = 1_780_272_000;
/// 2024-06-01, when the VBIOS RIM of nvtrust is.
pub(crate) const IN_2024_S: u64 = 1_717_200_000;

pub(crate) struct Vectors(PathBuf);

impl Vectors {
    pub(crate) fn open() -> Option<Self> {
        public_vectors::folder().map(Self)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        public_vectors::read(&self.0.join("nvidia").join(name))
    }

    pub(crate) fn certificates(&self, name: &str) -> Vec<Vec<u8>> {
        read_certificates(&self.read(name)).unwrap()
    }

    pub(crate) fn report(&self, name: &str) -> Vec<u8> {
        read_evidence(&self.read(name)).unwrap().remove(0).report
    }
}

/// What is judged with, so that a test states only what it is about.
pub(crate) struct Judge {
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) rims: Vec<Vec<u8>>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) roots: NvidiaRoots,
    pub(crate) now_s: u64,
}

impl Judge {
    pub(crate) fn with(certificates: Vec<Vec<u8>>) -> Self {
        let (rims, nonce, roots) = (Vec::new(), None, NvidiaRoots::pinned());
        Self {
            certificates,
            rims,
            nonce,
            roots,
            now_s: NOW_S,
        }
    }

    pub(crate) fn judge(&self, evidence: &[u8]) -> Judgement {
        let inputs = NvidiaInputs {
            certificates: &self.certificates,
            rims: &self.rims,
            ocsp: &[],
            nonce: self.nonce.as_deref(),
            roots: &self.roots,
            policy: None,
            guest: None,
            now_s: self.now_s,
        };
        judge_nvidia(evidence, &inputs)
    }
}

pub(crate) fn status(judgement: &Judgement, id: &str) -> Status {
    let row = judgement.checks().iter().find(|check| check.id == id);
    row.unwrap_or_else(|| panic!("no row {id} in {judgement:#?}"))
        .status
}

#[track_caller]
pub(crate) fn assert_passes(judgement: &Judgement) {
    let failed: Vec<_> = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail)
        .collect();
    assert_eq!(judgement.verdict(), Verdict::Pass, "{failed:#?}");
}

#[track_caller]
pub(crate) fn assert_fails(judgement: &Judgement, class: FailureClass, ids: &[&str]) {
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    let failed: Vec<_> = failed.map(|check| check.id.as_str()).collect();
    assert_eq!(failed, ids, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}
