//! Asks the launcher, over vsock, for what the processor would do. Proves nothing: only a policy that names
//! the launcher's test root accepts what comes of it.

use std::{sync::Arc, time::Duration};

use cocoon_evidence::{Digest48, Platform as Evidence, ReportData, Rtmr};
use cocoon_protocol::{
    read_frame_async,
    simulated::{FromPlatform, PLATFORM_PORT, ToPlatform},
    write_frame_async,
};
use tokio::time::timeout;

use super::{Platform, PlatformError};
use crate::transport::{BoxFuture, Dial};

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The launcher's simulated TDX module and quoting enclave.
pub struct Simulated(Arc<dyn Dial>);

impl Simulated {
    /// Reaches it through `dial`.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self(dial)
    }

    /// A connection for each call: calls are rare, and an extend must never be repeated unseen.
    async fn ask(&self, attempt: &'static str, question: ToPlatform) -> Result<FromPlatform, PlatformError> {
        let exchange = async {
            let mut stream = self
                .0
                .dial(PLATFORM_PORT)
                .await
                .map_err(|error| error.to_string())?;
            write_frame_async(&mut stream, &question)
                .await
                .map_err(|error| error.to_string())?;
            read_frame_async(&mut stream)
                .await
                .map_err(|error| error.to_string())
        };
        match timeout(ANSWER_DEADLINE, exchange).await {
            Err(_) => Err(PlatformError::new(attempt, "no answer in time")),
            Ok(Err(cause)) => Err(PlatformError::new(attempt, cause)),
            Ok(Ok(FromPlatform::Failed { reason })) => Err(PlatformError::new(attempt, reason)),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

impl Platform for Simulated {
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        const ATTEMPT: &str = "extending the simulated RTMR3";
        Box::pin(async move {
            let register = Rtmr::Rtmr3;
            match self.ask(ATTEMPT, ToPlatform::Extend { register, digest }).await? {
                FromPlatform::Extended => Ok(()),
                _ => Err(PlatformError::new(ATTEMPT, "an answer to another question")),
            }
        })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        const ATTEMPT: &str = "getting a simulated quote";
        Box::pin(async move {
            match self
                .ask(ATTEMPT, ToPlatform::Quote { report_data: data.0 })
                .await?
            {
                FromPlatform::Quote { quote } => Ok(Evidence::Tdx { quote }),
                _ => Err(PlatformError::new(ATTEMPT, "an answer to another question")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::duplex;

    use super::*;
    use crate::transport::BoxStream;

    /// Answers every question with the same message.
    struct Always(FromPlatform);

    impl Dial for Always {
        fn dial(&self, port: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
            assert_eq!(port, PLATFORM_PORT);
            let (ours, mut theirs) = duplex(4096);
            let answer = self.0.clone();
            tokio::spawn(async move {
                let _: ToPlatform = read_frame_async(&mut theirs).await.unwrap();
                write_frame_async(&mut theirs, &answer).await.unwrap();
            });
            Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
        }
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_no_success() {
        let quoting = Simulated::new(Arc::new(Always(FromPlatform::Quote { quote: vec![1] })));
        let quote = quoting.quote(ReportData([0; 64])).await.unwrap();
        assert_eq!(quote, Evidence::Tdx { quote: vec![1] });
        assert!(quoting.extend(Digest48::ZERO).await.is_err());

        let extending = Simulated::new(Arc::new(Always(FromPlatform::Extended)));
        extending.extend(Digest48::ZERO).await.unwrap();
        assert!(extending.quote(ReportData([0; 64])).await.is_err());

        let reason = "rtmr2 is not yours".to_owned();
        let failing = Simulated::new(Arc::new(Always(FromPlatform::Failed { reason })));
        let error = failing.extend(Digest48::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("rtmr2"), "{error}");
    }
}
