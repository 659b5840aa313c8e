//! `policy`: signs a policy file, and says whether one can be used.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use cocoon_verify::{POLICY_BYTES_MAX, POLICY_SIGNATURE_BYTES_MAX, PolicyKey, sign_policy};
use ed25519_dalek::SigningKey;

use super::{
    Exit,
    output::{print_text, replace_file},
    verify::{load_policy, read_text, signature_path},
};

#[derive(clap::Subcommand)]
pub(crate) enum Policy {
    /// Sign a policy: adds a line to FILE.sig, or replaces the one of the same key.
    Sign(Sign),
    /// Say whether a policy can be used, and who signed it.
    Check(Check),
}

#[derive(clap::Args)]
pub(crate) struct Sign {
    /// The policy.
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// The signing key: 64 hexadecimal digits (`openssl rand -hex 32`) in a file that only its owner can read.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct Check {
    /// The policy.
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// A key to trust; may be given several times. Without it signatures are not looked at.
    #[arg(long, value_name = "HEX")]
    policy_key: Vec<PolicyKey>,
}

pub(crate) fn run(command: &Policy) -> Result<Exit> {
    match command {
        Policy::Sign(arguments) => sign(arguments),
        Policy::Check(arguments) => check(arguments),
    }
}

fn sign(arguments: &Sign) -> Result<Exit> {
    let text = read_text(&arguments.policy, POLICY_BYTES_MAX)?;
    let key = read_key(&arguments.key)?;
    let line = sign_policy(&text, &key)
        .with_context(|| format!("{} cannot be signed", arguments.policy.display()))?;
    let beside = signature_path(&arguments.policy);
    let others = if beside.exists() {
        read_text(&beside, POLICY_SIGNATURE_BYTES_MAX)?
    } else {
        String::new()
    };
    let public = PolicyKey::of(&key).to_string();
    let others = others.lines().filter(|line| !line.contains(&public));
    let lines: String = others.map(|line| format!("{line}\n")).chain([line]).collect();
    replace_file(&beside, lines.as_bytes())?;
    print_text(&format!("{} signed by {public}\n", beside.display()))?;
    Ok(Exit::Done)
}

fn check(arguments: &Check) -> Result<Exit> {
    let policy = load_policy(&arguments.policy, &arguments.policy_key)?;
    let terms = policy.terms();
    let signer = policy
        .signer()
        .map_or_else(|| "nobody that was asked for".to_owned(), |key| key.to_string());
    let simulated = if policy.is_simulated() {
        "\nplatform   SIMULATED"
    } else {
        ""
    };
    print_text(&format!(
        "kind       {}{simulated}\nnumber     {}\nexpires_s  {}\nsigned by  {signer}\n",
        terms.hardware.kind().name(),
        terms.number,
        terms.expires_s,
    ))?;
    Ok(Exit::Done)
}

/// Longer than a key and a line's end.
const KEY_BYTES_MAX: u64 = 128;

/// Anybody who can read the key can sign policies, so the file is refused if others than its owner can.
fn read_key(path: &Path) -> Result<SigningKey> {
    let attempt = || format!("cannot use the key {}", path.display());
    let file = File::open(path).with_context(attempt)?;
    let mode = file.metadata().with_context(attempt)?.mode();
    if mode & 0o077 != 0 {
        bail!(
            "cannot use the key {}: others can read or change it; chmod 600 it",
            path.display()
        );
    }
    let mut text = String::new();
    file.take(KEY_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(attempt)?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed)
        .with_context(|| format!("{} does not hold 64 hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}
