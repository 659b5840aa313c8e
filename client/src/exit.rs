//! What the program's exit code says.

use cocoon_verify::RefusalClass;

use crate::{CertificateFault, ChatError, ConnectError, ExchangeError, PayError, SeenError, WalletError};

/// Exit codes of `cocoon`. They are part of its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Verified; for `chat` also answered, with a receipt that is true.
    Ok = 0,
    /// The command line, or a file that it names, cannot be used.
    Usage = 2,
    /// The guest is real, but not one that the policy accepts.
    Policy = 10,
    /// The evidence is not signed by the platform root that the policy names, or is no evidence.
    Signature = 11,
    /// The platform's security version is not accepted.
    Tcb = 12,
    /// The evidence does not belong to this connection.
    Channel = 13,
    /// Certificate, policy or endorsements are expired or not yet valid.
    Freshness = 14,
    /// The GPU's evidence is not accepted.
    Gpu = 15,
    /// No connection, or no usable answer in time.
    Unreachable = 20,
    /// This machine itself: its TLS library or its random numbers.
    Machine = 21,
    /// Wallet, deposit, grant or chain.
    Payment = 30,
    /// Verified and paid for, but the request failed or its receipt is wrong.
    Request = 40,
}

impl Exit {
    /// For `--help`.
    pub const HELP: &str = "Exit codes:
   0  verified (chat: answered, and the receipt is true)
   2  the command line, or a file that it names, cannot be used
  10  policy: the guest is not one that the policy accepts
  11  signature: the evidence is not signed by the platform root that the policy names
  12  TCB: the platform's security version is not accepted
  13  channel: the evidence does not belong to this connection
  14  freshness: certificate, policy or endorsements are expired or not yet valid
  15  GPU: the GPU's evidence is not accepted
  20  unreachable: no connection, or no usable answer in time
  21  machine: TLS or random numbers do not work on this machine
  30  payment: wallet, deposit, grant or chain
  40  request: verified and paid for, but the request failed or its receipt is wrong
When the code is 2 to 21, nothing of the prompt was sent and nothing was paid; of a conversation, nothing of the
question that it ended at.";

    /// What to do about it.
    pub fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Ok | Self::Usage | Self::Payment => return None,
            Self::Policy => {
                "send nothing to this node. If you expected it to pass, compare the rows marked FAIL with \
                 `cocoon-measure predict` for this image, LaunchSpec and launch document"
            }
            Self::Signature => {
                "send nothing to this node. If the platform is simulated, check that the policy was written with \
                 this very node's root: every state directory has its own"
            }
            Self::Tcb => "ask the provider to update microcode, firmware and TDX module, or use another node",
            Self::Channel => {
                "send nothing: somebody may stand between you and the guest, or the node restarted meanwhile. \
                 Try again, and from another network"
            }
            Self::Freshness => "check this machine's clock; then fetch a newer policy, or tell the provider",
            Self::Gpu => "send nothing to this node; tell the provider",
            Self::Unreachable => {
                "check the URL, and that the node is up (the provider: `cocoon-launch status`)"
            }
            Self::Machine => {
                "nothing is wrong with the node: use another machine, or mend this one (the program needs \
                 getrandom(2), and a processor that its build is for)"
            }
            Self::Request => "try again; if it happens again, keep the receipt and tell the provider",
        })
    }
}

impl From<&ConnectError> for Exit {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } | ConnectError::Dropped(_) | ConnectError::Exchange(_) => {
                Self::Unreachable
            }
            ConnectError::Certificate(CertificateFault::Expired { .. }) => Self::Freshness,
            ConnectError::Handshake(_)
            | ConnectError::CertificateForm(_)
            | ConnectError::Certificate(_)
            | ConnectError::AnotherGuest { .. } => Self::Channel,
            ConnectError::Tls(_) | ConnectError::Random(_) => Self::Machine,
            ConnectError::Seen(SeenError::Older { .. }) => Self::Policy,
            ConnectError::Seen(_) => Self::Usage,
            // Nothing was relayed: what would prove the guest is not there.
            ConnectError::Evidence(_) | ConnectError::Incomplete => Self::Signature,
            ConnectError::LaunchDocument(_) => Self::Policy,
            ConnectError::Refused { refusal, .. } => match refusal.class {
                RefusalClass::Policy => Self::Policy,
                RefusalClass::Signature => Self::Signature,
                RefusalClass::Tcb => Self::Tcb,
                RefusalClass::Channel => Self::Channel,
                RefusalClass::Freshness => Self::Freshness,
                RefusalClass::Gpu => Self::Gpu,
            },
        }
    }
}

impl From<&WalletError> for Exit {
    fn from(_: &WalletError) -> Self {
        Self::Payment
    }
}

impl From<&PayError> for Exit {
    fn from(error: &PayError) -> Self {
        match error {
            PayError::Offer(refusal)
            | PayError::Open {
                refusal: Some(refusal),
                ..
            } => match refusal {
                ExchangeError::Status {
                    status: 402 | 403, ..
                } => Self::Payment,
                _ => Self::Request,
            },
            _ => Self::Payment,
        }
    }
}

impl From<&ChatError> for Exit {
    fn from(error: &ChatError) -> Self {
        match error {
            ChatError::Exchange(ExchangeError::Status { status: 402, .. }) => Self::Payment,
            _ => Self::Request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_tls_or_random_numbers_is_not_blamed_on_the_node() {
        let no_tls = ConnectError::Tls(rustls::Error::General("none".into()));
        let no_random = ConnectError::Random(std::io::ErrorKind::Unsupported.into());
        for error in [no_tls, no_random] {
            assert_eq!(Exit::from(&error), Exit::Machine, "{error}");
        }
    }

    #[test]
    fn help_names_every_code() {
        for code in [
            Exit::Ok,
            Exit::Usage,
            Exit::Policy,
            Exit::Signature,
            Exit::Tcb,
            Exit::Channel,
            Exit::Freshness,
            Exit::Gpu,
            Exit::Unreachable,
            Exit::Machine,
            Exit::Payment,
            Exit::Request,
        ] {
            let line = format!("\n{:>4}  ", code as u8);
            assert!(Exit::HELP.contains(&line), "{code:?}");
        }
    }
}
