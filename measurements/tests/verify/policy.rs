//! `verify --policy`: what a policy accepts of real evidence, and with which exit code it refuses the rest. The
//! policies are written as text, as an auditor would; what they expect of the quote and the report is read at the
//! offsets that Intel and AMD document, so that no parser of ours stands between.

mod root;
mod tdx;

use serde_json::Value;

use super::{AT, PHALA, Vectors, assert_status};

const QUOTE: &str = "tdx/phala/tdx_quote";
const TDX: &str = "--collateral tdx/phala/tdx_quote_collateral.json";
const REPORT: &str = "snp/coco/test-report.bin";
const SNP: &str = "--certs snp/coco/test-vcek.der --certs snp/coco/milan_ask_ark_asvk.pem";
const GPU: &str = "nvidia/evidence/hopper_evidence.json";

/// One second after the time at which the evidence is judged.
const TDX_EXPIRES: &str = "1750332748";
const AT_EXPIRES: &str = "1759276801";

const EVENTS: &str = r#"
[events]
launch_document = "any-insecure"
model = "any-insecure"
usage_key = "bound"
gpu_evidence = "none"
ready = "empty"
"#;

fn head(kind: &str, root: &str, expires_s: &str) -> String {
    format!(
        "version = 1\nnumber = 1\nexpires_s = {expires_s}\nrole = \"inference\"\n\n[platform]\nkind = \"{kind}\"\n\
         simulated = false\nroot_pem = '''{root}'''\n"
    )
}

/// Accepts the TD of [`QUOTE`]. Offsets: Intel TDX DCAP Quoting Library API 0.9, appendix A.3.1 and A.3.2.
fn tdx_policy(vectors: &Vectors) -> String {
    let quote = vectors.read(QUOTE);
    let register = |name: &str, at: usize| {
        let value = hex::encode(&quote[48 + at..48 + at + 48]);
        format!("{name} = [\"{value}\"]\n")
    };
    let registers = [
        ("mrtd", 136),
        ("mr_config_id", 184),
        ("mr_owner", 232),
        ("mr_owner_config", 280),
        ("rtmr0", 328),
        ("rtmr1", 376),
        ("rtmr2", 424),
    ];
    let registers: String = registers.map(|(name, at)| register(name, at)).concat();
    format!(
        "{}\n[registers]\n{registers}\n[td]\nattributes = \"0x0000000010000000\"\nxfam = \"0x00000000000602e7\"\n\n\
         [tcb]\naccepted = [\"UpToDate\"]\nevaluation_number_min = 17\n{EVENTS}",
        head("tdx", cocoon_verify::INTEL_SGX_ROOT_CA_PEM, TDX_EXPIRES)
    )
}

/// Accepts the guest of [`REPORT`]. Offsets: AMD SEV-SNP Firmware ABI Specification 1.55, table 22.
fn snp_policy(vectors: &Vectors) -> String {
    let report = vectors.read(REPORT);
    let field = |at: usize, bytes: usize| hex::encode(&report[at..at + bytes]);
    let (measurement, host_data) = (field(0x90, 48), field(0xc0, 32));
    let (family, image) = (field(0x10, 16), field(0x20, 16));
    let (id_key, author_key) = (field(0xe0, 48), field(0x110, 48));
    format!(
        r#"{}
[snp]
measurement = ["{measurement}"]
host_data = ["{host_data}"]
guest_policy = ["0x000000000003001f"]
vmpl = [0]
family_id = ["{family}"]
image_id = ["{image}"]
guest_svn_min = 4
id_key_digest = ["{id_key}"]
author_key_digest = ["{author_key}"]
signing_key = ["vcek"]

[snp.platform_info]
required = "0x0000000000000001"
allowed = "0x0000000000000001"

[snp.tcb_min.milan]
bootloader = 3
tee = 0
snp = 8
microcode = 115
{EVENTS}"#,
        head("snp", "amd", AT_EXPIRES)
    )
}

/// [`snp_policy`], with what is expected of the GPU of [`GPU`].
fn nvidia_policy(vectors: &Vectors) -> String {
    snp_policy(vectors)
        + r#"
[nvidia]
architectures = ["hopper"]
count = 1
driver_versions = ["590.12"]
firmware_versions = ["96.00.A5.00.01"]
modes = ["protected-pcie"]
rims = "if-given"
revocation = "if-given"
certificate_hold = "refused"
confidential_compute = "enforced-by-guest"
dev_tools = "enforced-by-guest"
"#
}

