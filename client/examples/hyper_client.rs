//! A Rust program that speaks to a verified guest with hyper-util's client: `cocoon`'s connector is all that differs
//! from any other server.
//!
//! ```sh
//! cargo run -p cocoon --example hyper_client -- https://127.0.0.1:8443 policy.toml
//! ```

use std::{env, error::Error, fs, sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon::{Connector, Deadlines, Proof, Verifier};
use cocoon_verify::{Floors, Policy};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Uri;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};

/// A list of models is a few lines; a guest that meets the policy is still not to fill this program's memory.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = env::args().skip(1);
    let (Some(node), Some(policy)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hyper_client https://HOST:PORT POLICY".into());
    };
    let policy = Policy::parse(&fs::read_to_string(policy)?)?;
    let verifier = Arc::new(Verifier::new(policy, Floors::default(), Deadlines::default())?);
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(Connector::new(verifier));

    let models: Uri = format!("{node}/v1/models").parse()?;
    // A guest that the policy refuses ends this with an error, before the request is sent.
    let answer = client.get(models).await?;
    if let Some(proof) = answer.extensions().get::<Arc<Proof>>() {
        let simulated = proof.guest().is_simulated();
        eprintln!("verified: {}, simulated: {simulated}", proof.launch().model.name);
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await?;
    println!("{}", String::from_utf8_lossy(&body.to_bytes()));
    Ok(())
}
