//! Fetches what Intel publishes about a TDX platform, so that quotes can be verified offline.
//!
//! ```text
//! quote --CollateralKey::of--> key --Fetcher::collateral(key, now)--> Fetched, the JSON that `verify` takes
//! ```
//!
//! Nobody on the way is trusted, not even the service: what arrives counts only after its signatures lead to the
//! root, its dates hold and it is about the platform that was asked for. What was kept is judged in the same way,
//! and used until the first signed date in it passes; after that there is an answer from the service or none.

use std::{io, path::PathBuf, time::Duration};

use cocoon_verify::{
    Root,
    judgement::FailureClass,
    tdx::{
        Collateral, CollateralError, CollateralFormatError, CollateralKey, CollateralPart, OtherCollateral,
        ValidityError, VerifiedCollateral,
    },
};

mod cache;
mod http;
mod service;

pub use http::{HttpError, HttpFailure};
pub use service::{
    AnswerError, INTEL_PCS_URL, INTEL_ROOT_CRL_URL, Service, ServiceKind, ServiceUrl, ServiceUrlError,
};

use cache::CollateralCache;
use http::Client;

/// Where collateral comes from, and whose word it has to be.
#[derive(Debug, Clone)]
pub struct Fetcher {
    service: Service,
    root: Root,
    cache: Option<CollateralCache>,
    limit: Duration,
}

/// Collateral that is authentic, valid and of the right platform.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// In the form of dcap-qvl.
    pub json: Vec<u8>,
    /// The same, ready for use.
    pub verified: VerifiedCollateral,
    /// Where it came from.
    pub origin: Origin,
}

/// Where collateral came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The service was not asked.
    Cache,
    /// Asked just now.
    Service,
}

/// Why collateral cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableCollateral {
    /// Not collateral at all.
    #[error(transparent)]
    Format(#[from] CollateralFormatError),
    /// Not the word of the root.
    #[error(transparent)]
    Unauthentic(#[from] CollateralError),
    /// Another platform's.
    #[error(transparent)]
    Other(#[from] OtherCollateral),
    /// Expired, or not yet valid.
    #[error(transparent)]
    Validity(#[from] ValidityError),
}

impl UnusableCollateral {
    fn class(&self) -> FailureClass {
        match self {
            Self::Unauthentic(error) => error.class(),
            Self::Format(_) => FailureClass::Signature,
            Self::Other(_) | Self::Validity(_) => FailureClass::Tcb,
        }
    }
}

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer, or an error.
    #[error("the service gives no {}; make sure that it can be reached and serves this platform", part.name())]
    Http {
        /// What was asked for.
        part: CollateralPart,
        /// Why.
        source: HttpError,
    },
    /// An answer that makes no sense.
    #[error("{url} answers with something else than the {}", part.name())]
    Answer {
        /// What was asked for.
        part: CollateralPart,
        /// Where.
        url: String,
        /// Why.
        source: AnswerError,
    },
    /// An answer that must not be used.
    #[error("what the service gives cannot be used; ask another one, or try again later")]
    Unusable(#[from] UnusableCollateral),
    /// The service failed, and what was kept is over.
    #[error("{} is kept, but must not be used ({kept}), and there is nothing newer", path.display())]
    Over {
        /// What was kept.
        path: PathBuf,
        /// Why it is not used.
        kept: UnusableCollateral,
        /// Why there is nothing newer.
        source: Box<FetchError>,
    },
    /// The cache is broken.
    #[error("cannot use the cache file {}", path.display())]
    Cache {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// What the failure means for a verification; `None` if it is this machine's.
    pub fn class(&self) -> Option<FailureClass> {
        match self {
            Self::Http { .. } => Some(FailureClass::Tcb),
            Self::Answer { .. } => Some(FailureClass::Signature),
            Self::Unusable(error) => Some(error.class()),
            Self::Over { source, .. } => source.class(),
            Self::Cache { .. } => None,
        }
    }
}

impl Fetcher {
    /// Everything has to lead to `root` and to arrive within `limit`.
    pub fn new(service: Service, root: Root, limit: Duration) -> Self {
        Self {
            service,
            root,
            cache: None,
            limit,
        }
    }

    /// Keeps what is fetched in `folder`, which is made when it is needed and may be deleted at any time.
    #[must_use]
    pub fn keep_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(CollateralCache::new(folder.into()));
        self
    }

    /// Collateral for `key` that is valid at `now_s`, in seconds since 1970.
    ///
    /// # Errors
    /// See [`FetchError`]. Nothing is kept then.
    pub fn collateral(&self, key: &CollateralKey, now_s: u64) -> Result<Fetched, FetchError> {
        let Some(cache) = &self.cache else {
            return self.fetch(key, now_s);
        };
        let path = cache.path(&self.service, key);
        let failed = |source| FetchError::Cache {
            path: path.clone(),
            source,
        };
        let kept = match cache.load(&path).map_err(failed)? {
            None => None,
            Some(json) => match self.judge(&json, key, now_s) {
                Ok(verified) => {
                    return Ok(Fetched {
                        json,
                        verified,
                        origin: Origin::Cache,
                    });
                }
                Err(unusable) => Some(unusable),
            },
        };
        let fetched = match (self.fetch(key, now_s), kept) {
            (Err(source), Some(kept)) => Err(FetchError::Over {
                path: path.clone(),
                kept,
                source: Box::new(source),
            }),
            (result, _) => result,
        }?;
        cache.keep(&path, &fetched.json).map_err(failed)?;
        Ok(fetched)
    }

    fn fetch(&self, key: &CollateralKey, now_s: u64) -> Result<Fetched, FetchError> {
        let mut client = Client::new(self.limit);
        let json = self.service.collateral(&mut client, key)?;
        let verified = self.judge(&json, key, now_s)?;
        Ok(Fetched {
            json,
            verified,
            origin: Origin::Service,
        })
    }

    fn judge(
        &self,
        json: &[u8],
        key: &CollateralKey,
        now_s: u64,
    ) -> Result<VerifiedCollateral, UnusableCollateral> {
        let verified = Collateral::parse(json)?.verify(&self.root)?;
        verified.check_key(key)?;
        verified.validity().check(now_s)?;
        Ok(verified)
    }
}