/// Replaces text that is there once.
#[track_caller]
fn changed(policy: &str, from: &str, to: &str) -> String {
    assert_eq!(policy.matches(from).count(), 1, "{from}");
    policy.replacen(from, to, 1)
}

/// Changes the last digits of a value that stands behind `key`.
#[track_caller]
fn other_value(policy: &str, key: &str) -> String {
    let line = policy.lines().find(|line| line.starts_with(&format!("{key} = ")));
    let line = line.unwrap_or_else(|| panic!("{key}"));
    let end = line.trim_end_matches(['"', ']']);
    let digit = if end.ends_with('0') { '1' } else { '0' };
    let other = format!("{}{digit}{}", &end[..end.len() - 1], &line[end.len()..]);
    changed(policy, line, &other)
}

/// A kind of evidence, and how it is judged.
struct Judged<'a> {
    vectors: &'a Vectors,
    kind: &'static str,
    evidence: &'static str,
    arguments: String,
}

impl<'a> Judged<'a> {
    fn tdx(vectors: &'a Vectors) -> Self {
        let (kind, evidence) = ("tdx", QUOTE);
        let arguments = format!("{TDX} --at {PHALA}");
        Self {
            vectors,
            kind,
            evidence,
            arguments,
        }
    }

    fn snp(vectors: &'a Vectors) -> Self {
        let (kind, evidence) = ("snp", REPORT);
        let arguments = format!("{SNP} --at {AT}");
        Self {
            vectors,
            kind,
            evidence,
            arguments,
        }
    }

    fn nvidia(vectors: &'a Vectors) -> Self {
        let (kind, evidence) = ("nvidia", GPU);
        let arguments = format!("--at {AT}");
        Self {
            vectors,
            kind,
            evidence,
            arguments,
        }
    }

    /// Expects an exit code under `policy`.
    #[track_caller]
    fn ends(&self, code: i32, policy: &str, more: &str) -> Value {
        let path = self.vectors.scratch("policy.toml", policy.as_bytes());
        let evidence = self.vectors.path(self.evidence);
        let arguments = format!("{} --policy {path} {more}", self.arguments);
        self.vectors.expect(code, self.kind, &evidence, &arguments)
    }

    /// Expects that this row alone refuses, with this code.
    #[track_caller]
    fn refuses(&self, code: i32, policy: &str, row: &str) {
        let judgement = self.ends(code, policy, "");
        let failed = super::failed(&judgement);
        let failed: Vec<_> = failed.iter().map(|check| check["id"].as_str().unwrap()).collect();
        assert_eq!(failed, [row]);
    }
}

#[test]
fn a_policy_that_states_what_the_evidence_says_accepts_it() {
    let Some(vectors) = Vectors::open() else { return };
    let judgement = Judged::tdx(&vectors).ends(0, &tdx_policy(&vectors), "");
    for row in [
        "register.mrtd",
        "register.rtmr2",
        "td.xfam",
        "policy.kind",
        "policy.root",
        "policy.expiry",
    ] {
        assert_status(&judgement, row, "PASS");
    }
    for row in ["register.rtmr3", "event.launch-document", "policy.signature"] {
        assert_status(&judgement, row, "SKIP");
    }
    let judgement = Judged::snp(&vectors).ends(0, &snp_policy(&vectors), "");
    for row in [
        "measurement",
        "host-data",
        "guest.policy",
        "tcb.minimum",
        "policy.kind",
        "policy.root",
    ] {
        assert_status(&judgement, row, "PASS");
    }
    let judgement = Judged::nvidia(&vectors).ends(0, &nvidia_policy(&vectors), "");
    for row in ["device.count", "policy.kind", "policy.root"] {
        assert_status(&judgement, row, "PASS");
    }
}

#[test]
fn a_policy_is_refused_from_the_second_on_at_which_it_expires() {
    let Some(vectors) = Vectors::open() else { return };
    for (judged, policy, expires, at) in [
        (Judged::tdx(&vectors), tdx_policy(&vectors), TDX_EXPIRES, PHALA),
        (Judged::snp(&vectors), snp_policy(&vectors), AT_EXPIRES, AT),
        (Judged::nvidia(&vectors), nvidia_policy(&vectors), AT_EXPIRES, AT),
    ] {
        let over = changed(
            &policy,
            &format!("expires_s = {expires}"),
            &format!("expires_s = {at}"),
        );
        judged.refuses(12, &over, "policy.expiry");
    }
}

