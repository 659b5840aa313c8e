//! `cocoon-measure collateral fetch`.

use std::process::{Command, Output};

use super::*;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_program_fetches_what_verify_needs() {
    let Some(published) = Published::open() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("collateral.json");
    let (quote, out_text) = (vector(QUOTE).unwrap(), out.to_str().unwrap());
    let server = Server::start(published.pccs());
    let (url, at) = (server.url(), published.from_s.to_string());
    let quote = quote.to_str().unwrap();
    let fetch = ["collateral", "fetch", "--quote", quote, "--out", out_text];
    let pccs = ["--service", "pccs", "--url", &url, "--at", &at];
    let output = run(&[&fetch[..], &pccs, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], "cocoon.collateral/1");
    assert_eq!(report["fmspc"], FMSPC);
    assert_eq!(report["ca"], "platform");
    assert_eq!(report["from_cache"], false);
    assert_eq!(report["valid_until_s"], published.until_s);

    let verify = ["verify", "--kind", "tdx", "--evidence", quote];
    let offline = ["--collateral", out_text, "--at", &at, "--json"];
    let verified = run(&[&verify[..], &offline].concat());
    let expected = vector(&format!("{QUOTE}_collateral.json")).unwrap();
    let given = ["--collateral", expected.to_str().unwrap(), "--at", &at, "--json"];
    let with_published = run(&[&verify[..], &given].concat());
    assert_eq!(verified.status.code(), with_published.status.code());
    let [verified, with_published]: [Value; 2] =
        [verified, with_published].map(|output| serde_json::from_slice(&output.stdout).unwrap());
    assert_eq!(verified["verdict"], "pass");
    assert_eq!(verified["claims"], with_published["claims"]);

    // Its date is over by now, or else as of this time: the file stays as it was.
    let before = fs::read(&out).unwrap();
    let late = (published.until_s + 1).to_string();
    let output = run(&[&fetch[..], &pccs[..4], &["--at", &late]].concat());
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    assert_eq!(fs::read(&out).unwrap(), before);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no half file beside it"
    );
}

#[test]
fn the_program_says_what_is_wrong() {
    let Some(quote) = vector(QUOTE) else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("collateral.json");
    let server = Server::start(Routes::new());
    let crl = format!("{}{ROOT_CRL}", server.url());
    let url = server.url();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--url", &url, "--root-crl-url", &crl], 12, "status 404"),
        (&["--service", "pccs"], 2, "--url"),
        (&["--url", "http://pcs.example"], 2, "plain http"),
        (&["--url", "ftp://pcs.example"], 2, "not an address"),
        (
            &["--service", "pccs", "--url", &url, "--root-crl-url", &crl],
            2,
            "a PCCS has the list itself",
        ),
        (&["--limit-s", "0"], 2, "--limit-s"),
    ];
    for (arguments, code, says) in cases {
        let [quote, out] = [&quote, &out].map(|path| path.to_str().unwrap());
        let fetch = ["collateral", "fetch", "--quote", quote, "--out", out];
        let output = run(&[&fetch[..], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
    assert!(!out.exists());
    let [sgx, out] =
        [&vector("tdx/phala/sgx_quote").unwrap(), &out].map(|path| path.to_str().unwrap().to_owned());
    let output = run(&["collateral", "fetch", "--quote", &sgx, "--out", &out]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}
