//! What tests ask a node, and who pays for it.

use cocoon::{ChatMessage, ChatOptions, ChatRole, PaidSession, Session};
use ed25519_dalek::SigningKey;

use super::Node;

pub(crate) const PROMPT: &str = "canary: the secret of a patient";

pub(crate) const OPTIONS: ChatOptions = ChatOptions {
    output_tokens_max: 16,
    temperature: 0.0,
};

pub(crate) fn prompt() -> [ChatMessage; 1] {
    [ChatMessage {
        role: ChatRole::User,
        content: PROMPT.into(),
    }]
}

/// Has the deposit.
pub(crate) fn owner() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

/// A session whose grant the node takes.
pub(crate) async fn paid(node: &Node, mut session: Session) -> PaidSession {
    let owner = owner();
    let grant = session.offer(&node.grant(&owner), &owner).await.unwrap();
    session.open(grant)
}
