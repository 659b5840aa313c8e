//! Whether a receipt is true, as far as the client can tell: it knows its own request, the answer's text, the
//! verified usage key and launch document, and the grant. How many tokens a text has it takes from the
//! attested engine, within the bounds that it asked for.

use cocoon_evidence::Digest32;
use cocoon_protocol::{ContentKey, LaunchDocument, SignedReceipt, TokenCounts};

/// Of a value in an error message: the receipt comes from the network. Whole values are compared.
const SHOWN_CHARS_MAX: usize = 80;

/// What the receipt must agree with.
#[derive(Debug, Clone)]
pub(crate) struct Expected<'a> {
    /// From the verified evidence.
    pub(crate) usage_key: &'a [u8; 32],
    /// From the verified evidence.
    pub(crate) launch: &'a LaunchDocument,
    /// [`cocoon_protocol::Grant::id`].
    pub(crate) grant: Digest32,
    /// The grant's cap, nanoTON.
    pub(crate) cap_nano: u64,
    /// What was served on the grant when this connection began, or after its previous answer.
    pub(crate) served_before: TokenCounts,
    /// The answer's `id`.
    pub(crate) request_id: &'a str,
    /// The HTTP request's body.
    pub(crate) request_body: &'a [u8],
    /// The answer's whole text.
    pub(crate) answer: &'a str,
    /// As the answer's last piece said.
    pub(crate) finish_reason: &'a str,
    /// `max_tokens` of the request.
    pub(crate) output_tokens_max: u32,
}

/// What is wrong with a receipt. Each is the node's fault: keep the receipt and stop using the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptFault {
    /// Signed by somebody else.
    #[error("the receipt is not signed by the verified guest")]
    Signature,
    /// Names other things than were agreed upon.
    #[error("the receipt's {field} is {found}, expected {expected}")]
    Field {
        /// Which one.
        field: &'static str,
        /// As signed.
        found: String,
        /// As known here.
        expected: String,
    },
    /// Made for another request.
    #[error("the receipt is for another request than the one that was sent")]
    Request,
    /// Made for another answer.
    #[error("the receipt is for another text than the one that was received")]
    Answer,
    /// Tokens that were not asked for.
    #[error("the receipt counts {found} {what} tokens, at most {bound} were asked for")]
    Tokens {
        /// Input or output.
        what: &'static str,
        /// As signed.
        found: u64,
        /// The bound.
        bound: u64,
    },
    /// The sum on the grant does not grow by this request.
    #[error("the receipt's sum of tokens does not contain this request and those before it")]
    Sum,
    /// Another amount than the prices give.
    #[error("the receipt asks for {found_nano} nanoTON, its tokens cost {expected_nano} nanoTON")]
    Amount {
        /// As signed.
        found_nano: u64,
        /// From the launch document's prices.
        expected_nano: u64,
    },
    /// More than was granted.
    #[error("the receipt asks for {found_nano} nanoTON, the grant's cap is {cap_nano} nanoTON")]
    OverCap {
        /// As signed.
        found_nano: u64,
        /// As granted.
        cap_nano: u64,
    },
}

/// Checks a receipt.
///
/// # Errors
/// Names the first statement that is not true.
pub(crate) fn check(
    signed: &SignedReceipt,
    content_key: &ContentKey,
    expected: &Expected<'_>,
) -> Result<(), ReceiptFault> {
    if !signed.is_genuine(expected.usage_key) {
        return Err(ReceiptFault::Signature);
    }
    check_names(signed, expected)?;
    let receipt = &signed.receipt;
    if receipt.request_commitment != content_key.commit("request", expected.request_body) {
        return Err(ReceiptFault::Request);
    }
    if receipt.answer_commitment != content_key.commit("answer", expected.answer.as_bytes()) {
        return Err(ReceiptFault::Answer);
    }
    check_amount(signed, expected)
}