#[test]
fn a_policy_for_another_kind_of_evidence_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let (tdx, snp) = (tdx_policy(&vectors), snp_policy(&vectors));
    let tdx = changed(&tdx, TDX_EXPIRES, AT_EXPIRES);
    Judged::tdx(&vectors).refuses(10, &snp, "policy.kind");
    Judged::snp(&vectors).refuses(10, &tdx, "policy.kind");
    Judged::nvidia(&vectors).refuses(10, &snp, "policy.kind");
}

#[test]
fn a_platform_below_what_the_policy_asks_for_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let tdx = tdx_policy(&vectors);
    let newer = changed(&tdx, "evaluation_number_min = 17", "evaluation_number_min = 18");
    Judged::tdx(&vectors).refuses(12, &newer, "tcb.evaluation-number");
    let other = changed(&tdx, "[\"UpToDate\"]", "[\"OutOfDate\"]");
    Judged::tdx(&vectors).refuses(12, &other, "tcb.status");
    let newer = changed(&snp_policy(&vectors), "microcode = 115", "microcode = 116");
    Judged::snp(&vectors).refuses(12, &newer, "tcb.minimum");
}

#[test]
fn another_guest_under_sev_snp_is_refused_by_its_row() {
    let Some(vectors) = Vectors::open() else { return };
    let (judged, policy) = (Judged::snp(&vectors), snp_policy(&vectors));
    for (key, row) in [
        ("measurement", "measurement"),
        ("host_data", "host-data"),
        ("family_id", "family-id"),
        ("image_id", "image-id"),
        ("id_key_digest", "id-key-digest"),
        ("author_key_digest", "author-key-digest"),
    ] {
        judged.refuses(10, &other_value(&policy, key), row);
    }
    for (from, to, row) in [
        ("0x000000000003001f", "0x000000000002001f", "guest.policy"),
        ("guest_svn_min = 4", "guest_svn_min = 5", "guest.svn"),
        ("vmpl = [0]", "vmpl = [1]", "guest.vmpl"),
        ("[\"vcek\"]", "[\"vlek\"]", "report.signing-key-kind"),
        (
            "required = \"0x0000000000000001\"",
            "required = \"0x0000000000000000\"",
            "",
        ),
        (
            "allowed = \"0x0000000000000001\"",
            "allowed = \"0x0000000000000003\"",
            "",
        ),
    ] {
        let other = changed(&policy, from, to);
        match row {
            "" => _ = judged.ends(0, &other, ""),
            row => judged.refuses(10, &other, row),
        }
    }
    let forbidden = changed(
        &policy,
        "required = \"0x0000000000000001\"",
        "required = \"0x0000000000000000\"",
    );
    let forbidden = changed(
        &forbidden,
        "allowed = \"0x0000000000000001\"",
        "allowed = \"0x0000000000000000\"",
    );
    judged.refuses(10, &forbidden, "platform.info");
}

#[test]
fn another_gpu_is_refused_by_its_row() {
    let Some(vectors) = Vectors::open() else { return };
    let (judged, policy) = (Judged::nvidia(&vectors), nvidia_policy(&vectors));
    for (from, to, row) in [
        ("[\"hopper\"]", "[\"blackwell\"]", "policy.architecture"),
        ("count = 1", "count = 2", "device.count"),
        ("590.12", "590.13", "policy.driver-version"),
        ("96.00.A5.00.01", "96.00.A5.00.02", "policy.firmware-version"),
        ("protected-pcie", "single-gpu", "device.mode"),
    ] {
        judged.refuses(10, &changed(&policy, from, to), row);
    }
    let told = changed(
        &policy,
        "dev_tools = \"enforced-by-guest\"",
        "dev_tools = \"reported-by-guest\"",
    );
    judged.refuses(10, &told, "device.dev-tools");
    let with_rims = changed(&policy, "rims = \"if-given\"", "rims = \"required\"");
    judged.ends(12, &with_rims, "");
    let with_lists = changed(&policy, "revocation = \"if-given\"", "revocation = \"required\"");
    judged.ends(12, &with_lists, "");
}
