//! The last receipts, all of them checked, for `GET /receipts`.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use cocoon_protocol::{ContentKey, SignedReceipt};
use serde::Serialize;

use crate::{Endpoint, clock, session::Paid};

/// Older ones are dropped. Each has about 2 KB.
const RECEIPTS_MAX: usize = 256;

/// A receipt that is true.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Kept {
    node: String,
    received_s: u64,
    amount_nano: u64,
    receipt: SignedReceipt,
    content_key: ContentKey,
}

/// The newest stands last.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Mutex<VecDeque<Kept>>);

impl Receipts {
    pub(crate) fn keep(&self, node: &Endpoint, paid: Paid) {
        let kept = Kept {
            node: node.to_string(),
            received_s: clock::now_s(),
            amount_nano: paid.amount_nano,
            receipt: paid.receipt,
            content_key: paid.content_key,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == RECEIPTS_MAX {
            all.pop_front();
        }
        all.push_back(kept);
    }

    pub(crate) fn all(&self) -> Vec<Kept> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().cloned().collect()
    }

    /// By the answer's id.
    pub(crate) fn find(&self, id: &str) -> Option<Kept> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .rev()
            .find(|kept| kept.receipt.receipt.request_id == id)
            .cloned()
    }
}
