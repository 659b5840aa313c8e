//! What a verified node says that it served, and for whom.

use cocoon::{ChatError, ExchangeError, Exit, ReceiptFault};
use ed25519_dalek::SigningKey;

use crate::{
    dial, honest,
    node::{ChatScript, Guest, Node, OPTIONS, Script, owner, paid, platform, prompt},
};

async fn ask(chat: ChatScript) -> ChatError {
    let mut guest = Guest::boot(&platform(), 1);
    let (policy, identity) = (guest.policy(), honest(&mut guest));
    let script = Script {
        chat,
        ..Script::default()
    };
    let node = Node::serve(guest, &identity, script).await;
    let mut paid = paid(&node, dial(&node, &policy).await.unwrap()).await;
    paid.chat(&prompt(), OPTIONS, |_| ()).await.unwrap_err()
}

#[tokio::test]
async fn a_forged_receipt_is_refused() {
    let forged = ask(ChatScript {
        forger: Some(SigningKey::from_bytes(&[8; 32])),
        ..ChatScript::default()
    });
    let error = forged.await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Signature)),
        "{error:?}"
    );
    assert_eq!(Exit::from(&error), Exit::Request);
}

#[tokio::test]
async fn a_receipt_for_another_text_is_refused() {
    let error = ask(ChatScript {
        other_text: true,
        ..ChatScript::default()
    })
    .await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Answer)),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_inflated_receipt_is_refused() {
    let error = ask(ChatScript {
        change: Some(|receipt| receipt.served_nano += 1),
        ..ChatScript::default()
    })
    .await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Amount { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_answer_without_receipt_is_not_taken_for_complete() {
    let error = ask(ChatScript {
        cut: true,
        ..ChatScript::default()
    })
    .await;
    assert!(matches!(error, ChatError::Cut), "{error:?}");
}

#[tokio::test]
async fn a_grant_of_somebody_else_is_not_taken() {
    let guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let mut session = dial(&node, &policy).await.unwrap();
    let thief = SigningKey::from_bytes(&[8; 32]);
    let error = session.offer(&node.grant(&owner()), &thief).await.unwrap_err();
    assert!(
        matches!(error, ExchangeError::Status { status: 403, .. }),
        "{error:?}"
    );
}
