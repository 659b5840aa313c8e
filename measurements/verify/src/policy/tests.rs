use cocoon_evidence::Digest48;

use super::*;
use crate::INTEL_SGX_ROOT_CA_PEM;

fn text() -> String {
    let digest = Digest48::of(b"x");
    let registers: String = [
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "mr_config_id",
        "mr_owner",
        "mr_owner_config",
    ]
    .map(|name| format!("{name} = [\"{digest}\"]\n"))
    .concat();
    format!(
        "version = 1\nnumber = 7\nexpires_s = 1800000000\nrole = \"inference\"\n\n\
         [platform]\nkind = \"tdx\"\nsimulated = false\nroot_pem = \"\"\"\n{INTEL_SGX_ROOT_CA_PEM}\"\"\"\n\n\
         [registers]\n{registers}\n\
         [td]\nattributes = \"0x0000000010000000\"\nxfam = \"0x00000000000602e7\"\n\n\
         [tcb]\naccepted = [\"UpToDate\"]\nevaluation_number_min = 17\n\n\
         [events]\nlaunch_document = [\"{digest}\"]\nmodel = [\"{digest}\"]\nusage_key = \"bound\"\n\
         gpu_evidence = \"none\"\nready = \"empty\"\n"
    )
}

const FIELDS: &str = "[[events.launch_document_fields]]\nfield = \"version\"\none_of = [1]\n";

#[test]
fn a_launch_document_has_either_digests_or_field_rules() {
    let both = text() + FIELDS;
    assert!(matches!(Policy::parse(&both), Err(PolicyError::Malformed(_))));
    let digest = format!("launch_document = [\"{}\"]\n", Digest48::of(b"x"));
    let fields = both.replacen(&digest, "", 1);
    let policy = Policy::parse(&fields).unwrap();
    assert!(
        matches!(&policy.terms().events.launch_document, DocumentTerms::Fields(rules) if rules.len() == 1)
    );
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    let neither = text().replacen(&digest, "", 1);
    assert!(matches!(Policy::parse(&neither), Err(PolicyError::Malformed(_))));
}

#[test]
fn a_policy_round_trips_through_its_file() {
    let policy = Policy::parse(&text()).unwrap();
    assert_eq!(policy.terms().number, 7);
    assert!(!policy.is_simulated());
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
}

#[test]
fn leaving_out_any_rule_is_an_error() {
    let full = text();
    let rules: Vec<_> = full
        .lines()
        .filter(|line| line.contains(" = ") && !line.contains("\"\"\""))
        .collect();
    assert_eq!(rules.len(), 22);
    for rule in rules {
        let cut = full.replacen(&format!("{rule}\n"), "", 1);
        assert!(Policy::parse(&cut).is_err(), "without {rule}");
    }
}

#[test]
fn a_misspelt_rule_is_an_error_in_every_table() {
    let text = text() + FIELDS;
    let text = || {
        text.replacen(
            &format!("launch_document = [\"{}\"]\n", Digest48::of(b"x")),
            "",
            1,
        )
    };
    assert!(Policy::parse(&text()).is_ok());
    for table in [
        "",
        "[platform]\n",
        "[registers]\n",
        "[td]\n",
        "[tcb]\n",
        "[events]\n",
        "[[events.launch_document_fields]]\n",
    ] {
        let extra = text().replacen(table, &format!("{table}rtmr9 = [\"00\"]\n"), 1);
        let error = Policy::parse(&extra).unwrap_err();
        assert!(matches!(error, PolicyError::Malformed(_)), "{table}: {error}");
    }
}

#[test]
fn an_empty_list_is_an_error() {
    let lists: Vec<_> = text()
        .lines()
        .filter_map(|line| line.split_once(" = [").map(|(name, _)| name.to_owned()))
        .collect();
    assert_eq!(lists.len(), 10);
    for name in lists {
        let empty: String = text()
            .lines()
            .map(|line| match line.starts_with(&format!("{name} = [")) {
                true => format!("{name} = []\n"),
                false => format!("{line}\n"),
            })
            .collect();
        let error = Policy::parse(&empty).unwrap_err();
        assert!(matches!(error, PolicyError::Empty(_)), "{name}: {error}");
    }
}

#[test]
fn values_that_cannot_be_meant_are_errors() {
    for (from, to) in [
        ("version = 1", "version = 2"),
        ("\"0x0000000010000000\"", "\"0x10000000\""),
        ("\"0x0000000010000000\"", "268435456"),
        ("\"UpToDate\"", "\"uptodate\""),
        ("\"UpToDate\"", "\"Revoked\""),
        ("simulated = false", "simulated = true"),
        ("\"bound\"", "\"any\""),
        ("role = \"inference\"", "role = \"training\""),
        ("kind = \"tdx\"", "kind = \"snp\""),
    ] {
        let changed = text().replacen(from, to, 1);
        assert_ne!(changed, text());
        assert!(Policy::parse(&changed).is_err(), "{to}");
    }
}

#[test]
fn an_oversized_policy_is_refused_unread() {
    let long = text() + &"#".repeat(POLICY_BYTES_MAX);
    assert!(matches!(Policy::parse(&long), Err(PolicyError::TooLarge { .. })));
}

fn with_machines(table: &str) -> Result<Policy, PolicyError> {
    Policy::parse(&text().replacen("[registers]", &format!("[machines]\n{table}\n[registers]"), 1))
}

#[test]
fn machines_that_are_none_of_the_platforms_are_errors() {
    let (this, other) = ("ab".repeat(16), "cd".repeat(16));
    let policy = with_machines(&format!("accepted = [\"{this}\"]\nrefused = [\"{other}\"]")).unwrap();
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    for (table, says) in [
        (String::new(), "machines is empty"),
        ("accepted = []".to_owned(), "machines.accepted is empty"),
        (
            format!("accepted = [\"{this}\"]\nrefused = []"),
            "machines.refused is empty",
        ),
        (format!("accepted = [\"{}\"]", "ab".repeat(64)), "16 bytes"),
        (format!("refused = [\"{}\"]", "00".repeat(16)), "not all zero"),
        ("refused = [\"PPID\"]".to_owned(), "not well formed"),
        (format!("acepted = [\"{this}\"]"), "not well formed"),
    ] {
        let error = with_machines(&table).unwrap_err().to_string();
        assert!(error.contains(says), "{table}: {error}");
    }
}

#[test]
fn a_masked_machine_is_neither_accepted_nor_known_not_to_be_refused() {
    let masked = MachineId(vec![0; 64]);
    let other = || Some(vec![MachineId(vec![1; 64])]);
    for (accepted, refused) in [(other(), None), (None, other())] {
        assert!(!MachineTerms { accepted, refused }.accepts(&masked));
    }
}