fn check_names(signed: &SignedReceipt, expected: &Expected<'_>) -> Result<(), ReceiptFault> {
    let receipt = &signed.receipt;
    let launch = expected.launch;
    let fields = [
        (
            "request id",
            receipt.request_id.clone(),
            expected.request_id.to_owned(),
        ),
        (
            "finish reason",
            receipt.finish_reason.clone(),
            expected.finish_reason.to_owned(),
        ),
        (
            "model",
            receipt.model_root_hash.to_string(),
            launch.model.verity.root_hash.to_string(),
        ),
        (
            "network",
            receipt.network.0.to_string(),
            launch.settlement.network.0.to_string(),
        ),
        ("grant", receipt.grant.to_string(), expected.grant.to_string()),
    ];
    match fields.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((field, found, expected)) => Err(ReceiptFault::Field {
            field,
            found: crate::plain(&found, SHOWN_CHARS_MAX),
            expected: crate::plain(&expected, SHOWN_CHARS_MAX),
        }),
    }
}

fn check_amount(signed: &SignedReceipt, expected: &Expected<'_>) -> Result<(), ReceiptFault> {
    let receipt = &signed.receipt;
    let tokens = receipt.tokens;
    let bounds = [
        ("input", tokens.input, expected.launch.limits.context_tokens_max),
        ("output", tokens.output, expected.output_tokens_max),
    ];
    for (what, found, bound) in bounds {
        let bound = u64::from(bound);
        if found > bound {
            return Err(ReceiptFault::Tokens { what, found, bound });
        }
    }
    // Another connection on the same grant may have been served in between, so the sum may be larger.
    let least = expected
        .served_before
        .checked_add(tokens)
        .ok_or(ReceiptFault::Sum)?;
    if receipt.served.input < least.input || receipt.served.output < least.output {
        return Err(ReceiptFault::Sum);
    }
    let expected_nano = expected
        .launch
        .prices
        .amount_nano(receipt.served)
        .ok_or(ReceiptFault::Sum)?;
    let found_nano = receipt.served_nano;
    if found_nano != expected_nano {
        return Err(ReceiptFault::Amount {
            found_nano,
            expected_nano,
        });
    }
    if found_nano > expected.cap_nano {
        let cap_nano = expected.cap_nano;
        return Err(ReceiptFault::OverCap { found_nano, cap_nano });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cocoon_protocol::{
        AccountAddress, ContractCode, Limits, ModelVolume, NetworkId, NumericProfile, Prices, Receipt,
        Settlement, VerityVolume,
    };
    use ed25519_dalek::SigningKey;

    use super::*;

    fn launch() -> LaunchDocument {
        LaunchDocument {
            version: 1,
            model: ModelVolume {
                name: "demo".into(),
                verity: VerityVolume {
                    data_blocks: 1,
                    salt: Digest32::ZERO,
                    root_hash: Digest32::of(b"model"),
                },
            },
            numeric_profile: NumericProfile::F32,
            prices: Prices {
                input_nano_per_kilotoken: 1000,
                output_nano_per_kilotoken: 3000,
            },
            limits: Limits {
                context_tokens_max: 64,
                output_tokens_max: 32,
                requests_max: 1,
            },
            settlement: Settlement {
                network: NetworkId::LOCAL,
                payout_address: AccountAddress(Digest32::ZERO),
                contract_code: ContractCode {
                    hash: Digest32::ZERO,
                    depth: 0,
                },
            },
        }
    }

    fn true_receipt(key: &ContentKey, launch: &LaunchDocument) -> Receipt {
        Receipt {
            request_id: "chatcmpl-1".into(),
            model_root_hash: launch.model.verity.root_hash,
            network: NetworkId::LOCAL,
            grant: Digest32::of(b"grant"),
            tokens: TokenCounts { input: 5, output: 6 },
            served: TokenCounts {
                input: 15,
                output: 16,
            },
            served_nano: 63,
            request_commitment: key.commit("request", b"body"),
            answer_commitment: key.commit("answer", b"text"),
            finish_reason: "stop".into(),
        }
    }

    /// What [`true_receipt`] agrees with, but for the key; served before: 10 and 10 tokens.
    fn expected(launch: &LaunchDocument) -> Expected<'_> {
        Expected {
            usage_key: &[0; 32],
            launch,
            grant: Digest32::of(b"grant"),
            cap_nano: 100,
            served_before: TokenCounts {
                input: 10,
                output: 10,
            },
            request_id: "chatcmpl-1",
            request_body: b"body",
            answer: "text",
            finish_reason: "stop",
            output_tokens_max: 16,
        }
    }

    /// A receipt that is true before `change`.
    fn check_changed(
        change: impl FnOnce(&mut Receipt),
        resign: impl FnOnce(&mut SignedReceipt),
    ) -> Result<(), ReceiptFault> {
        let key = ContentKey([7; 32]);
        let agent = SigningKey::from_bytes(&[1; 32]);
        let launch = launch();
        let mut receipt = true_receipt(&key, &launch);
        change(&mut receipt);
        let mut signed = receipt.sign(&agent);
        resign(&mut signed);
        let expected = Expected {
            usage_key: &agent.verifying_key().to_bytes(),
            ..expected(&launch)
        };
        check(&signed, &key, &expected)
    }

    fn fault(change: impl FnOnce(&mut Receipt)) -> ReceiptFault {
        check_changed(change, |_| ()).unwrap_err()
    }

    #[test]
    fn a_true_receipt_is_accepted() {
        assert_eq!(check_changed(|_| (), |_| ()), Ok(()));
    }

    #[test]
    fn a_forged_receipt_is_refused() {
        let stranger = SigningKey::from_bytes(&[2; 32]);
        let forged = check_changed(|_| (), |signed| *signed = signed.receipt.clone().sign(&stranger));
        assert_eq!(forged, Err(ReceiptFault::Signature));
        let edited = check_changed(|_| (), |signed| signed.receipt.served_nano -= 1);
        assert_eq!(edited, Err(ReceiptFault::Signature));
    }

    #[test]
    fn a_receipt_for_another_request_or_text_is_refused() {
        let other = ContentKey([7; 32]).commit("answer", b"other");
        assert_eq!(fault(|r| r.answer_commitment = other), ReceiptFault::Answer);
        assert_eq!(fault(|r| r.request_commitment = other), ReceiptFault::Request);
        assert!(matches!(
            fault(|r| r.request_id = "chatcmpl-2".into()),
            ReceiptFault::Field { .. }
        ));
        assert!(matches!(
            fault(|r| r.grant = Digest32::ZERO),
            ReceiptFault::Field { .. }
        ));
        assert!(matches!(
            fault(|r| r.model_root_hash = Digest32::ZERO),
            ReceiptFault::Field { .. }
        ));
        assert!(matches!(
            fault(|r| r.network = NetworkId::MAINNET),
            ReceiptFault::Field { .. }
        ));
        assert!(matches!(
            fault(|r| r.finish_reason = "length".into()),
            ReceiptFault::Field { .. }
        ));
    }

    #[test]
    fn names_that_only_look_alike_are_refused() {
        let long = "x".repeat(2 * SHOWN_CHARS_MAX);
        let expected_is = |request_id: &str, found: &str| {
            let key = ContentKey([7; 32]);
            let agent = SigningKey::from_bytes(&[1; 32]);
            let launch = launch();
            let mut signed = true_receipt(&key, &launch);
            signed.request_id = found.into();
            let expected = Expected {
                request_id,
                ..expected(&launch)
            };
            check_names(&signed.sign(&agent), &expected)
        };
        assert_eq!(expected_is(&long, &long), Ok(()));
        assert!(expected_is(&long, &format!("{long}y")).is_err());
        assert!(expected_is("\u{1}", "\u{2}").is_err());
    }

    #[test]
    fn an_inflated_receipt_is_refused() {
        assert!(matches!(
            fault(|r| r.served_nano = 64),
            ReceiptFault::Amount { .. }
        ));
        assert!(matches!(
            fault(|r| r.tokens.output = 17),
            ReceiptFault::Tokens { .. }
        ));
        assert!(matches!(
            fault(|r| r.tokens.input = 65),
            ReceiptFault::Tokens { .. }
        ));
        assert_eq!(fault(|r| r.tokens.output = 7), ReceiptFault::Sum);
        assert!(matches!(
            fault(|r| {
                r.served.output = 40;
                r.served_nano = 135;
            }),
            ReceiptFault::OverCap { .. }
        ));
    }
}
